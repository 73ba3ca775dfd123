"""Which process of a run this is."""

import os


def global_rank() -> int:
    """Return the rank of this process: in the run where that is known, else of its machine or on its machine.

    torchrun, SLURM and Lightning tell it in environment variables.
    """
    ranks = (int(os.environ.get(name) or 0) for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
    return next(filter(None, ranks), 0)


def is_rank_zero() -> bool:
    """Return whether this process writes and prints; the other processes of a run only compute."""
    return global_rank() == 0
