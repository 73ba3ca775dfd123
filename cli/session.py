"""Run a command from Python: in a script or a notebook whose session goes on afterwards.

The checks, the directories and the printed lines are those of the command line. What a command sets for its process is
given back.
"""

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cli import CONF, PROJECT, run_dir
from cli.compose import register_resolvers
from cli.errors import format_error
from cli.exit_codes import exit_code
from cli.job import resumed_choices
from cli.main import check_and_run, check_hydra_settings, check_surroundings, rewrite_arguments, set_import_path
from cli.output import LogFile, PrintableFormatter
from cli.process import LIGHTNING_LOGGERS, LIGHTNING_TABLES, leave_process_group
from cli.resumed_run import RunEnded, resolve_auto, stored_choices
from cli.validation import forget_defaults
from runs.format import printable
from runs.overrides import override_key

SWEEP = "a sweep is for the command line, python train.py -m; here a loop makes one"

DATED = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # as in conf/hydra/job_logging/run.yaml

_running = threading.Lock()


class CommandError(Exception):
    """A command that was called from Python has failed. Its text is the line that the command line prints.

    Attributes:
        exit_code: with which the command line would end.
    """

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def call(
    task: Callable[[DictConfig, Path], object], overrides: Sequence[str], config_name: str = "config"
) -> tuple[Path, Any]:
    """Run ``task(cfg, run_dir)`` as ``main`` does for the command line.

    Args:
        task: takes the config and the run directory.
        overrides: as they are typed on the command line, without the quotes of a shell.
        config_name: the primary config in ``conf/``.

    Returns:
        The run directory, and what the task returns: None where ``resume=auto`` names a run that has ended.

    Raises:
        CommandError: what would end the command line with an exit code other than 0.
        KeyboardInterrupt: the run was interrupted. Its checkpoint is saved, and the text says how to resume it.
    """
    for override in overrides:
        if not isinstance(override, str):
            raise CommandError(f"{override!r} is not an override: those are texts, such as 'optimizer.lr=0.1'")
        if override.startswith("-"):
            raise CommandError(f"{override} is an option of the command line; from Python a command takes NAME=VALUE")
    if not _running.acquire(blocking=False):
        raise CommandError("another command runs in this process: wait for it, or start a process of its own")
    try:
        with _kept_session(overrides):
            return _call(task, overrides, config_name)
    finally:
        _running.release()


def _call(task: Callable[[DictConfig, Path], object], overrides: Sequence[str], config_name: str) -> tuple[Path, Any]:
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" or "debug=traceback" in overrides
    found: list[Any] = []

    def run_job(cfg: DictConfig) -> None:
        output_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            with _logging_to(output_dir / f"{HydraConfig.get().job.name}.log"):
                found[:] = output_dir, check_and_run(task, cfg, output_dir, is_training=config_name == "config")
        except Exception as error:  # Hydra would print the overrides too
            found[:] = [error]

    try:
        command = "train" if config_name == "config" else config_name
        check_surroundings(alone=True)
        arguments = rewrite_arguments(overrides, command)
        check_hydra_settings(arguments, command)
        if is_sweep := [text for text in arguments if override_key(text) == "hydra.mode"]:
            raise ValueError(f"{is_sweep[0]}: {SWEEP}")
        resumed_choices.clear()
        if command == "train":
            arguments = resolve_auto(arguments)
            resumed_choices[:], arguments = stored_choices(arguments)
        sys.argv[1:] = arguments  # Lightning starts the other ranks of a run with it
        set_import_path()
        register_resolvers()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            typed = [*resumed_choices, *arguments]
            running: Any = GlobalHydra.instance().hydra
            try:
                running.run(config_name, run_job, typed, with_log_configuration=False)
            except AssertionError as error:  # by Hydra, for an experiment that is a sweep
                raise ValueError(f"{' '.join(overrides)}: {SWEEP}") from error
        if isinstance(found[0], Exception):
            raise found[0]
        directory, returned = found
    except RunEnded as ended:
        if ended.code:
            raise CommandError("the run has ended before, with the result above", int(str(ended.code))) from None
        return ended.run_dir, None
    except (Exception, SystemExit) as error:
        _raise(error, show_traceback)
    return directory, returned


def _raise(error: BaseException, show_traceback: bool) -> NoReturn:
    """Raise an error of a command as the caller gets it."""
    cause, code = error if show_traceback else None, exit_code(error)
    if isinstance(error, SystemExit):  # of Lightning, for a KeyboardInterrupt of a callback
        raise KeyboardInterrupt("interrupted") from cause
    line = printable(format_error(error))
    if command := getattr(error, "resume_command", None):
        line += f"; train({', '.join(map(repr, shlex.split(command)[2:]))}) resumes it"
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt(line) from cause
    if code == 128 + signal.SIGTERM:  # sent to the whole process, which has its own handler again
        print(line, file=sys.stderr, flush=True)
        raise SystemExit(code) from cause
    raise CommandError(line, code) from cause


@contextlib.contextmanager
def _kept_session(overrides: Sequence[str]) -> Iterator[None]:
    """Give back what a command sets for its process, however it ends.

    That is the state of Hydra, random numbers and threads, the loggers, the environment, and the handlers of signals.
    """
    # Before their state is kept: they have handlers of their own as soon as they are imported.
    import lightning.pytorch  # noqa: F401
    import torch

    from runs.random_state import get_random_state, set_random_state

    cpu, is_main = torch.device("cpu"), threading.current_thread() is threading.main_thread()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    arguments, environment, config = sys.argv, dict(os.environ), HydraConfig.instance().cfg
    running, threads, random_state = GlobalHydra.instance().hydra, torch.get_num_threads(), get_random_state(cpu)
    is_strict, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    with contextlib.ExitStack() as kept:
        for name in (*LIGHTNING_LOGGERS, *LIGHTNING_TABLES):
            kept.enter_context(_kept_logger(logging.getLogger(name)))
        GlobalHydra.instance().clear()
        sys.argv = [str(PROJECT / "train.py"), *overrides]
        try:
            yield
        finally:
            leave_process_group()
            run_dir.remove_empty_dirs()
            run_dir.forget_dirs()
            forget_defaults()  # conf/ may change before the next command
            resumed_choices.clear()
            sys.argv = arguments
            GlobalHydra.instance().hydra, HydraConfig.instance().cfg = running, config
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(is_strict, warn_only=only_warns)
            torch.backends.cudnn.benchmark = benchmark
            set_random_state(random_state, cpu)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Print the lines of the log and write them to a file, and Python's warnings to the file alone."""
    root, of_warnings = logging.getLogger(), logging.getLogger("py.warnings")
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(PrintableFormatter())
    log_file = LogFile(file, encoding="utf-8", errors="backslashreplace")
    log_file.setFormatter(PrintableFormatter(DATED))
    show_warning = warnings.showwarning

    def log_warning(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        of_warnings.warning("%s", warnings.formatwarning(message, category, filename, lineno))

    with _kept_logger(root), _kept_logger(of_warnings), contextlib.closing(log_file):
        root.handlers = [console, log_file]
        of_warnings.handlers, of_warnings.propagate = [log_file], False
        warnings.showwarning = log_warning  # type: ignore[assignment]
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            warnings.showwarning = show_warning


@contextlib.contextmanager
def _kept_logger(logger: logging.Logger) -> Iterator[None]:
    handlers, level, propagates = list(logger.handlers), logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
