"""Let Lightning write checkpoints atomically, and read them without running any code."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO

from runs.checkpoint import read_checkpoint
from runs.files import atomic_write
from runs.training_state import forget_files_elsewhere

# What Lightning calls the checkpoint of a job of SLURM that it requeues. This project saves last.ckpt instead.
SLURM_CHECKPOINTS = "hpc_ckpt_*.ckpt"
# The parts of torch that write a checkpoint, as their errors name them.
WRITERS = ("inline_container", "PytorchStreamWriter", "iostream")


def check_slurm_checkpoints(trainer: pl.Trainer) -> None:
    """Raise ValueError where Lightning would load a checkpoint that no command names.

    In a job of SLURM a Trainer that is given none takes one from its directory, which may have come from anyone.
    """
    found = sorted(Path(trainer.default_root_dir).glob(SLURM_CHECKPOINTS)) if SLURMEnvironment.detect() else []
    if found:
        raise ValueError(f"{found[0]} is refused: Lightning would load it in a job of SLURM; move it elsewhere")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves checkpoints atomically, and loads nothing that could run code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        try:
            with atomic_write(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            # A full disk is a RuntimeError where torch's zip writer or its stream notices it, else an OSError of fsync.
            if isinstance(error, OSError) or any(name in str(error) for name in WRITERS):
                raise OSError(f"{path} could not be written ({error}): is the disk full?") from error
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(path, map_location)
        forget_files_elsewhere(checkpoint, Path(path))
        return checkpoint
