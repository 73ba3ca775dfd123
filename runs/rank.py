"""Which process of a run this is.

torchrun, SLURM, LSF and Lightning tell it in environment variables. A variable that was left over from something else
would make a process believe that another one writes and prints, so each is checked against what is known.
"""

import os
import sys
import threading

# The rank of a process in a group, or on its machine, and the variable that holds how many there are.
SIZES = {
    "RANK": "WORLD_SIZE",
    "SLURM_PROCID": "SLURM_NTASKS",
    "JSM_NAMESPACE_RANK": "JSM_NAMESPACE_SIZE",
    "NODE_RANK": "WORLD_SIZE",
    "LOCAL_RANK": "WORLD_SIZE",
}
PATIENCE = 60.0  # seconds until a process says that it waits for the others


def global_rank() -> int:
    """Return the rank of this process: in the run where that is known, else of its machine or on its machine.

    Zero where a variable holds no number; check_rank_variables says so.
    """
    return next(filter(None, (_number(name) or 0 for name in SIZES)), 0)


def is_rank_zero() -> bool:
    """Return whether this process writes and prints; the other processes of a run only compute."""
    return global_rank() == 0


def check_rank_variables(alone: bool) -> None:
    """Check what the environment says about ranks, before anything depends on it.

    Args:
        alone: this command never has several processes.

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
            raise ValueError(f"{name}={rank} in the environment: this command is one process, of rank 0; unset it")
        # Several machines without a launcher: NODE_RANK alone, checked when the Trainer knows how many there are.
        if rank and size is None and name != "NODE_RANK":
            raise ValueError(f"{name}={rank} in the environment, and no {size_name}: no such group is there; unset it")
        if rank and size is not None and rank >= size:
            raise ValueError(f"{name}={rank} in the environment must be less than {size_name}={size}; unset both")


def check_group(rank: int, size: int) -> None:
    """Check the Trainer's rank and number of processes against the environment.

    Raises:
        ValueError: this process would believe that another one writes and prints, and there is none; or the reverse.
    """
    if (rank == 0) == is_rank_zero():
        return
    names = " ".join(f"{name}={os.environ[name]}" for name in SIZES if _number(name))
    processes = "one process" if size == 1 else f"{size} processes, of which this one is number {rank}"
    raise ValueError(
        f"{names or 'no rank'} in the environment, and this run has {processes}; unset it, or see trainer=ddp"
    )


def warn_when_waiting(size: int) -> None:
    """Print a line where the other processes of a run have not answered within a minute.

    torch itself waits for half an hour without a word.
    """
    import torch.distributed

    def say() -> None:
        if not torch.distributed.is_initialized():
            place = f"{os.environ.get('MASTER_ADDR', 'an address')}:{os.environ.get('MASTER_PORT', 'a port')}"
            print(f"rank {global_rank()} waits for the other {size - 1} at {place}", file=sys.stderr, flush=True)

    if size > 1:
        timer = threading.Timer(PATIENCE, say)
        timer.daemon = True
        timer.start()


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() else None
