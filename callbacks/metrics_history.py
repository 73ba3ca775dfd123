"""The metrics of a run: a row in ``metrics.csv`` and a line in the log for every epoch, and the step curve."""

import csv
import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks import batch_losses, format_epoch, is_validated, logged_metrics, num_examples, possible_of
from runs import internals
from runs.files import atomic_write
from runs.format import check_positive_int, format_metrics, printable, round_float32
from runs.monitor import Monitor, Monitors, metric_name
from runs.protocols import Exact

log = logging.getLogger(__name__)

RETURNED = "returned loss"  # among the sums; no module logs under this name


class MetricsHistory(Checkpoint):
    """Writes ``metrics.csv`` (epoch, step, metrics, seconds) after every epoch and logs the metrics to the loggers.

    A metric is called ``STAGE/METRIC``: what a module logs as ``val_loss``, or as ``loss`` in its validation, is
    ``val/loss``. A metric that a module logs in each step and not over the epoch, and the loss that a training step
    returns and does not log, are means over the batches of the epoch.

    A step is one of an optimizer: with two optimizers there are two in a batch. Epoch 0 is a validation before any
    training. Within an epoch the loggers get ``train/loss_step`` every ``every_n_batches`` batches, or else every
    ``trainer.log_every_n_steps``: the mean loss since the previous point. Where a training step returns several losses,
    as ``g_loss`` and ``d_loss``, each has such a curve. Checkpoints hold the rows, so a resumed run appends to them.

    Subclasses Checkpoint so that it runs after the module has logged its epoch. It must precede, in the list of
    callbacks, all others that do so and ask what was measured.

    Args:
        run_dir: directory of the run.
        monitors: the metrics that may tell which epoch is best.
        every_n_batches: prints ``train/loss_step`` and adds a row for it every n batches of an epoch.

    Raises:
        ValueError: the config's ``monitor`` is not measured.
    """

    measures = ()

    def __init__(self, run_dir: Path, monitors: Monitors, every_n_batches: int | None = None) -> None:
        if every_n_batches is not None:
            check_positive_int("record.every_n_batches", every_n_batches)
        self.path, self.every_n_batches, self.monitors = run_dir / "metrics.csv", every_n_batches, monitors
        self.monitor: Monitor | None = None  # the metric that tells which epoch is best; None until it is measured
        self.measured: dict[str, float] = {}  # the last value of each metric
        self.validated = False  # whether all were measured once: after the first validation in training, if any
        self.rows: list[dict[str, float]] = []
        # Name of a loss -> training examples seen, and the mean loss since the previous point.
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self._val_metrics: dict[str, float] = {}
        self._sent: set[str] = set()  # to the loggers, by Lightning
        self._logged: dict[str, float] = {}  # as the module named it, for schedulers that follow a metric
        self._loss_sums: dict[str, Any] = {}  # since the previous point of the curve
        self._batches = 0
        self._sums: dict[str, Any] = {}  # over the batches of the epoch, of what the module does not log over it
        self._counts: dict[str, int] = {}
        self._seconds_before = 0.0  # spent on this epoch before it was interrupted
        self._start = time.monotonic()

    @property
    def score(self) -> float | None:
        """The monitored metric of the epoch that has just ended; None where it was not measured."""
        return self.rows[-1].get(self.monitor.name) if self.monitor and self.rows else None

    def validation(self, epoch: int) -> dict[str, float]:
        """Return the metrics of the validation of an epoch, counted from one."""
        rows = [row for row in self.rows if row["epoch"] == epoch]
        return {name: value for row in rows for name, value in row.items() if name.startswith("val/")}

    def explain_no_best(self) -> str:
        """Return why no epoch is the best one."""
        if self._validates and not self.validated:
            return "no epoch of the training was validated"
        return self.monitors.explain(self.measured)

    def check_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise ValueError for a metric that this run cannot measure, or a logger that writes a ``metrics.csv`` too."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and Path(logger.log_dir).resolve() == self.path.parent.resolve():
                raise ValueError("CSVLogger would write over metrics.csv of the run: leave out its name and version")
        self.monitors.check_validation(is_validated(trainer, pl_module))
        self.monitors.check_possible(possible_of(trainer, pl_module))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_exact = isinstance(pl_module, Exact)  # such a module reports all that is to be reported
        self._validates = is_validated(trainer, pl_module)
        trained = [row for row in self.rows if row["epoch"]]
        self.validated = not self._validates or any(name.startswith("val/") for row in trained for name in row)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._logged and pl_module.automatic_optimization:
            internals.update_plateau_schedulers(trainer, int(self.rows[-1]["epoch"]), self._logged)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        losses = batch_losses(outputs)
        if not self._is_exact:
            self._add_to_sums(trainer, losses.get("loss"))
        if not losses:
            return
        for name, loss in losses.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0.0) + loss
        self._batches += 1
        every = self.every_n_batches or trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 is never
        if every and (batch_idx + 1) % every == 0:
            self._add_curve_point(trainer, batch_idx)

    def _add_to_sums(self, trainer: pl.Trainer, loss: torch.Tensor | None) -> None:
        values = internals.step_results(trainer)
        if loss is not None:
            values[RETURNED] = loss * trainer.accumulate_grad_batches  # Lightning has divided it by that
        for name, value in values.items():
            # On a GPU a tensor, because reading a number there waits for it.
            number = value.item() if value.device.type == "cpu" else value.detach().clone()
            self._sums[name] = self._sums[name] + number if name in self._sums else number
            self._counts[name] = self._counts.get(name, 0) + 1

    def _add_curve_point(self, trainer: pl.Trainer, batch_idx: int) -> None:
        # Lightning has divided each loss by the number of batches whose gradients are accumulated.
        count, factor = self._batches, trainer.accumulate_grad_batches
        losses = {name: factor * _reduce_mean(trainer, total / count) for name, total in self._loss_sums.items()}
        self._loss_sums, self._batches = {}, 0
        _log_metrics(trainer, {f"train/{name}_step": loss for name, loss in losses.items()} | _learning_rates(trainer))
        # Fewer than the training set has, with trainer.limit_train_batches.
        total, seen = (num_examples(trainer, batches) for batches in (trainer.num_training_batches, batch_idx + 1))
        for name, loss in losses.items():
            self.curves.setdefault(name, []).append((trainer.current_epoch * total + seen, loss))
        if self.every_n_batches:
            row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
            self.rows.append(row | {f"train/{name}_step": round_float32(loss) for name, loss in losses.items()})
            shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            log.info("[%d, %5d] %s  (%d of %d examples)", row["epoch"], batch_idx + 1, shown, seen, total)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._val_metrics, self._sent = logged_metrics(trainer, "val"), internals.epoch_results(trainer)[1]
        if trainer.state.fn == "validate":
            self._close_row(trainer, {"epoch": 0, "step": 0})
        else:
            self.validated = True
            self.monitors.check_measured(self._val_metrics, "val")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if internals.stopped_in_epoch(trainer):  # the epoch gets its row when a resumed run has finished it
            if trainer.is_global_zero:
                self._write()
            return
        internals.end_resumed_epoch(trainer)
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= self._means_over_batches(trainer) | logged_metrics(trainer, "train")
        self._sent |= internals.epoch_results(trainer)[1]
        self._close_row(trainer, row)
        if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            self._logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if self.monitor is None and self.validated:  # where there are validations, no epoch before them is best
            self.monitors.check_measured(self.measured)
            self.monitor = self.monitors.resolve(self.measured)
        self._loss_sums, self._batches, self._sums, self._counts = {}, 0, {}, {}
        examples = num_examples(trainer, trainer.num_training_batches)
        _log_metrics(trainer, {"trainer/examples_per_second": examples / max(row["seconds"], 1e-3)})

    def _means_over_batches(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the means over the batches of the epoch, ``train/METRIC``."""
        means = {name: _reduce_mean(trainer, total / self._counts[name]) for name, total in self._sums.items()}
        loss = {} if (mean := means.pop(RETURNED, None)) is None else {"train/loss": round_float32(mean)}
        return loss | {metric_name("train", name): round_float32(mean) for name, mean in means.items()}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _log_metrics(trainer, logged_metrics(trainer, "test"), internals.epoch_results(trainer)[1])

    def _close_row(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        """Add and write the row of an epoch."""
        row |= self._val_metrics
        row["seconds"] = round(self._elapsed(), 3)
        self.rows.append(row)
        self._val_metrics, self._seconds_before, self._start = {}, 0.0, time.monotonic()
        metrics = {name: value for name, value in row.items() if "/" in name}
        self.measured |= metrics
        _log_metrics(trainer, metrics, self._sent)
        self._sent = set()
        if trainer.is_global_zero:
            self._write()
            epoch = format_epoch(trainer, int(row["epoch"]))
            log.info("%s  %s  %.1f s", epoch, format_metrics(row), row["seconds"])

    def _elapsed(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def _write(self) -> None:
        columns = [name for row in self.rows for name in row if name != "seconds"]
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, [*dict.fromkeys(columns), "seconds"])
            writer.writerow({name: printable(name) for name in writer.fieldnames})
            writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "curves": self.curves,
            "losses": {name: float(total) for name, total in self._loss_sums.items()},
            "batches": self._batches,
            "elapsed": self._elapsed(),
            "validation": self._val_metrics,
            "sums": {name: float(total) for name, total in self._sums.items()},
            "counts": self._counts,
            "logged": self._logged,
            "monitor": [self.monitor.name, self.monitor.mode] if self.monitor else None,
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The state is that of rank zero, and all ranks resume from it.
        state = checkpoint["callbacks"][self.state_key]
        state["losses"] = {name: _reduce_mean(trainer, total) for name, total in self._loss_sums.items()}
        state["sums"] = {name: _reduce_mean(trainer, total) for name, total in self._sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self._batches = state["rows"], state["batches"]
        # Earlier versions had one curve, of the loss.
        self.curves = state["curves"] if "curves" in state else {"loss": state["curve"]}
        self._loss_sums = dict(state["losses"] if "losses" in state else {"loss": state["loss"]})
        self._seconds_before = state["elapsed"]
        self._val_metrics = state.get("validation", {})  # of the unfinished epoch
        self._sums, self._counts = dict(state.get("sums", {})), dict(state.get("counts", {}))
        self._logged = state.get("logged", {})
        if (found := state.get("monitor")) and not self.monitors.asked:
            self.monitor = Monitor(*found)
        epochs = [row for row in self.rows if "seconds" in row]
        self.measured = {name: value for row in epochs for name, value in row.items() if "/" in name}


def _reduce_mean(trainer: pl.Trainer, number: float | torch.Tensor) -> float:
    """Return the mean over the ranks."""
    return float(trainer.strategy.reduce(torch.as_tensor(number).clone(), reduce_op="mean"))


def _learning_rates(trainer: pl.Trainer) -> dict[str, float]:
    """Return the rate of the first parameter group of each optimizer: ``trainer/lr``, or ``trainer/lr_1`` and so on.

    TensorBoard sorts the metrics of HPARAMS by name and shows five of them, which therefore are test metrics.
    """
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    names = ["lr"] if len(rates) == 1 else [f"lr_{number}" for number in range(1, len(rates) + 1)]
    return {f"trainer/{name}": rate for name, rate in zip(names, rates, strict=True)}


def _log_metrics(trainer: pl.Trainer, metrics: dict[str, float], logged: Collection[str] = ()) -> None:
    """Pass metrics to the loggers, without those that Lightning passes to them under the same name."""
    for logger in trainer.loggers:
        logger.log_metrics({name: value for name, value in metrics.items() if name not in logged}, trainer.global_step)
