"""Jobs that joblib runs in other processes: they end, each with a checkpoint, when the command is told to end."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from runs.interrupts import ENDING_SIGNALS, early_signal, handle_sigterm_only, is_repeated, remember_signal

# The environment variable with the process id of the command: joblib's process may start when that is dead.
COMMAND_PID = "LIT_CLASSICS_COMMAND_PID"

_parent: int | None = None  # the process id of the command, in a process of joblib
_ended = threading.Event()  # set between two jobs


class SweepInterrupted(Exception):
    """A signal has ended the jobs of a sweep, and the sweep can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def pass_signals_on(config: DictConfig) -> Iterator[None]:
    """Pass the first signal that ends a run on to the processes of joblib, as SIGTERM, and wait until their jobs ended.

    joblib itself kills them, or leaves them behind. A second signal ends the sweep at once. The signal may have been
    sent to this process alone, as by ``docker stop``, or to the whole process group.

    Args:
        config: that of the sweep.

    Raises:
        SweepInterrupted: the jobs have ended because of a signal.
    """
    os.environ[COMMAND_PID] = str(os.getpid())
    is_joblib = config.hydra.runtime.choices.get("hydra/launcher") == "joblib"
    if not is_joblib or _runs_jobs_itself(config.hydra.launcher.n_jobs):
        yield
        return
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


@contextlib.contextmanager
def job_of_joblib() -> Iterator[None]:
    """Let a process of joblib take its signals from the command only, and not outlive it.

    When the command is killed, the running job ends with a checkpoint. For another launcher, and where joblib runs a
    job in the process of the command, this does nothing.
    """
    global _parent
    config = HydraConfig.get()
    is_joblib = config.mode == RunMode.MULTIRUN and config.runtime.choices.get("hydra/launcher") == "joblib"
    if not is_joblib or (command := int(os.environ[COMMAND_PID])) == os.getpid():
        yield
        return
    if _parent is None:
        _parent = command
        handle_sigterm_only(_stop)
        threading.Thread(target=_watch_command, daemon=True).start()
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
    return os.getppid() != _parent


def is_job_process() -> bool:
    """Return whether this is a process of joblib."""
    return _parent is not None


def is_stopped() -> bool:
    """Return whether this process, which runs jobs of joblib, was told to end. No other job may begin."""
    return is_job_process() and (early_signal() is not None or _is_orphaned())
