"""A live progress line on a terminal and in a notebook; elsewhere what the run is and how long it will take."""

import contextlib
import logging
import math
import multiprocessing
import os
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar

from callbacks import batch_loss, format_epoch, get_datamodule, get_net, num_examples, num_parameters
from runs.format import is_percentage, pluralize, printable
from runs.monitor import metric_name
from runs.protocols import Exact

log = logging.getLogger(__name__)

FEW_STEPS = 50  # gradient steps after which a net has hardly begun to learn
MAX_METRICS = 3  # in the live line
REFRESH_SECONDS = 0.2  # faster is unreadable, and a write takes longer than a step of a small net


class ProgressBar(LightningProgressBar):
    """Shows ``epoch 2/5 ━━━━━━──── 54 %  loss 0.0712  acc 97.91 %  312 batches/s  0:12 left`` for the whole training.

    Before training it logs which net is trained on which data. Where the output is neither a terminal nor a notebook,
    it logs once how long the training will take.
    """

    measures = ()

    def __init__(self) -> None:
        super().__init__()
        self.enable()
        unicode = (sys.stderr.encoding or "").lower().startswith("utf")
        self._done_char, self._rest_char = "━─" if unicode else "#."
        self._next_refresh = 0.0

    _cell: Any = None  # what shows the line below a cell of a notebook

    def enable(self) -> None:
        self._cell = _notebook_output()
        # Jobs of a sweep that run side by side would overwrite each other's line.
        self._live = (sys.stderr.isatty() or self._cell) and multiprocessing.current_process().name == "MainProcess"

    def disable(self) -> None:
        self._live = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()
        self._first_batch: int | None = None  # of this process: not zero in a resumed run
        self._next_refresh = 0.0 if self._live else self._start + 5
        self._is_first_batch = trainer.global_step == 0
        log.info(describe_run(trainer, pl_module))
        steps_per_epoch = math.ceil(_batches_before(trainer, 1) / trainer.accumulate_grad_batches)
        steps = steps_per_epoch * (trainer.max_epochs or 0) * getattr(pl_module, "steps_per_batch", 1)
        limit = trainer.limit_train_batches
        is_whole_run = isinstance(limit, float) and limit == 1  # the integer 1 is one batch
        one_step = len(trainer.optimizers) == 1  # for each batch
        if 0 < steps < FEW_STEPS and one_step and is_whole_run and (get_datamodule(trainer).batch_size or 1) > 1:
            hint = "a smaller data.batch_size or a larger trainer.max_epochs makes more"
            log.info("that is %s in all: %s", pluralize(steps, "gradient step"), hint)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_first_batch:
            self._is_first_batch = False
            if (loss := batch_loss(outputs)) is not None:
                _check_first_loss(trainer, pl_module, float(loss) * trainer.accumulate_grad_batches)
        done = _batches_before(trainer, trainer.current_epoch) + batch_idx
        if self._first_batch is None:
            self._first_batch = done
        if (now := time.monotonic()) < self._next_refresh:
            return
        self._next_refresh = now + REFRESH_SECONDS if self._live else math.inf
        done += 1
        total = max(_total_batches(trainer, pl_module), done)
        speed = (done - self._first_batch) / (now - self._start)
        seconds = round((total - done) / speed)
        if self._live:
            filled = round(20 * done / total)
            self._write(
                f"{format_epoch(trainer, trainer.current_epoch + 1)} "
                f"{self._done_char * filled}{self._rest_char * (20 - filled)} {100 * done // total} %  "
                f"{_running_metrics(trainer, pl_module, outputs)}{_format_speed(speed)}  {_format_time(seconds)} left"
            )
        elif done < total and seconds:  # fewer in all with max_epochs=-1
            log.info("%s: %s for the rest", _format_speed(speed), _format_time(seconds))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write("")  # so that the epoch's line in the log starts at the left edge

    def on_train_epoch_end(self, *_: Any, **__: Any) -> None:
        self._write("")

    on_train_end = on_exception = on_train_epoch_end

    def _write(self, text: str) -> None:
        if self._live and self._cell:
            self._cell.update({"text/plain": text}, raw=True)
        elif self._live:
            with contextlib.suppress(OSError):  # the terminal was closed
                # A longer line would go on in the next row, which \r does not leave.
                sys.stderr.write(f"\r{printable(text)[: _columns() - 1]}\x1b[K")
                sys.stderr.flush()


def _notebook_output() -> Any:
    """Return the place of the live line among the outputs of a notebook's cell, or None outside of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)


def _columns() -> int:
    """Return the width of the terminal of stderr, which may change while the run goes on."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return columns or 80  # 0 is that of a terminal that does not say it


def _format_speed(speed: float) -> str:
    """Format a number of batches per second, at least half a one, or the seconds that one takes."""
    return f"{pluralize(round(speed), 'batch', 'batches')}/s" if speed >= 0.95 else f"{1 / speed:.1f} s/batch"


def _format_time(seconds: int) -> str:
    """Format ``3:05`` and, from an hour on, ``22:46:34``."""
    minutes, seconds = divmod(seconds, 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours}:{rest:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _batches_before(trainer: pl.Trainer, epoch: int) -> int:
    """Return the number of training batches in the epochs before ``epoch``."""
    return epoch * int(trainer.num_training_batches)


def _total_batches(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
    """Return the number of training batches up to ``max_epochs`` or ``max_steps``, or those of the epochs begun."""
    epochs = trainer.max_epochs or 0
    total = _batches_before(trainer, epochs if epochs > 0 else trainer.current_epoch + 1)
    if trainer.max_steps < 0:
        return total
    steps = len(trainer.optimizers) * getattr(pl_module, "steps_per_batch", 1) / trainer.accumulate_grad_batches
    batches = math.ceil(trainer.max_steps / (steps or 1))
    return min(total, batches) if epochs > 0 else batches


def _running_metrics(trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any) -> str:
    """Return the means of the running epoch where the module keeps them, else what it logs with ``prog_bar=True``.

    A module that does neither has the loss of the last batch.
    """
    if isinstance(pl_module, Exact):
        found = {name.partition("/")[2]: value.item() for name, value in pl_module.means("train").items()}
    else:
        shown = trainer.progress_bar_metrics.items()
        found = {
            metric_name("train", name).partition("/")[2]: value
            for name, value in shown
            if isinstance(value, float) and not name.startswith("val")
        }
        if not found and (loss := batch_loss(outputs)) is not None:
            found = {"loss": float(loss) * trainer.accumulate_grad_batches}
    first = sorted(found.items(), key=lambda item: {"loss": 0, "acc": 1}.get(item[0], 2))[:MAX_METRICS]
    return "".join(f"{name} {_format(name, value)}  " for name, value in first)


def _format(name: str, value: float) -> str:
    """Format a metric of the live line, whose width should not change much."""
    return f"{100 * value:.2f} %" if is_percentage(f"train/{name}") else f"{value:.4g}"


def describe_run(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    """Return which net is trained on which data and device, in one line."""
    data = get_datamodule(trainer)
    net = type(get_net(pl_module)).__name__
    parts = [f"{net}, {num_parameters(pl_module):,} parameters"]
    batches, total = int(trainer.num_training_batches), len(data.train_indices)
    trained = num_examples(trainer, batches)  # fewer with trainer.limit_train_batches
    examples = pluralize(total, "example") if trained == total else f"{trained:,} of {total:,} examples"
    parts.append(f"{type(data).__name__}, {examples} in {pluralize(batches, 'batch', 'batches')}")
    validation = {"val": f"{len(data.val_indices):,} held out", "test": "the test set", "train": "the training set"}
    if batches := int(sum(trainer.num_val_batches)):
        is_whole = isinstance(trainer.limit_val_batches, float) and trainer.limit_val_batches == 1
        part = "" if is_whole else f"{pluralize(batches, 'batch', 'batches')} of "
        parts.append(f"validated on {part}{validation[data.validate_on]}")
    processes = f"{trainer.world_size} processes on " if trainer.world_size > 1 else ""
    return "; ".join([*parts, f"{processes}{trainer.strategy.root_device}"])


def _check_first_loss(trainer: pl.Trainer, pl_module: pl.LightningModule, loss: float) -> None:
    """Warn when the first loss of a classifier is far above ln(classes), the loss of a random guess.

    That points to a mistake in the inputs, the net or the loss.
    """
    if not isinstance(getattr(pl_module, "loss", None), torch.nn.CrossEntropyLoss):
        return
    if getattr(pl_module, "steps_per_batch", 1) > 1:  # the loss is that after several steps
        return
    classes = max(get_datamodule(trainer).num_classes, 2)
    if loss > 2 * (guess := math.log(classes)):
        message = "the first loss is %.2f; to guess among %d classes gives ln(%d) = %.2f: are the inputs normalized?"
        log.warning(message, loss, classes, classes, guess)
