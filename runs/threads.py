"""CPU threads that compute together: let each run on cores of its own.

OpenMP's threads wait for each other many times in a step, in a busy loop. Beside another program Linux may put two of
them on one core, where one waits until the other's time slice ends.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_pool: list[int] = []  # OpenMP's threads, without the main thread, in the order of their start
_all_cpus: set[int] = set()  # where this process may run


def start_thread_pool() -> None:
    """Start the threads that torch computes with, as many as ``torch.get_num_threads()``.

    What they are is known only now: they are the threads that the first computation starts.
    """
    import torch

    if sys.platform == "linux":
        before = _threads()
        torch.zeros(torch.get_num_threads() << 15).add_(1)  # torch gives each thread at least 2^15 elements
        _pool.extend(sorted(_threads() - before))


@contextlib.contextmanager
def spread_threads(enabled: bool = True) -> Iterator[None]:
    """Divide the cores of this process among the main thread and the others."""
    import torch

    threads = [0, *_pool[: torch.get_num_threads() - 1]]  # 0: the main thread
    cpus = sorted(os.sched_getaffinity(0)) if len(threads) > 1 else []
    if not enabled or len(threads) > len(cpus):
        yield
        return
    _all_cpus.update(cpus)
    try:
        for number, thread in enumerate(threads):
            os.sched_setaffinity(thread, cpus[number :: len(threads)])
        yield
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, cpus)


def leave_thread_pool() -> None:
    """Let a process that was started from within :func:`spread_threads` run on all cores again."""
    if _all_cpus:
        os.sched_setaffinity(0, _all_cpus)


def _threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}
