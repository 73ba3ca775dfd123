"""The signals that end a run, and Ctrl-C while a command starts: before the training has signal handlers of its own."""

import signal
import time
from types import FrameType

# Windows has no SIGUSR1, which SLURM sends ahead of a time limit where asked for.
ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# submitit requeues a job on the second of these, or on the one that SUBMITIT_PREEMPT_SIGNAL names.
REQUEUE_SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

# What a process says that ends because another one of its run has.
PEER_DIED = "another process of this run has ended; its own error line says why"

_interrupted = False
_last_sigterm = float("-inf")  # time.monotonic()


def handle_early_signals() -> None:
    """Raise KeyboardInterrupt on SIGINT, as Python does, and remember that it was raised. End on the first SIGTERM.

    Python drops what a handler raises in some places, such as a finalizer, and libraries that are being imported may
    catch it. Where a signal is ignored, as SIGINT in the background of a shell, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle_sigint)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _handle_sigterm)


def is_repeated(number: int) -> bool:
    """Return whether a signal is a SIGTERM within a second of another one. Called once for each signal.

    A job of SLURM receives two at once: one is sent to its processes, and srun passes on its own. The second must not
    end a run that is saving.
    """
    global _last_sigterm
    if number != signal.SIGTERM:
        return False
    before, _last_sigterm = _last_sigterm, time.monotonic()
    return _last_sigterm - before < 1


def was_interrupted() -> bool:
    """Return whether this process has received a SIGINT that :func:`handle_early_signals` raised."""
    return _interrupted


def _handle_sigint(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _handle_sigterm(number: int, frame: FrameType | None) -> None:
    if not is_repeated(number):
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
