"""Run a command under Hydra: compose the config, choose the run directory, map errors to exit codes.

Imports nothing heavy: a mistake is answered before torch is loaded.
"""

import argparse
import atexit
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cli import CONF, PROJECT, run_dir
from cli.compose import data_root, register_resolvers
from cli.errors import PEER_DIED, format_error, print_error
from cli.help import print_config, prints_config
from cli.job import is_multirun
from cli.output import flush_output, prepare_output
from cli.process import single_job_argv
from cli.validation import check_overrides
from runs.files import check_path
from runs.format import printable
from runs.migrate import upgrade_overrides
from runs.rank import check_rank_variables, is_rank_zero
from sweeps.callback import SweepSummary

log = logging.getLogger(__name__)


def main(task: Callable[[DictConfig, Path], object], config_name: str = "config") -> NoReturn:
    """Run ``task(cfg, run_dir)`` for the command line, and end the process with an exit code.

    Args:
        task: takes the config and the run directory.
        config_name: the primary config in ``conf/``.
    """
    code: int | str | None = 1
    prepare_output()
    argparse.ArgumentParser.error = _usage_error  # type: ignore[method-assign]  # of Hydra's options

    def end() -> None:
        logging.shutdown()
        complete = flush_output()
        os._exit((code or int(not complete)) if isinstance(code, int) else 1)

    # At exit Python frees torch object by object, which takes almost a second. The handler registered first is called
    # last: all other exit handlers have run by then.
    atexit.register(end)
    try:
        check_rank_variables(alone=config_name != "config")
        for directory in (Path.cwd(), PROJECT, Path(data_root())):
            check_path(directory)
    except (ValueError, OSError) as error:  # nothing but this line depends on a rank yet
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if not is_rank_zero():
        _prepare_other_rank()
    command = "train" if config_name == "config" else config_name
    current, notes = upgrade_overrides(sys.argv[1:], command)
    sys.argv[1:] = current
    if is_rank_zero():
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    try:
        _run_under_hydra(task, config_name)
        code = SweepSummary.exit_code()
    except SystemExit as error:
        code = error.code or 0
    sys.exit(code)


def _usage_error(self: argparse.ArgumentParser, message: str) -> NoReturn:
    print(f"error: {message}; a setting is NAME=VALUE, and --help shows all", file=sys.stderr)
    sys.exit(2)


def _prepare_other_rank() -> None:
    """Discard the output of a rank other than zero: the run directory and its log belong to rank zero."""
    if any("_ddp_process_" in argument for argument in sys.argv):  # Lightning's job name for a process it started
        # This process ignores signals: rank zero waits for it and then stops it (callbacks/signal_handler.py).
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch prints its stack where another process ends
    own_dir = tempfile.mkdtemp(prefix="lit-classics-")
    atexit.register(shutil.rmtree, own_dir, ignore_errors=True)
    sys.argv += [f"hydra.run.dir={own_dir}", "hydra/job_logging=none"]


def _run_under_hydra(task: Callable[[DictConfig, Path], object], config_name: str) -> None:
    register_resolvers()
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" or "debug=traceback" in sys.argv

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def run_job(cfg: DictConfig) -> object:
        os.environ["HYDRA_FULL_ERROR"] = str(int(show_traceback))  # for child processes
        logging.captureWarnings(True)  # into the run's log
        folder = Path(HydraConfig.get().runtime.output_dir)
        if is_multirun():
            prefix_log_lines(HydraConfig.get().job.num)
        try:
            if missing := OmegaConf.missing_keys(cfg):
                raise ValueError(f"{', '.join(f'{key}=…' for key in sorted(missing))} is required")
            if config_name != "config":  # a command about a finished run
                return task(cfg, folder)
            return _train_job(task, cfg, folder)
        except BaseException as error:
            if run_dir.is_recorded(error):  # and the other jobs of the sweep still run
                result = run_dir.record_failure(folder, format_error(error))
                if result["status"] == "pruned":
                    log.info(error)
                else:
                    print_error(error, show_traceback)
                return result
            run_dir.remove_empty_dirs()
            exit_with_error(error, show_traceback, resume_command() if is_multirun() else None)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    _refuse_nested_launch(show_traceback)
    # Processes that a launcher starts for jobs find the project too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        if prints_config(config_name):
            print_config(run_job, config_name)
        else:
            run_job()
    except (Exception, KeyboardInterrupt) as error:
        if SweepSummary.folder:
            run_dir.remove_sweep_files(SweepSummary.folder)
        run_dir.remove_empty_dirs()
        begun = isinstance(error, OSError) and SweepSummary.folder and SweepSummary.folder.is_dir()
        exit_with_error(error, show_traceback, resume_command() if begun else None)
    finally:
        run_dir.remove_empty_dirs()


def _train_job(task: Callable[[DictConfig, Path], object], cfg: DictConfig, folder: Path) -> object:
    """Check the config, lock the run directory and train; a job of a sweep resumes or returns its earlier result."""
    if cfg.sweep_resume and not is_multirun():
        raise ValueError("sweep_resume goes on with a sweep: add -m and the overrides that the sweep was started with")
    check_overrides(cfg)
    with run_dir.lock_run_dir(folder, wait=is_multirun()):
        if not is_multirun():
            run_dir.check_unused(folder, cfg.resume)
            return task(cfg, folder)
        if result := run_dir.load_result_or_resume(folder, cfg):
            return result
        with single_job_argv(folder, cfg.resume):
            return task(cfg, folder)


def _refuse_nested_launch(show_traceback: bool) -> None:
    processes = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1
    if {"-m", "--multirun"} & set(sys.argv) and int(processes) > 1:
        words = "a sweep starts the processes of its jobs itself, trainer.devices of them: leave torchrun and srun out"
        exit_with_error(ValueError(words), show_traceback)


class PrintableFormatter(logging.Formatter):
    """Formats what goes to the terminal: control characters in it, from the files of a run or of data, do nothing."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def prefix_log_lines(number: int) -> None:
    """Begin each line of a sweep's job with its number, because jobs may run side by side."""

    class Numbered(PrintableFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(f"[{number}] {line}" for line in super().format(record).splitlines())

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(Numbered())


def resume_command() -> str:
    """Return the command that goes on with the newest sweep."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("sweep_resume=")]
    return shlex.join(["python", "train.py", *arguments, "sweep_resume=last"])


def exit_with_error(error: BaseException, show_traceback: bool, command: str | None = None) -> NoReturn:
    """Print what went wrong in one line and end the process with an exit code of the README's table."""
    if isinstance(error, SystemExit):
        raise error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would only add a traceback to the line
    if isinstance(error, BrokenPipeError) and _stdout_closed():
        sys.exit(141)  # as other programs do: 128 and the number of SIGPIPE, which Windows does not have
    together = (KeyboardInterrupt, FloatingPointError)
    if not is_rank_zero():
        distributed = sys.modules.get("torch.distributed")
        lost = PEER_DIED in format_error(error) and distributed and distributed.is_initialized()
        if isinstance(error, together) or hasattr(error, "status") or lost:  # rank zero says it
            sys.exit(0)  # Lightning would kill rank zero for another exit code of this process
    print_error(error, show_traceback)
    if isinstance(error, KeyboardInterrupt) and SweepSummary.folder:
        command = resume_command()
    if command := command or getattr(error, "resume_command", None):
        print(f"go on with: {command}", file=sys.stderr)
    codes = {FloatingPointError: 4, KeyboardInterrupt: 130}
    sys.exit(codes.get(type(error), getattr(error, "exit_code", 1)))


def _stdout_closed() -> bool:
    """Return whether the other end of a pipe is gone, as in ``python train.py --help | head -3``."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
