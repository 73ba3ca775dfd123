"""One live line on a terminal; nothing where the output goes to a file."""

import multiprocessing
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

REFRESH = 0.2  # seconds: at a human rate, since a write costs more than a step of a small net


class ProgressLine(ProgressBar):
    """``epoch 2/5 ━━━━━━──── 54 %  loss 0.0712  acc 97.91 %  312 batches/s  0:12 left``, of the whole training."""

    def __init__(self) -> None:
        super().__init__()
        self.enable()
        unicode = (sys.stderr.encoding or "").lower().startswith("utf")
        self._bar = "━─" if unicode else "#."
        self._next = 0.0

    def enable(self) -> None:
        # Jobs of a sweep that run side by side would write over each other.
        self._live = sys.stderr.isatty() and multiprocessing.current_process().name == "MainProcess"

    def disable(self) -> None:
        self._live = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()
        self._first = self._batch(trainer, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._live or (now := time.monotonic()) < self._next:
            return
        self._next = now + REFRESH
        done, total = self._batch(trainer, batch_idx + 1), trainer.num_training_batches * (trainer.max_epochs or 1)
        speed = (done - self._first) / (now - self._start)
        minutes, seconds = divmod(round((total - done) / speed), 60)
        filled = round(20 * done / total)
        means = {name.partition("/")[2]: value.item() for name, value in pl_module.means("train").items()}
        acc = f"  acc {100 * means['acc']:.2f} %" if "acc" in means else ""
        self._write(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} "
            f"{self._bar[0] * filled}{self._bar[1] * (20 - filled)} {100 * done // total} %  "
            f"loss {means['loss']:.4g}{acc}  {speed:,.0f} batches/s  {minutes}:{seconds:02d} left"
        )

    @staticmethod
    def _batch(trainer: pl.Trainer, batch: int) -> int:
        return trainer.current_epoch * int(trainer.num_training_batches) + batch

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write("")  # so that the epoch's line in the log starts at the left edge

    on_train_epoch_end = on_train_end = on_exception = lambda self, *args: self._write("")

    def _write(self, text: str) -> None:
        if self._live:
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()
