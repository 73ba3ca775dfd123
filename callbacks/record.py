"""The record of a run: a row in ``metrics.csv`` and a line in the log for every epoch, and the curve between them."""

import csv
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from callbacks.checkpoints import replacing

log = logging.getLogger(__name__)


class Record(Checkpoint):
    """Writes ``metrics.csv`` (epoch, step, metrics, seconds) after every epoch and tells the loggers, whose steps are gradient
    steps. Between epochs they get ``train/loss_step`` every ``trainer.log_every_n_steps``, the mean since the last time.

    The rows are in the checkpoint as well, so that a resumed run goes on with them. It is a Checkpoint to Lightning,
    because those are called after the module has logged its epoch; it stands before the one that saves.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, float]] = []
        self._validation: dict[str, float] = {}
        self._loss, self._batches = 0.0, 0  # of the curve since its last point
        self._elapsed = 0.0  # seconds of this epoch before it was interrupted

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss += outputs["loss"]
        self._batches += 1
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:
            point = {"train/loss_step": self._loss / self._batches, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
            _tell(trainer, point)
            self._loss, self._batches = 0.0, 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = metrics_of(trainer, "val/")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = self._elapsed + time.monotonic() - self._start
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= metrics_of(trainer, "train/") | self._validation | {"seconds": round(seconds, 3)}
        self.rows.append(row)
        self._validation, self._loss, self._batches = {}, 0.0, 0
        _tell(trainer, {name: value for name, value in row.items() if "/" in name})
        if trainer.is_global_zero:
            self._write()
            log.info("epoch %d/%s  %s  %.1f s", row["epoch"], trainer.max_epochs, readable(row), seconds)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _tell(trainer, metrics_of(trainer, "test/"))

    def _write(self) -> None:
        # A column that no row has yet may come later: seconds stays the last one.
        columns = [name for row in self.rows for name in row if name != "seconds"]
        with replacing(self.path) as temporary, open(temporary, "w", newline="") as out:
            writer = csv.DictWriter(out, [*dict.fromkeys(columns), "seconds"])
            writer.writeheader()
            writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        elapsed = time.monotonic() - self._start + self._elapsed
        return {"rows": self.rows, "loss": float(self._loss), "batches": self._batches, "elapsed": elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self._loss, self._batches = state["rows"], state["loss"], state["batches"]


def _tell(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, trainer.global_step)


def metrics_of(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    """The metrics whose names begin with ``prefix``, with the seven digits that a float32 has."""
    metrics = trainer.callback_metrics.items()
    return {name: float(f"{value.item():.7g}") for name, value in metrics if name.startswith(prefix)}


def readable(metrics: dict[str, float]) -> str:
    """``train loss 0.0712 acc 97.91 %  val loss …`` of a row of metrics."""
    stages: dict[str, list[str]] = {}
    for name, value in metrics.items():
        stage, _, metric = name.partition("/")
        if metric:
            shown = f"{100 * value:.2f} %" if metric == "acc" else f"{value:.4g}"
            stages.setdefault(stage, []).append(f"{metric} {shown}")
    return "  ".join(f"{stage} {' '.join(values)}" for stage, values in stages.items())
