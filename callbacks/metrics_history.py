"""The metrics of a run: a row in ``metrics.csv`` and a line in the log for every epoch, and the step curve."""

import csv
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from callbacks import batch_loss, get_datamodule, logged_metrics, num_examples
from runs import internals
from runs.files import atomic_write
from runs.format import check_positive_int, format_metrics, round_float32

log = logging.getLogger(__name__)


class MetricsHistory(Checkpoint):
    """Writes ``metrics.csv`` (epoch, step, metrics, seconds) after every epoch and logs the metrics to the loggers.

    Epoch 0 is a validation before any training. Within an epoch the loggers get ``train/loss_step`` every
    ``trainer.log_every_n_steps`` batches: the mean loss since the previous point. Checkpoints hold the rows, so a
    resumed run appends to them.

    Subclasses Checkpoint so that it runs after the module has logged its epoch. It must precede :class:`Checkpoints` in
    the list of callbacks.

    Args:
        run_dir: directory of the run.
        every_n_batches: prints ``train/loss_step`` and adds a row for it every n batches of an epoch.
    """

    def __init__(self, run_dir: Path, every_n_batches: int | None = None) -> None:
        if every_n_batches is not None:
            check_positive_int("record.every_n_batches", every_n_batches)
        self.path, self.every_n_batches = run_dir / "metrics.csv", every_n_batches
        self.rows: list[dict[str, float]] = []
        self.curve: list[tuple[int, float]] = []  # training examples seen, mean loss since the previous point
        self._val_metrics: dict[str, float] = {}
        self._loss_sum: float | torch.Tensor = 0.0  # since the previous point of the curve
        self._batches = 0
        self._seconds_before = 0.0  # spent on this epoch before it was interrupted
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (loss := batch_loss(outputs)) is None:
            return
        self._loss_sum += loss
        self._batches += 1
        every = self.every_n_batches or trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 is never
        if every and (batch_idx + 1) % every == 0:
            self._add_curve_point(trainer, batch_idx)

    def _add_curve_point(self, trainer: pl.Trainer, batch_idx: int) -> None:
        # Lightning has divided each loss by the number of batches whose gradients are accumulated.
        loss = _reduce_mean(trainer, self._loss_sum / self._batches) * trainer.accumulate_grad_batches
        self._loss_sum, self._batches = 0.0, 0
        _log_metrics(trainer, {"train/loss_step": loss, "lr": trainer.optimizers[0].param_groups[0]["lr"]})
        total, seen = len(get_datamodule(trainer).train_indices), num_examples(trainer, batch_idx + 1)
        self.curve.append((trainer.current_epoch * total + seen, loss))
        if self.every_n_batches:
            epoch = trainer.current_epoch + 1
            self.rows.append({"epoch": epoch, "step": trainer.global_step, "train/loss_step": round_float32(loss)})
            log.info("[%d, %5d] loss %.3f  (%d of %d examples)", epoch, batch_idx + 1, loss, seen, total)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._val_metrics = logged_metrics(trainer, "val/")
        if trainer.state.fn == "validate":
            self._close_row(trainer, {"epoch": 0, "step": 0})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if internals.stopped_in_epoch(trainer):  # the epoch gets its row when a resumed run has finished it
            if trainer.is_global_zero:
                self._write()
            return
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= logged_metrics(trainer, "train/")
        self._close_row(trainer, row)
        self._loss_sum, self._batches = 0.0, 0
        examples = num_examples(trainer, int(trainer.num_training_batches))
        _log_metrics(trainer, {"speed/examples per second": examples / max(row["seconds"], 1e-3)})

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _log_metrics(trainer, logged_metrics(trainer, "test/"))

    def _close_row(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        row |= self._val_metrics
        row["seconds"] = round(self._elapsed(), 3)
        self.rows.append(row)
        self._val_metrics, self._seconds_before, self._start = {}, 0.0, time.monotonic()
        _log_metrics(trainer, {name: value for name, value in row.items() if "/" in name})
        if trainer.is_global_zero:
            self._write()
            log.info("epoch %d/%s  %s  %.1f s", row["epoch"], trainer.max_epochs, format_metrics(row), row["seconds"])

    def _elapsed(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def _write(self) -> None:
        columns = [name for row in self.rows for name in row if name != "seconds"]
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, [*dict.fromkeys(columns), "seconds"])
            writer.writeheader()
            writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "curve": self.curve,
            "loss": float(self._loss_sum),
            "batches": self._batches,
            "elapsed": self._elapsed(),
            "validation": self._val_metrics,
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The state is that of rank zero, and all ranks resume from it.
        checkpoint["callbacks"][self.state_key]["loss"] = _reduce_mean(trainer, self._loss_sum)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.curve = state["rows"], state["curve"]
        self._loss_sum, self._batches = state["loss"], state["batches"]
        self._seconds_before = state["elapsed"]
        self._val_metrics = state.get("validation", {})  # of the unfinished epoch


def _reduce_mean(trainer: pl.Trainer, number: float | torch.Tensor) -> float:
    """Return the mean over the ranks."""
    return float(trainer.strategy.reduce(torch.as_tensor(number).clone(), reduce_op="mean"))


def _log_metrics(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, trainer.global_step)
