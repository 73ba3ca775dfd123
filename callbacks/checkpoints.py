"""Checkpoints that are always whole, and hold nothing that could run code."""

import functools
import logging
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.files import replacing
from callbacks.record import data_of
from lit_models import internals
from lit_models.exact import completed_epochs, stopped_in_epoch

log = logging.getLogger(__name__)

# What "best" means: the first of these that the run measures.
MONITORS = (("val/acc", max), ("val/loss", min), ("train/loss", min))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves whole checkpoints or none, and loads nothing that could run code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        try:
            with replacing(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            # A full disk is a RuntimeError of the zip writer where torch notices it and an OSError where fsync does.
            if isinstance(error, OSError) or "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
                raise OSError(f"{path} could not be written ({error}): is the disk full?") from error
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        if "://" in str(path):
            raise ValueError(f"{path} is not a file on this machine")
        return torch.load(path, map_location=map_location, weights_only=True)


@functools.cache
def commit() -> str | None:
    """The commit of this project, with ``-dirty`` when files differ from it; None outside a checkout."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def between_steps(trainer: pl.Trainer) -> bool:
    """Whether a checkpoint can be written in the middle of an epoch: all gradients are used up, and more batches come.
    After the last one the epoch's own checkpoint follows."""
    return not trainer.is_last_batch and (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt``, written after every epoch, and ``best.ckpt``, the best epoch by validation accuracy (without
    one by validation loss, without that by training loss).

    Args:
        folder: where they go.
        config: what the run was made from, plain values; every checkpoint holds it.
        every_n_steps: writes ``last.ckpt`` in the middle of an epoch too.
    """

    def __init__(self, folder: Path, config: dict[str, Any], every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and (not isinstance(every_n_steps, int) or every_n_steps < 1):
            raise ValueError(f"checkpoint.every_n_steps={every_n_steps} must be a whole number of at least 1")
        self.folder, self.config, self.every_n_steps = folder, config, every_n_steps
        self.last = folder / "last.ckpt"
        self.git = commit() or "of no commit"
        self.best: float | None = None
        self._stop = False  # training was told to stop, and stops after the running step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        internals.go_on_with_next_epoch(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # With a validation nothing else says which epoch is best, not even in epochs that are not validated.
        validated = trainer.limit_val_batches and len(data_of(trainer).val_dataloader())
        self._monitors = MONITORS[:2] if validated else MONITORS[2:]
        for folder in (self.folder, self.folder.parent):
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._stop_after_step(trainer)
        if every := self.every_n_steps:
            before, self._step = self._step, trainer.global_step  # a batch may be several steps
            if before // every < self._step // every and between_steps(trainer):
                trainer.save_checkpoint(self.last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._stop_after_step(trainer)

    def _stop_after_step(self, trainer: pl.Trainer) -> None:
        """Put off a stop between the batches of one step: their gradients are in no checkpoint."""
        if not (trainer.should_stop or self._stop):
            return
        self._stop = not trainer.is_last_batch and not between_steps(trainer)
        trainer.should_stop = not self._stop

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if stopped_in_epoch(trainer):
            trainer.save_checkpoint(self.last)
            step, epoch = trainer.global_step, completed_epochs(trainer) + 1
            log.info("stopped after step %d, in epoch %d; resume= with a higher limit goes on from there", step, epoch)
            return
        name, better = next(
            (monitor for monitor in self._monitors if monitor[0] in trainer.callback_metrics), (None, max)
        )
        score = None if name is None else trainer.callback_metrics[name].item()
        best = self.best
        if score is None or (best is not None and (math.isnan(score) or better(score, best) == best)):
            trainer.save_checkpoint(self.last)
            return
        # The best one first: a kill between the two then costs nothing but the time to do this epoch again.
        self.best = score
        trainer.save_checkpoint(self.folder / "best.ckpt")
        if trainer.is_global_zero:
            with replacing(self.last) as temporary:
                try:
                    os.link(self.folder / "best.ckpt", temporary)  # the next checkpoint is another file
                except OSError:  # a file system without links
                    shutil.copyfile(self.folder / "best.ckpt", temporary)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config
        if stopped_in_epoch(trainer):
            internals.reopen_epoch(checkpoint)
        checkpoint["made_by"] = f"lit-classics {self.git}, torch {torch.__version__}, lightning {pl.__version__}"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
