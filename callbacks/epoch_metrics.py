"""Metrics of torchmetrics, computed once per epoch from what the steps return."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassStatScores

from callbacks import get_datamodule
from runs.protocols import Classifies, Generates, Reconstructs

log = logging.getLogger(__name__)


class EpochMetrics(pl.Callback):
    """Logs ``val/NAME`` and ``test/NAME`` for each metric, over all examples of a validation or test.

    ``validation_step`` and ``test_step`` must return the predictions: ``(B, ...)``. A metric of classes gets the
    probabilities of a classifier, and one of numbers the predictions and targets in the units of the data. A metric
    with a value for each class is logged as ``val/NAME/CLASS``: nan for a class without examples, which no mean over
    the classes counts. With several processes it is that of all examples.

    Args:
        metrics: name -> metric.
    """

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(f"{stage}/{name}" for name in self.metrics for stage in ("val", "test"))

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = metrics
        self._running: dict[str, Metric] = {}
        self._examples: MulticlassStatScores | None = None  # of each class

    def check_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise ValueError for metrics of classes and a model that is known to predict none."""
        if not self.metrics or not get_datamodule(trainer).class_names or isinstance(pl_module, Classifies):
            return
        does = "reconstructs its inputs" if isinstance(pl_module, Reconstructs) else "generates"
        if isinstance(pl_module, (Reconstructs, Generates)):
            name, model = next(iter(self.metrics)), type(pl_module).__name__
            raise ValueError(f"metrics.{name} compares classes, and {model} predicts none: it {does}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, sync=True)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, sync=False)  # every process tests all examples

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, sync: bool) -> None:
        self._running = {name: copy.deepcopy(metric).to(pl_module.device) for name, metric in self.metrics.items()}
        classes = len(get_datamodule(trainer).class_names) if self._running else 0
        self._examples = MulticlassStatScores(classes, average=None).to(pl_module.device) if classes > 1 else None
        for metric in (*self._running.values(), *([self._examples] if self._examples else [])):
            metric.sync_on_compute = sync

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._update(trainer, pl_module, outputs, batch, "validation_step")

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._update(trainer, pl_module, outputs, batch, "test_step")

    def _update(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, step: str) -> None:
        if not self._running:
            return
        targets = batch[1]
        if not isinstance(outputs, Tensor) or not outputs.dim() or len(outputs) != len(targets):
            raise ValueError(
                f"metrics.{next(iter(self._running))} needs the predictions for a batch, and the {step} of "
                f"{type(pl_module).__name__} does not return them"
            )
        if not len(targets):  # all files of a batch are broken
            return
        data, predictions = get_datamodule(trainer), outputs.float()
        if not data.class_names:
            predictions, targets = data.denormalize_targets(predictions), data.denormalize_targets(targets)
            if predictions.shape[1:] == (1,):
                predictions, targets = predictions[:, 0], targets.reshape(-1)
        elif isinstance(pl_module, Classifies):
            predictions = pl_module.probabilities(predictions)
        if self._examples:
            self._examples.update(targets, targets)
        for metric in self._running.values():
            of_two = bool(data.class_names) and not hasattr(metric, "num_classes")
            metric.update(predictions[:, 1] if of_two and predictions.dim() == 2 else predictions, targets)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        names = get_datamodule(trainer).class_names
        empty = self._examples.compute()[:, 4] == 0 if self._examples else torch.zeros(0, dtype=torch.bool)
        for name, metric in self._running.items():
            if of_classes := bool(empty.any()) and getattr(metric, "average", "") in ("macro", "none", None):
                macro, metric.average = metric.average == "macro", "none"
            value = self._compute(name, metric, pl_module.device)
            if of_classes and value.shape == empty.shape:
                value = value[~empty].mean() if macro else value.masked_fill(empty, torch.nan)
            if value.numel() == 1:
                values = {name: value.reshape(())}
            elif value.shape == (len(names),):
                values = {f"{name}/{of}": one for of, one in zip(names, value, strict=True)}
            else:
                raise ValueError(f"metrics.{name} gives {tuple(value.shape)} numbers, which is no value to log")
            # MetricsHistory passes them to the loggers.
            pl_module.log_dict({f"{stage}/{key}": one.float() for key, one in values.items()}, logger=False)
        self._running = {}

    def _compute(self, name: str, metric: Metric, device: torch.device) -> Tensor:
        try:
            value = metric.compute()
        except ValueError as error:  # such as R² of one example
            log.warning("metrics.%s: %s", name, error)
            return torch.tensor(torch.nan, device=device)
        if not isinstance(value, Tensor):
            raise ValueError(f"metrics.{name} gives {type(value).__name__}, which is no value to log")
        return value
