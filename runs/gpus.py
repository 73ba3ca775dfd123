"""The GPUs of a job that runs beside others on this machine: each process takes some that no other one holds.

SLURM and Ray give each job its GPUs themselves.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

_held: list[Any] = []  # locks of this process; a GPU in use cannot be changed for another one
POLL = 0.5  # seconds between two looks at the GPUs, where all are taken


def visible_gpus(count: int) -> list[str]:
    """Return the names of the GPUs that may be taken, of a machine with ``count`` of them.

    ``CUDA_VISIBLE_DEVICES`` may name a GPU twice: two jobs then share it.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]


def take_gpus(number: int, gpus: list[str]) -> list[str]:
    """Take GPUs until this process ends, and make them the only ones that CUDA shows to it.

    Waits while other processes hold them. A process that has taken GPUs keeps them for its next job.

    Args:
        number: how many the job needs.
        gpus: those that may be taken, see :func:`visible_gpus`.

    Raises:
        ValueError: the job needs more than there are, or than this process has taken before.
    """
    from filelock import FileLock, Timeout

    if _held:
        taken = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        if number > len(taken):
            raise ValueError(f"trainer.devices={number}: the process of this job has taken {len(taken)} before")
        return taken
    if number > len(gpus):
        raise ValueError(f"trainer.devices={number}: this machine shows {len(gpus)} ({','.join(gpus) or 'none'})")
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows has a temporary directory for each user
    folder = Path(tempfile.gettempdir(), f"lit-classics-gpus-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != user:
        raise ValueError(f"{folder} is not a directory of this user")
    with FileLock(folder / ".all.lock"):  # one process chooses at a time: two would wait for each other's GPUs
        while True:
            taken = []
            for place, gpu in enumerate(gpus):
                lock = FileLock(folder / f"{gpu.replace('/', '_')}-{gpus[:place].count(gpu)}.lock")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                _held.append(lock)
                taken.append(gpu)
                if len(taken) == number:
                    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
                    return taken
            while _held:
                _held.pop().release()
            time.sleep(POLL)
