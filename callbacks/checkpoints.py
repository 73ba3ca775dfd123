"""Save the last and the best checkpoint of a run."""

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from callbacks import at_optimizer_step, get_datamodule
from runs import internals
from runs.files import RUN_FILES, atomic_write, remove_leftovers
from runs.format import check_positive_int
from runs.monitor import MONITORS
from runs.result import git_revision

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` after every epoch, and ``best.ckpt`` after the best one.

    The best epoch has the highest validation accuracy. Without one it has the lowest validation loss, and without a
    validation the lowest training loss.

    Args:
        dirpath: directory of the checkpoints.
        config: config of the run, as plain values. Every checkpoint holds it.
        every_n_steps: also saves ``last.ckpt`` within an epoch, every n gradient steps.
    """

    def __init__(self, dirpath: Path, config: dict[str, Any], every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            check_positive_int("checkpoint.every_n_steps", every_n_steps)
        self.dirpath, self.config, self.every_n_steps = dirpath, config, every_n_steps
        self.last, self.best = dirpath / "last.ckpt", dirpath / "best.ckpt"
        self.git_revision = git_revision() or "of unknown revision"
        self.best_score: float | None = None
        self._stop_pending = False  # training was told to stop, and stops after the running optimizer step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        internals.start_next_epoch(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Where a validation decides, an epoch without one is never the best.
        validated = trainer.limit_val_batches and len(get_datamodule(trainer).val_dataloader())
        self._monitors = [name for name in MONITORS if name.startswith("val/" if validated else "train/")]
        remove_leftovers(self.dirpath, self.last.name, self.best.name)
        remove_leftovers(self.dirpath.parent, *RUN_FILES)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_after_step(trainer)
        if every := self.every_n_steps:
            before, self._last_step = self._last_step, trainer.global_step  # a batch may take several steps
            if before // every < self._last_step // every and at_optimizer_step(trainer, batch_idx):
                trainer.save_checkpoint(self.last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._stop_after_step(trainer)

    def _stop_after_step(self, trainer: pl.Trainer) -> None:
        """Postpone a stop between the batches of one optimizer step. No checkpoint holds their gradients."""
        if not (trainer.should_stop or self._stop_pending):
            return
        self._stop_pending = not trainer.is_last_batch and not at_optimizer_step(trainer, trainer.fit_loop.batch_idx)
        trainer.should_stop = not self._stop_pending

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if internals.stopped_in_epoch(trainer):
            trainer.save_checkpoint(self.last)
            step, epoch = trainer.global_step, internals.completed_epochs(trainer) + 1
            log.info(
                "stopped after step %d, in epoch %d; resume= with a higher limit continues from there", step, epoch
            )
            return
        name = next((name for name in self._monitors if name in trainer.callback_metrics), None)
        better = max if name and MONITORS[name] == "max" else min
        score = None if name is None else trainer.callback_metrics[name].item()
        best = self.best_score
        if score is None or (best is not None and (math.isnan(score) or better(score, best) == best)):
            trainer.save_checkpoint(self.last)
            return
        # best.ckpt is first: after a kill between the two, a resumed run repeats this epoch and loses nothing.
        self.best_score = score
        trainer.save_checkpoint(self.best)
        if trainer.is_global_zero:
            with atomic_write(self.last) as temporary:
                try:
                    os.link(self.best, temporary)  # the next checkpoint is a new file
                except OSError:  # a file system without links
                    shutil.copyfile(self.best, temporary)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config
        if internals.stopped_in_epoch(trainer):
            internals.reopen_epoch(checkpoint)
        versions = f"torch {torch.__version__}, lightning {pl.__version__}"
        checkpoint["made_by"] = f"lit-classics {self.git_revision}, {versions}"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best_score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_score = state["best"]
