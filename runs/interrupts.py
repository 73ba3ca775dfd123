"""The signals that end a run, and Ctrl-C while a command starts: before the training has signal handlers of its own."""

import signal
from types import FrameType

# Windows has no SIGUSR1, which SLURM sends ahead of a time limit where asked for.
ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# submitit requeues a job on the second of these, or on the one that SUBMITIT_PREEMPT_SIGNAL names.
REQUEUE_SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

_interrupted = False


def remember_interrupts() -> None:
    """Raise KeyboardInterrupt on SIGINT, as Python does, and remember that it was raised.

    Python drops what a handler raises in some places, such as a finalizer, and libraries that are being imported may
    catch it. Where SIGINT is ignored, as in the background of a shell, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def was_interrupted() -> bool:
    """Return whether this process has received a SIGINT that :func:`remember_interrupts` raised."""
    return _interrupted


def _handle(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt
