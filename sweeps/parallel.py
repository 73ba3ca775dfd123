"""Jobs that joblib runs in other processes: they end, each with a checkpoint, when the command is told to end."""

import contextlib
import functools
import importlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf.errors import OmegaConfBaseException

from runs.interrupts import ENDING_SIGNALS, early_signal, handle_sigterm_only, is_repeated, remember_signal

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# What a job of joblib returns that was told to end, or did not begin because its process was.
STOPPED: dict[str, Any] = {"status": "stopped", "metrics": {}}

# Where joblib's launcher has the function that runs a job in one of its processes. It has no public name, and is not in
# runs/internals.py, because that imports Lightning, which the command of a sweep does not need.
LAUNCHER = "hydra_plugins.hydra_joblib_launcher._core"

_command: int | None = None  # its process id, in a process of joblib
_ended = threading.Event()  # set while a process of joblib runs no job


class SweepInterrupted(Exception):
    """A signal has ended the jobs of a sweep, and the sweep can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def launch(launcher: Launcher, jobs: list[list[str]], start: int) -> Sequence[JobReturn]:
    """Run jobs of a sweep, and return their results.

    Args:
        launcher: that of the sweep.
        jobs: the overrides of each.
        start: the number of the first one.

    Raises:
        SweepInterrupted: the jobs of joblib have ended because of a signal, to this process or to one of theirs.
        BaseException: what a job of joblib has raised. The others have ended.
    """
    settings = getattr(launcher, "joblib", None)
    if settings is None or _runs_jobs_itself(settings["n_jobs"]):
        return launcher.launch(jobs, initial_job_idx=start)
    # Also for processes that get no job: joblib kills the others when one of them dies.
    settings |= {"initializer": _begin_process, "initargs": (os.getpid(), _pipe()[0])}
    warnings.filterwarnings("ignore", "A worker stopped while some jobs")  # joblib replaces those that use more memory
    with _handle_signals(), _keep_errors():
        returns = launcher.launch(jobs, initial_job_idx=start)
    for result in (job.return_value for job in returns):
        if isinstance(result, BaseException):
            raise result
        if result == STOPPED:
            raise SweepInterrupted(signal.SIGTERM)
    return returns


@contextlib.contextmanager
def _keep_errors() -> Iterator[None]:
    """Let a job that ends with an exception return it. joblib would kill the jobs that run beside it."""
    launcher: Any = importlib.import_module(LAUNCHER)
    run_job, launcher.execute_job = launcher.execute_job, _execute_job
    try:
        yield
    finally:
        launcher.execute_job = run_job


def _execute_job(*arguments: Any) -> JobReturn:
    """Run a job in a process of joblib, and return what it raises, for :func:`launch`."""
    failed, launcher = JobReturn(status=JobStatus.COMPLETED), importlib.import_module(LAUNCHER)
    try:
        result: JobReturn = launcher.execute_job(*arguments)
        return result
    except BaseException as error:
        cause = error
        while isinstance(cause, HydraException | OmegaConfBaseException) and (
            inner := cause.__cause__ or cause.__context__
        ):
            cause = inner  # the cause of an exception is not pickled
        # An exception of another class may not be unpickled there, which ends joblib.
        is_builtin = type(cause).__module__ == "builtins"
        failed.return_value = cause if is_builtin else RuntimeError(str(cause) or type(cause).__name__)
        return failed


@functools.cache
def _pipe() -> tuple["Connection", "Connection"]:
    """Return both ends of a pipe that tells the processes of joblib by its end that they shall end.

    It ends when this process closes it, or dies. A process that joblib starts later knows it too.
    """
    import multiprocessing  # late: its exit handlers run only if they are registered after that of cli.main

    return multiprocessing.Pipe(duplex=False)


@contextlib.contextmanager
def _handle_signals() -> Iterator[None]:
    """Let the processes of joblib end, and wait until their jobs have ended, at the first signal that ends a run.

    joblib itself kills them, or leaves them behind. A second signal ends the sweep at once. The signal may have been
    sent to this process alone, as by ``docker stop``, or to the whole process group.

    Raises:
        SweepInterrupted: the jobs have ended because of a signal.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if is_repeated(number) and received:
            return
        received.append(number)
        _pipe()[1].close()
        if len(received) > 1:
            raise SweepInterrupted(number)

    # One that is ignored, as SIGINT in the background of a shell, stays so.
    handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, stop)
    try:
        with _blocked(handlers):
            yield
    except Exception as error:
        if received and not isinstance(error, SweepInterrupted):
            raise SweepInterrupted(received[0]) from error
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        raise SweepInterrupted(received[0])


@contextlib.contextmanager
def _blocked(numbers: Iterable[int]) -> Iterator[None]:
    """Block signals for the processes that joblib starts, and call the handlers of this one all the same.

    A new process, which cannot handle a signal for its first second, inherits that they are blocked. joblib starts some
    in the midst of a sweep: in place of one whose memory has grown.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where a process group has no such signals
        yield
        return
    done = threading.Event()

    def receive() -> None:  # Python calls the handlers in the main thread, whichever thread a signal reaches
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        done.wait()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    (thread := threading.Thread(target=receive, daemon=True)).start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _runs_jobs_itself(n_jobs: int) -> bool:
    """Return whether joblib runs jobs in the process of the command."""
    from joblib import effective_n_jobs

    return n_jobs != 0 and effective_n_jobs(n_jobs) == 1  # joblib refuses 0 later


def _begin_process(command: int, reader: "Connection") -> None:
    """Let a process of joblib take its signals from the command only, and not outlive it.

    Args:
        command: its process id. It may be dead by now.
        reader: the end of its pipe.
    """
    import multiprocessing

    global _command
    _command = command
    _ended.set()
    multiprocessing.set_start_method(None, force=True)  # joblib has set one of its own, which a DataLoader cannot use
    handle_sigterm_only(_stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
    threading.Thread(target=_watch_command, args=(reader,), daemon=True).start()


@contextlib.contextmanager
def job_of_joblib() -> Iterator[None]:
    """Note that this process, if it is one of joblib, runs a job."""
    _ended.clear()
    try:
        yield
    finally:
        _ended.set()


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM outside of a training: where a job waits for the process that trains in its directory."""
    if not is_repeated(number):
        remember_signal(number)
        if not _ended.is_set():
            raise KeyboardInterrupt


def _watch_command(reader: "Connection") -> None:
    """End the job when the command says so or is killed, and then the process, which joblib would leave waiting."""
    with contextlib.suppress(EOFError, OSError):
        reader.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    while os.getppid() == _command:
        time.sleep(1)
    _ended.wait()
    os._exit(128 + signal.SIGTERM)


def is_job_process() -> bool:
    """Return whether this is a process of joblib."""
    return _command is not None


def is_stopped() -> bool:
    """Return whether this process, which runs jobs of joblib, was told to end. No other job may begin."""
    return is_job_process() and early_signal() is not None
