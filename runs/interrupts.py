"""The signals that end a run, and Ctrl-C while a command starts: before the training has signal handlers of its own."""

import signal
import time
from collections.abc import Callable
from types import FrameType

# Windows has no SIGUSR1, which SLURM sends ahead of a time limit where asked for.
ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# submitit requeues a job on the second of these, or on the one that SUBMITIT_PREEMPT_SIGNAL names.
REQUEUE_SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

# What a process says that ends because another one of its run has.
PEER_DIED = "another process of this run has ended; its own error line says why"

_handled = ENDING_SIGNALS
_early_signal: int | None = None
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


def handle_sigterm_only(handler: Callable[[int, FrameType | None], None]) -> None:
    """Ignore the signals of the process group, for a process to which its command passes them on as SIGTERM."""
    global _handled
    _handled = [signal.SIGTERM]
    for number in ENDING_SIGNALS:
        signal.signal(number, handler if number in _handled else signal.SIG_IGN)


def handled_signals() -> list[signal.Signals]:
    """Return the signals that end a training in this process."""
    return _handled


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


def early_signal() -> int | None:
    """Return the signal that told this process to end outside of a training, or None.

    Python may have dropped what its handler raised.
    """
    return _early_signal


def remember_signal(number: int) -> None:
    """Let a training that has not begun end when it begins."""
    global _early_signal
    _early_signal = number


def _handle_sigint(number: int, frame: FrameType | None) -> None:
    remember_signal(number)
    raise KeyboardInterrupt


def _handle_sigterm(number: int, frame: FrameType | None) -> None:
    if not is_repeated(number):
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
