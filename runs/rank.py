"""The rank of this process, from the environment variables of torchrun, SLURM, LSF and Lightning.

A stale variable would make the only process of a run wait for a rank zero that does not exist to write and print. So
each variable is checked against the size of its group.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from runs.files import check_path

# Variable with a rank, in the whole group or on its machine -> variable with the number of ranks.
SIZES = {
    "RANK": "WORLD_SIZE",
    "SLURM_PROCID": "SLURM_NTASKS",
    "JSM_NAMESPACE_RANK": "JSM_NAMESPACE_SIZE",
    "NODE_RANK": "WORLD_SIZE",
    "LOCAL_RANK": "WORLD_SIZE",
}
WARN_AFTER = 60.0  # seconds of waiting for the other ranks


def global_rank() -> int:
    """Return the global rank of this process, or where that is unknown that of its machine or its rank on it.

    A variable that holds no number counts as zero here; :func:`check_rank_variables` reports it.
    """
    return next(filter(None, (_number(name) or 0 for name in SIZES)), 0)


def is_rank_zero() -> bool:
    """Return whether this process has rank zero. Only rank zero writes and prints."""
    return global_rank() == 0


def check_rank_variables(alone: bool) -> None:
    """Check what the environment says about ranks, before anything depends on it.

    Args:
        alone: whether this command only ever has one process.

    Raises:
        ValueError: a variable holds no number, or a rank that its group does not have.
    """
    for name, least in {**dict.fromkeys(SIZES, 0), **dict.fromkeys(SIZES.values(), 1)}.items():
        text = os.environ.get(name, "").strip()
        if text and (not (text.isascii() and text.isdigit()) or int(text) < least):
            raise ValueError(f"{name}={text[:80]} in the environment must be a whole number of at least {least}")
    for name, size_name in SIZES.items():
        rank, size = _number(name) or 0, _number(size_name)
        if rank and alone:
            raise ValueError(f"{name}={rank} in the environment: this command runs as one process of rank 0; unset it")
        # Several machines without a launcher: NODE_RANK alone, checked when the Trainer knows how many there are.
        if rank and size is None and name != "NODE_RANK":
            raise ValueError(f"{name}={rank} in the environment, and no {size_name}: there is no such group; unset it")
        if rank and size is not None and rank >= size:
            raise ValueError(f"{name}={rank} in the environment must be less than {size_name}={size}; unset both")


def check_group(rank: int, size: int, local_rank: int = 0, devices: int = 1) -> None:
    """Check the Trainer's rank and number of processes against the environment.

    Args:
        rank: of this process.
        size: number of processes.
        local_rank: of this process among those of this machine.
        devices: number of processes, or GPUs, on each machine.

    Raises:
        ValueError: the environment names another rank than the Trainer, so that no process or several would write, or
            the other ranks, which have directories in the temporary one, would end while rank zero waits, or nobody
            would start them, because LOCAL_RANK tells Lightning that somebody has.
    """
    started = _number("WORLD_SIZE")
    if size > 1:
        check_path(Path(tempfile.gettempdir()))
        if "LOCAL_RANK" in os.environ and started != size:
            others = "no WORLD_SIZE" if started is None else f"WORLD_SIZE={started}"
            raise ValueError(
                f"LOCAL_RANK={os.environ['LOCAL_RANK']} and {others} in the environment, and this run has {size}"
                " processes; unset LOCAL_RANK, or start them all"
            )
    if local_rank >= devices:
        raise ValueError(
            f"this process is number {local_rank} of its machine (LOCAL_RANK), and trainer.devices={devices} there;"
            " unset LOCAL_RANK, or type another trainer.devices"
        )
    if (rank == 0) == is_rank_zero():
        return
    names = " ".join(f"{name}={os.environ[name]}" for name in SIZES if _number(name))
    processes = "one process" if size == 1 else f"{size} processes, of which this one is number {rank}"
    raise ValueError(
        f"{names or 'no rank'} in the environment, and this run has {processes}; unset it, or see trainer=ddp"
    )


@contextlib.contextmanager
def warn_when_waiting(size: int) -> Iterator[None]:
    """Print a line when the other ranks of a run have not connected within a minute, and the run has not ended.

    torch itself waits silently for half an hour.
    """
    import torch.distributed

    def warn() -> None:
        if not torch.distributed.is_initialized():
            place = f"{os.environ.get('MASTER_ADDR', 'an address')}:{os.environ.get('MASTER_PORT', 'a port')}"
            print(f"rank {global_rank()} waits for the other {size - 1} at {place}", file=sys.stderr, flush=True)

    timer = threading.Timer(WARN_AFTER, warn)
    timer.daemon = True
    if size > 1:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() else None
