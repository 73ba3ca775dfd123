"""The record of a run: a row in ``metrics.csv`` and a line in the log for every epoch, and the curve between them."""

import csv
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from callbacks import get_datamodule, logged_metrics
from runs import internals
from runs.files import atomic_write
from runs.format import format_metrics, round_float32

log = logging.getLogger(__name__)


class MetricsHistory(Checkpoint):
    """Writes ``metrics.csv`` (epoch, step, metrics, seconds) after every epoch and tells the loggers the same.

    Epoch 0 is a validation before any training. Between epochs the loggers get ``train/loss_step`` every
    ``trainer.log_every_n_steps`` steps, the mean since the last time. The rows are in the checkpoint as well, so that a
    resumed run goes on with them. This is a Checkpoint to Lightning, because those are called after the module has
    logged its epoch; it stands before the one that saves.

    Args:
        folder: of the run.
        every_n_batches: prints ``train/loss_step`` and gives it a row, counted anew in every epoch, as tutorials do.
    """

    def __init__(self, folder: Path, every_n_batches: int | None = None) -> None:
        if every_n_batches is not None and (not isinstance(every_n_batches, int) or every_n_batches < 1):
            raise ValueError(f"record.every_n_batches={every_n_batches} must be a whole number of at least 1")
        self.path, self.every_n_batches = folder / "metrics.csv", every_n_batches
        self.rows: list[dict[str, float]] = []
        self.curve: list[tuple[int, float]] = []  # training examples seen, mean loss since the point before
        self._validation: dict[str, float] = {}
        self._loss: float | torch.Tensor = 0.0  # of the curve since its last point
        self._batches = 0
        self._before = 0.0  # seconds of this epoch before it was interrupted
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss += outputs["loss"]
        self._batches += 1
        every = self.every_n_batches or trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 is never
        if every and (batch_idx + 1) % every == 0:
            # Lightning has divided each by the batches of a step.
            loss = _reduce_mean(trainer, self._loss / self._batches) * trainer.accumulate_grad_batches
            self._loss, self._batches = 0.0, 0
            _log_metrics(trainer, {"train/loss_step": loss, "lr": trainer.optimizers[0].param_groups[0]["lr"]})
            total, seen = len(get_datamodule(trainer).train_indices), _examples(trainer, batch_idx + 1)
            self.curve.append((trainer.current_epoch * total + seen, loss))
            if self.every_n_batches:
                epoch = trainer.current_epoch + 1
                self.rows.append({"epoch": epoch, "step": trainer.global_step, "train/loss_step": round_float32(loss)})
                log.info("[%d, %5d] loss %.3f  (%d of %d examples)", epoch, batch_idx + 1, loss, seen, total)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = logged_metrics(trainer, "val/")
        if trainer.state.fn == "validate":
            self._close_row(trainer, {"epoch": 0, "step": 0})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if internals.stopped_in_epoch(trainer):  # its row comes when a resumed run has finished it
            if trainer.is_global_zero:
                self._write()
            return
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= logged_metrics(trainer, "train/")
        self._close_row(trainer, row)
        self._loss, self._batches = 0.0, 0
        examples = _examples(trainer, int(trainer.num_training_batches))
        _log_metrics(trainer, {"speed/examples per second": examples / max(row["seconds"], 1e-3)})

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _log_metrics(trainer, logged_metrics(trainer, "test/"))

    def _close_row(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        row |= self._validation
        row["seconds"] = round(self._before + time.monotonic() - self._start, 3)
        self.rows.append(row)
        self._validation, self._before, self._start = {}, 0.0, time.monotonic()
        _log_metrics(trainer, {name: value for name, value in row.items() if "/" in name})
        if trainer.is_global_zero:
            self._write()
            log.info("epoch %d/%s  %s  %.1f s", row["epoch"], trainer.max_epochs, format_metrics(row), row["seconds"])

    def _write(self) -> None:
        columns = [name for row in self.rows for name in row if name != "seconds"]
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="") as out:
            writer = csv.DictWriter(out, [*dict.fromkeys(columns), "seconds"])
            writer.writeheader()
            writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        elapsed = self._before + time.monotonic() - self._start
        return {
            "rows": self.rows,
            "curve": self.curve,
            "loss": float(self._loss),
            "batches": self._batches,
            "elapsed": elapsed,
            "validation": self._validation,
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The state is the first process's, and all of them will go on with it.
        checkpoint["callbacks"][self.state_key]["loss"] = _reduce_mean(trainer, self._loss)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self._loss, self._batches = state["rows"], state["loss"], state["batches"]
        self.curve = state["curve"]
        self._before = state["elapsed"]
        self._validation = state.get("validation", {})  # of this epoch, in its middle


def _reduce_mean(trainer: pl.Trainer, number: float | torch.Tensor) -> float:
    """The mean of what the processes have."""
    return float(trainer.strategy.reduce(torch.as_tensor(number).clone(), reduce_op="mean"))


def _examples(trainer: pl.Trainer, batches: int) -> int:
    """Training examples in the first batches of an epoch, those of all processes."""
    data = get_datamodule(trainer)
    total = len(data.train_indices)
    return min(batches * (data.batch_size or total) * trainer.world_size, total)


def _log_metrics(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, trainer.global_step)
