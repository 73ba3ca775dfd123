"""CPU threads that compute together: let each run on cores of its own, and wait well beside other programs.

OpenMP's threads wait for each other many times in a step, in a busy loop. Beside another program Linux may put two of
them on one core, where one waits until the other's time slice ends.
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_pool: list[int] = []  # OpenMP's threads, without the main thread, in the order of their start
_all_cpus: set[int] = set()  # where this process may run

# The number of the system call, which the C library has only since glibc 2.41.
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
KEEP_POLICY = 0x08
SLICE = 100_000  # ns, the shortest that Linux grants
# For batches this small oneDNN's convolutions take longer to prepare than they save. With torch's own, in torch's
# default memory format, a step of LeNet takes a quarter less time. With 8 examples oneDNN is faster.
TINY_BATCH = 4
BUSY = 0.35  # of all cores, from which on threads sleep while they wait


def _core_seconds() -> tuple[float, float] | None:
    """Return the seconds of all cores since the start of the machine: those of other processes, and all.

    None where the system does not tell.
    """
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(number) for number in file.readline().split()[1:9]]
    except OSError:
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]  # with what waits for a disk
    return (sum(ticks) - idle) / per_second - sum(os.times()[:4]), sum(ticks) / per_second


_at_start = _core_seconds()
_busy_cores = 0.0  # by other programs, from then until torch is loaded


def choose_wait_policy() -> None:
    """Let OpenMP's threads sleep while they wait, if other programs keep the cores busy. Call it before torch.

    A thread that waits in a busy loop for one that another program holds up takes away the time of both. On a quiet
    machine the loop is faster, because a sleeping thread takes a while to wake. A policy of the user's is kept. What
    is computed does not depend on it.
    """
    global _busy_cores
    if _at_start is None or (now := _core_seconds()) is None:
        return
    others, total = (seconds - before for seconds, before in zip(now, _at_start, strict=True))
    _busy_cores = (os.cpu_count() or 1) * others / max(total, 0.01)
    if others > BUSY * total and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"


def fewer_threads() -> str | None:
    """Return a line that names the threads for which other programs leave cores, if they leave too few.

    Each step waits for the slowest thread, so one that shares its core holds up all. Only the user may change their
    number, because the last digits of what is computed depend on it.
    """
    import torch

    cores, busy = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0, round(_busy_cores)
    threads = max(1, cores - busy)
    if not busy or torch.get_num_threads() <= threads or "OMP_NUM_THREADS" in os.environ:
        return None
    return f"other programs keep {_busy_cores:.1f} of {cores} cores busy: threads={threads} may be faster"


def start_thread_pool() -> None:
    """Start the threads that torch computes with, as many as ``torch.get_num_threads()``.

    What they are is known only now: they are the threads that the first computation starts.
    """
    import torch

    if sys.platform == "linux":
        before = _threads()
        torch.zeros(torch.get_num_threads() << 15).add_(1)  # torch gives each thread at least 2^15 elements
        started = sorted(_threads() - before)
        _pool[:] = [thread for thread in _pool if thread in before] + started  # OpenMP ends those that it has too many
        for thread in (0, *started):
            _shorten_slice(thread)


def _shorten_slice(thread: int) -> None:
    """Ask Linux to let a thread and other programs take turns every 0.1 ms in place of every 3 ms.

    A thread that was waiting is then woken at once where another program runs, and does not get more time in all.
    Linux before 6.12 changes nothing (Documentation/scheduler/sched-eevdf.rst).
    """
    if (number := SCHED_SETATTR.get(platform.machine())) is None:
        return
    try:
        nice = os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:  # it has ended
        return
    attributes = struct.pack("IIQiIQQQ", 48, 0, KEEP_POLICY, nice, 0, SLICE, 0, 0)  # struct sched_attr
    ctypes.CDLL(None).syscall(number, thread, attributes, 0)  # a refusal changes nothing


@contextlib.contextmanager
def spread_threads(enabled: bool = True, may_share: bool = False) -> Iterator[None]:
    """Divide the cores of this process among the main thread and the others.

    Args:
        enabled: False leaves them to the system.
        may_share: whether threads that sleep while they wait share the cores that other programs leave. That is faster
            than to wait for one that another program holds up.
    """
    import torch

    running = _threads() if _pool else set()
    pool = [thread for thread in _pool if thread in running]
    threads = [0, *pool[: torch.get_num_threads() - 1]]  # 0: the main thread
    cpus = sorted(os.sched_getaffinity(0)) if len(threads) > 1 else []
    if not enabled or len(threads) > len(cpus):
        yield
        return
    _all_cpus.update(cpus)
    used = cpus
    if may_share and os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        here = cpus.index(ctypes.CDLL(None).sched_getcpu())  # others run elsewhere
        used = [*cpus[here:], *cpus[:here]][: max(1, len(cpus) - round(_busy_cores))]
    try:
        for number, thread in enumerate(threads):
            _run_on(used[number :: len(threads)] or used, thread)
        yield
    finally:
        for thread in threads:
            _run_on(cpus, thread)


def _run_on(cpus: list[int], thread: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # OpenMP may end it at any time
        os.sched_setaffinity(thread, cpus)


def leave_thread_pool() -> None:
    """Let a process that was started from within :func:`spread_threads` run on all cores again."""
    if _all_cpus:
        os.sched_setaffinity(0, _all_cpus)


def _threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}
