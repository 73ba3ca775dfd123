"""Run a command under Hydra: compose the config, choose the run directory, and call the task.

Imports nothing heavy, so that an error is reported before torch is loaded.
"""

import argparse
import atexit
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cli import CONF, GROUPS, PROJECT, job_dir, overwrite, run_dir
from cli.compose import data_root, register_resolvers
from cli.errors import format_error, is_of_launcher, print_error
from cli.exit_codes import exit_with_error, resume_command
from cli.help import print_config, prints_config
from cli.job import JobDirError, SweepStopped, is_multirun, is_recorded, resumed_choices
from cli.output import PrintableFormatter, begin_log, flush_output, prepare_output
from cli.paths import quote_paths
from cli.process import ImportElsewhere, single_job_argv, take_job_gpus
from cli.resumed_run import resolve_auto, stored_choices
from cli.validation import check_overrides, check_values
from runs.checkpoint import keep_last_run
from runs.files import check_name_in_outputs, check_path, check_utf8, lost_lock
from runs.format import pluralize, printable
from runs.interrupts import ENDING_SIGNALS, handle_early_signals, remember_signal
from runs.migrate import upgrade_overrides
from runs.overrides import asks_for_sweep, override_key, quote_value
from runs.rank import check_rank_variables, is_rank_zero
from sweeps.callback import SweepSummary
from sweeps.jobs import LEFT, has_failed, record_first_failure
from sweeps.parallel import STOPPED, SweepInterrupted, is_job_process, is_stopped, job_of_joblib

log = logging.getLogger(__name__)
ImportElsewhere.install()  # here, and so also in a process that a launcher starts for jobs


def main(task: Callable[[DictConfig, Path], object], config_name: str = "config") -> NoReturn:
    """Run ``task(cfg, run_dir)`` for the command line, and end the process with an exit code.

    Args:
        task: takes the config and the run directory.
        config_name: the primary config in ``conf/``.
    """
    code: int | str | None = 1
    prepare_output()
    handle_early_signals()
    parser = argparse.ArgumentParser  # of Hydra's options
    parser.error = _usage_error  # type: ignore[method-assign]
    parser.parse_args = _parse_arguments  # type: ignore[assignment]

    def end() -> None:
        logging.shutdown()
        complete = flush_output()
        os._exit((code or int(not complete)) if isinstance(code, int) else 1)

    # At exit Python frees torch object by object, which takes almost a second. The handler registered first is called
    # last: all other exit handlers have run by then.
    atexit.register(end)
    command = "train" if config_name == "config" else config_name
    try:
        check_surroundings(alone=command != "train")
    except (ValueError, OSError) as error:  # the ranks are not known, so each process prints
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    try:
        _rewrite_argv(command)
        _run_under_hydra(task, config_name)
        code = SweepSummary.exit_code()
        if number := SweepSummary.left:
            print(f"stopped at the first failure: {pluralize(number, 'job')} left", file=sys.stderr)
            print(f"resume with: {printable(resume_command() or '')}", file=sys.stderr)
    except SystemExit as error:
        code = error.code or 0
    sys.exit(code)


def check_surroundings(alone: bool) -> None:
    """Check the environment variables and the directories of a command, and what ``last`` is for all of it.

    Args:
        alone: whether the command runs in one process.
    """
    check_rank_variables(alone)
    for directory in (_working_directory(), PROJECT, Path(data_root())):
        check_path(directory)
    keep_last_run()


def rewrite_arguments(arguments: Sequence[str], command: str) -> list[str]:
    """Return arguments with the present names of settings, and with paths quoted for Hydra."""
    current, notes = upgrade_overrides(arguments, command)
    if is_rank_zero():
        for note in notes:
            print(f"note: {printable(note)}", file=sys.stderr)
    return quote_paths(current)


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise FileNotFoundError("the working directory does not exist any more") from error


def _usage_error(self: argparse.ArgumentParser, message: str) -> NoReturn:
    print(f"error: {printable(message)}; a setting is NAME=VALUE, and --help shows all", file=sys.stderr)
    sys.exit(2)


def _parse_arguments(self: argparse.ArgumentParser) -> argparse.Namespace:
    """Return Hydra's arguments: ``-m`` may stand anywhere, and the options of a resumed run come first.

    ``sys.argv`` stays as it was typed: the other ranks of a run are started with it.
    """
    arguments = self.parse_intermixed_args()
    arguments.overrides[:0] = resumed_choices
    return arguments


def _prepare_other_rank() -> None:
    """Discard the output of a rank other than zero: the run directory and its log belong to rank zero."""
    if any("_ddp_process_" in argument for argument in sys.argv):  # Lightning's job name for a process it started
        # This process ignores signals: rank zero waits for it and then stops it (callbacks/signal_handler.py).
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch prints its stack where another process ends
    check_path(Path(tempfile.gettempdir()))
    own_dir = tempfile.mkdtemp(prefix="lit-classics-")
    atexit.register(shutil.rmtree, own_dir, ignore_errors=True)
    sys.argv += [f"hydra.run.dir={quote_value(own_dir)}", "hydra/job_logging=none"]


def set_import_path() -> None:
    """Let the processes that this one starts find the project, and no module in the working directory.

    That directory may be the one of an untrusted sweep.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    os.environ["PYTHONSAFEPATH"] = "1"


def _run_under_hydra(task: Callable[[DictConfig, Path], object], config_name: str) -> None:
    register_resolvers()
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" or "debug=traceback" in sys.argv

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def run_job(cfg: DictConfig) -> object:
        os.environ["HYDRA_FULL_ERROR"] = str(int(show_traceback))  # for child processes
        try:
            with job_of_joblib():
                return _run_job(task, cfg, is_training=config_name == "config", show_traceback=show_traceback)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    _refuse_nested_launch(show_traceback)
    set_import_path()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    try:
        if prints_config(config_name):
            print_config(run_job, config_name)
        else:
            run_job()
    except (Exception, KeyboardInterrupt) as error:
        run_dir.remove_empty_dirs()
        # Its process was killed, or told to end.
        ended_elsewhere = isinstance(error, OSError | BrokenExecutor | SweepInterrupted) or is_of_launcher(error)
        exit_with_error(error, show_traceback, resume_command() if ended_elsewhere else None)
    finally:
        run_dir.remove_empty_dirs()


def _run_job(
    task: Callable[[DictConfig, Path], object], cfg: DictConfig, is_training: bool, show_traceback: bool
) -> object:
    """Call the task for a run or for a job of a sweep. After a failed job the other jobs of the sweep still run."""
    logging.captureWarnings(True)  # into the run's log
    output_dir = Path(HydraConfig.get().runtime.output_dir)
    if is_multirun():
        prefix_log_lines(HydraConfig.get().job.num)
    try:
        return check_and_run(task, cfg, output_dir, is_training)
    except SweepStopped:
        run_dir.remove_empty_dirs()
        return STOPPED if is_stopped() else {"status": LEFT, "metrics": {}}
    except BaseException as error:
        if is_job_process() and (is_stopped() or getattr(error, "exit_code", 1) > 128):
            remember_signal(signal.SIGTERM)  # no other job begins here; the command waits for the result
            run_dir.remove_empty_dirs()
            print_error(error, show_traceback)
            return STOPPED
        if is_recorded(error):
            result = job_dir.record_failure(output_dir, format_error(error))
            if result["status"] == "pruned":
                log.info(error)
            else:
                print_error(error, show_traceback)
                if cfg.get("sweep_fail_fast") and not lost_lock(output_dir):
                    record_first_failure(Path(HydraConfig.get().sweep.dir))
            return result
        run_dir.remove_empty_dirs()
        resumable = is_multirun() and not isinstance(error, JobDirError)
        exit_with_error(error, show_traceback, resume_command() if resumable else None)


def check_and_run(
    task: Callable[[DictConfig, Path], object], cfg: DictConfig, output_dir: Path, is_training: bool
) -> object:
    """Check a composed config and the directory, and call the task."""
    if is_multirun():
        job_dir.check_job_dir(output_dir)
    else:
        overwrite.check_log(output_dir / f"{HydraConfig.get().job.name}.log")
    # A resumed run has them in its checkpoint.
    if missing := set() if cfg.get("resume") else OmegaConf.missing_keys(cfg):
        required = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{', '.join(f'{key}=…' for key in sorted(missing))} {required} required")
    if not is_training:
        check_values(cfg, str(HydraConfig.get().job.config_name))
        begin_log()
        return task(cfg, output_dir)
    return _train_job(task, cfg, output_dir)


def _train_job(task: Callable[[DictConfig, Path], object], cfg: DictConfig, output_dir: Path) -> object:
    """Check the config, lock the run directory and train; a job of a sweep resumes or returns its earlier result."""
    if cfg.sweep_resume and not is_multirun():
        raise ValueError("sweep_resume resumes a sweep: add -m and the overrides that the sweep was started with")
    if cfg.sweep_fail_fast and not is_multirun():
        raise ValueError("sweep_fail_fast=true ends a sweep at its first failure: add -m and the values of the sweep")
    if is_stopped() or (cfg.sweep_fail_fast and has_failed(Path(HydraConfig.get().sweep.dir))):
        with run_dir.lock_run_dir(output_dir, wait=True):  # which removes what this job has made
            raise SweepStopped
    check_overrides(cfg)
    with run_dir.lock_run_dir(output_dir, wait=is_multirun()):
        if not is_multirun():
            overwrite.check_unused(output_dir, cfg.resume)
            begin_log()
            return task(cfg, output_dir)
        result = job_dir.load_result_or_resume(output_dir, cfg)
        begin_log()
        if result:
            return result
        take_job_gpus(cfg.trainer)
        with single_job_argv(cfg.resume):
            return task(cfg, output_dir)


def _rewrite_argv(command: str) -> None:
    """Rewrite the arguments, or end the process for what is refused before Hydra reads them."""
    try:
        sys.argv[1:] = rewrite_arguments(sys.argv[1:], command)
        check_hydra_settings(sys.argv[1:], command)
        if command == "train":
            sys.argv[1:] = resolve_auto(sys.argv[1:])
            resumed_choices[:], sys.argv[1:] = stored_choices(sys.argv[1:])
        if not is_rank_zero():
            _prepare_other_rank()  # last: the directory that was typed has the run that resume=auto continues
    except (ValueError, OSError, KeyboardInterrupt) as error:
        exit_with_error(error, show_traceback=False)


def check_hydra_settings(arguments: Sequence[str], command: str) -> None:
    """Raise ValueError for settings with which Hydra would write a file, or change the directory, before any check.

    For a directory whose value is missing it would use one named None. A command other than train writes beside what
    its run has: elsewhere it would replace what is of another run. Several settings of a group in braces are refused,
    because checks are of single ones.
    """
    no_groups = ("hydra.mode", "hydra.output_subdir", "hydra.searchpath", "hydra.verbose")
    is_sweep = asks_for_sweep(arguments)
    for override in arguments:
        key, value = override_key(override), override.partition("=")[2].strip()
        if override.startswith("--e"):  # --experimental-rerun, which may be shortened
            raise ValueError(f"{override} is refused: it unpickles a file, which may run code")
        is_typed = "=" in override or override.startswith("~")  # --cfg hydra is none
        of_hydra = is_typed and re.fullmatch(r"hydra(\.\w+)?", key) and key not in no_groups
        if of_hydra or (key.partition("@")[0] in GROUPS and re.search(r"(?<!\$)\{", value)):
            name = "hydra.GROUP" if key == "hydra" else key.partition("@")[0]
            raise ValueError(f"{override} is refused: its settings are typed one by one, {name}.NAME=VALUE")
        if key.startswith("hydra.sweeper.params") and "hydra" in override.partition("params")[2]:
            raise ValueError(f"{override} is refused: the settings of Hydra are those of the whole sweep")
        of_files = {"job": {"default", "colorlog"}, "hydra": {"hydra_debug"}}  # options with a FileHandler of Python
        logs = re.fullmatch(r"hydra/(job|hydra)_logging(@.*)?", key)
        if logs and of_files[logs[1]] & set(re.split(r"\W", value)):
            raise ValueError(f"{override} is refused: it writes a log before anything is checked")
        if re.match(r"hydra\.(job|hydra)_logging\.handlers\b", key):
            raise ValueError(f"{override} is refused: a log is that of its run; hydra.verbose=true has more lines")
        if is_sweep and key == "debug" and "lr" in re.split(r"\W", value):
            raise ValueError("debug=lr proposes a rate for one run: leave out -m")
        if key == "hydra.job.name" and not re.fullmatch(r"\w[\w .-]*", value):
            raise ValueError(f"{override} is refused: it names the log, {command}.log")
        if key == "hydra.output_subdir" and value != "null":
            raise ValueError(f"{override} is refused: a run writes its config.yaml itself")
        if key == "hydra.job.chdir" and value.lower() not in ("false", "null"):
            message = "paths, outputs/ among them, are relative to the directory of the command"
            raise ValueError(f"{override} is refused: {message}")
        if key.startswith("hydra.") and value.strip("'\" ") == "???":
            raise ValueError(f"{override} is refused: ??? is no value, and ./??? a directory")
        if key == "resume" and not value.strip("'\" "):
            raise ValueError(f"{override} names no run; resume=last is the one that was started last")
        if key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            _check_directory(override, value, command)
    if is_sweep and command != "train":
        raise ValueError(f"-m is for train.py: {command}.py takes one run")


def _check_directory(override: str, value: str, command: str) -> None:
    if command != "train":
        raise ValueError(f"{override} is refused: {command} chooses its directory itself")
    if not (name := value.strip("'\" ")):
        raise ValueError(f"{override} names no directory; {override}. is this one")
    check_utf8(value)
    if value != printable(value):
        raise ValueError(f"{override} is refused: the name has control characters")
    check_name_in_outputs(name, override)
    if "://" in value:
        raise ValueError(f"{override} is refused: it is not a directory on this machine")


def _refuse_nested_launch(show_traceback: bool) -> None:
    processes = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1
    if asks_for_sweep(sys.argv) and int(processes) > 1:
        message = "a sweep starts the processes of its jobs itself (trainer.devices): run it without torchrun and srun"
        exit_with_error(ValueError(message), show_traceback)


def prefix_log_lines(number: int) -> None:
    """Begin each log line of a job with its number, because jobs of a sweep may run side by side."""

    class NumberedFormatter(PrintableFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(f"[{number}] {line}" for line in super().format(record).splitlines())

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(NumberedFormatter())
