"""Jobs that joblib runs in other processes: they end, each with a checkpoint, when the command is told to end."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from runs.interrupts import ENDING_SIGNALS, early_signal, handle_sigterm_only, is_repeated, remember_signal

# What a job of joblib returns that was told to end, or did not begin because its process was.
STOPPED: dict[str, Any] = {"status": "stopped", "metrics": {}}

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
    """
    settings = getattr(launcher, "joblib", None)
    if settings is None or _runs_jobs_itself(settings["n_jobs"]):
        return launcher.launch(jobs, initial_job_idx=start)
    # Also for the processes that get no job: joblib kills the others when one of them dies.
    settings |= {"initializer": _begin_process, "initargs": (os.getpid(),)}
    with _pass_signals_on():
        returns = launcher.launch(jobs, initial_job_idx=start)
    if any(job.return_value == STOPPED for job in returns):
        raise SweepInterrupted(signal.SIGTERM)
    return returns


@contextlib.contextmanager
def _pass_signals_on() -> Iterator[None]:
    """Pass the first signal that ends a run on to the processes of joblib, as SIGTERM, and wait until their jobs ended.

    joblib itself kills them, or leaves them behind. A second signal ends the sweep at once. The signal may have been
    sent to this process alone, as by ``docker stop``, or to the whole process group.

    Raises:
        SweepInterrupted: the jobs have ended because of a signal.
    """
    received: list[int] = []
    done = threading.Event()

    def end_jobs() -> None:
        told: set[int] = set()
        while True:  # joblib may just be starting a process
            for pid in {process.pid or 0 for process in multiprocessing.active_children()} - {0} - told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if done.wait(0.1):
                return

    def stop(number: int, frame: FrameType | None) -> None:
        if is_repeated(number) and received:
            return
        received.append(number)
        if len(received) > 1:
            raise SweepInterrupted(number)
        threading.Thread(target=end_jobs, daemon=True).start()

    # One that is ignored, as SIGINT in the background of a shell, stays so.
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number in [number for number, handler in before.items() if handler is not signal.SIG_IGN]:
        signal.signal(number, stop)
    try:
        yield
    except Exception as error:
        if received and not isinstance(error, SweepInterrupted):  # a process had no job yet, and just ended
            raise SweepInterrupted(received[0]) from error
        raise
    finally:
        done.set()
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise SweepInterrupted(received[0])


def _runs_jobs_itself(n_jobs: int) -> bool:
    """Return whether joblib runs jobs in the process of the command."""
    from joblib import effective_n_jobs

    return n_jobs != 0 and effective_n_jobs(n_jobs) == 1  # joblib refuses 0 later


def _begin_process(command: int) -> None:
    """Let a process of joblib take its signals from the command only, and not outlive it.

    When the command is killed, the running job ends with a checkpoint.

    Args:
        command: its process id. It may be dead by now.
    """
    global _command
    _command = command
    _ended.set()
    sys.modules["__main__"].__spec__ = None  # Lightning would start the other ranks of a job with joblib's module
    handle_sigterm_only(_stop)
    threading.Thread(target=_watch_command, daemon=True).start()


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


def _watch_command() -> None:
    """End this process when the command has ended. joblib would let it wait for another job, for minutes."""
    while not _is_orphaned():
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    _ended.wait()
    os._exit(128 + signal.SIGTERM)


def _is_orphaned() -> bool:
    return os.getppid() != _command


def is_job_process() -> bool:
    """Return whether this is a process of joblib."""
    return _command is not None


def is_stopped() -> bool:
    """Return whether this process, which runs jobs of joblib, was told to end. No other job may begin."""
    return is_job_process() and (early_signal() is not None or _is_orphaned())
