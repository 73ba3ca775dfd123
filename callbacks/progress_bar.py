"""What is trained, how far it is, and how long it will take: a live line on a terminal, two lines in a file."""

import logging
import math
import multiprocessing
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar

from callbacks import get_datamodule
from runs.format import pluralize

log = logging.getLogger(__name__)

FEW = 50  # gradient steps, with which a net has hardly begun to learn
REFRESH = 0.2  # seconds: at a human rate, since a write costs more than a step of a small net


class ProgressBar(LightningProgressBar):
    """``epoch 2/5 ━━━━━━──── 54 %  loss 0.0712  acc 97.91 %  312 batches/s  0:12 left``, of the whole training.

    Before it says what is trained on what. Where the output goes to a file it says once how long that will take.
    """

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
        self._first: int | None = None  # batch: of a resumed run not that of the epoch
        self._next = 0.0 if self._live else self._start + 5
        self._at_the_beginning = trainer.global_step == 0
        log.info(describe_run(trainer, pl_module))
        steps = self._batch(trainer, 0, trainer.max_epochs or 0)
        all_of_them = isinstance(trainer.limit_train_batches, float)  # and not one batch, for debug=fast
        if 0 < steps < FEW and all_of_them and (get_datamodule(trainer).batch_size or 1) > 1:
            words = "a smaller data.batch_size or a larger trainer.max_epochs makes more"
            log.info("that is %s in all: %s", pluralize(int(steps), "gradient step"), words)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._at_the_beginning:
            self._at_the_beginning = False
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # by which Lightning has divided it
            _question_the_first_loss(pl_module, get_datamodule(trainer).num_classes, loss)
        if self._first is None:
            self._first = self._batch(trainer, batch_idx)
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + REFRESH if self._live else math.inf
        done = self._batch(trainer, batch_idx + 1)
        total = self._batch(trainer, 0, max(trainer.max_epochs or 1, 1))
        speed = (done - self._first) / (now - self._start)
        minutes, seconds = divmod(round((total - done) / speed), 60)
        if not self._live and done >= total:  # a training without an end
            return
        if not self._live:
            log.info("%s batches/s: %d:%02d for the rest", f"{speed:,.0f}", minutes, seconds)
            return
        filled = round(20 * done / total)
        means = {name.partition("/")[2]: value.item() for name, value in pl_module.means("train").items()}
        acc = f"  acc {100 * means['acc']:.2f} %" if "acc" in means else ""
        self._write(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} "
            f"{self._bar[0] * filled}{self._bar[1] * (20 - filled)} {100 * done // total} %  "
            f"loss {means['loss']:.4g}{acc}  {speed:,.0f} batches/s  {minutes}:{seconds:02d} left"
        )

    @staticmethod
    def _batch(trainer: pl.Trainer, batch: int, epoch: int | None = None) -> int:
        """The number of a batch of this epoch, or of another, in the whole training."""
        epoch = trainer.current_epoch if epoch is None else epoch
        return epoch * int(trainer.num_training_batches) + batch

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write("")  # so that the epoch's line in the log starts at the left edge

    def on_train_epoch_end(self, *_: Any, **__: Any) -> None:
        self._write("")

    on_train_end = on_exception = on_train_epoch_end

    def _write(self, text: str) -> None:
        if self._live:
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()


def describe_run(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    """What is trained on what, in a line."""
    data = get_datamodule(trainer)
    parts = [f"{type(pl_module.net).__name__}, {sum(p.numel() for p in pl_module.parameters()):,} parameters"]
    batches = pluralize(int(trainer.num_training_batches), "batch", "batches")
    parts.append(f"{type(data).__name__}, {len(data.train_indices):,} examples in {batches}")
    validation = {"val": f"{len(data.val_indices):,} others", "test": "the test set", "train": "the same"}
    if any(trainer.num_val_batches):
        parts.append(f"validated on {validation[data.validate_on]}")
    several = f"{trainer.world_size} processes on " if trainer.world_size > 1 else ""
    return "; ".join([*parts, f"{several}{trainer.strategy.root_device}"])


def _question_the_first_loss(pl_module: pl.LightningModule, classes: int, loss: float) -> None:
    """Logits that know nothing give ln(classes); far more is a mistake in the inputs, the net or the loss."""
    guess = math.log(max(classes, 2))
    if isinstance(pl_module.loss, torch.nn.CrossEntropyLoss) and pl_module.steps_per_batch == 1 and loss > 2 * guess:
        log.warning(
            "the first loss is %.2f; to guess among %d classes gives ln(%d) = %.2f: are the inputs normalised?",
            loss,
            classes,
            classes,
            guess,
        )
