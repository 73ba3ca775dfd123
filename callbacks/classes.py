"""What a classifier makes of each class."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torchmetrics.classification import MulticlassAccuracy

from callbacks.record import data_of

log = logging.getLogger(__name__)


class PerClassAccuracy(pl.Callback):
    """Logs ``test/acc/CLASS``, the share of each class of the test set that is right."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._names = data_of(trainer).class_names if hasattr(pl_module, "classes") else ()
        if self._names:
            self._accuracy = MulticlassAccuracy(len(self._names), average=None).to(pl_module.device)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if self._names and len(batch[1]):  # none where all files of a batch are broken
            self._accuracy.update(pl_module.classes(outputs), batch[1])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._names:
            shares = self._accuracy.compute()
            named = {f"test/acc/{name}": share for name, share in zip(self._names, shares, strict=True)}
            pl_module.log_dict(named, logger=False)  # the loggers hear it from callbacks.record


class PredictedLabels(pl.Callback):
    """Prints the labels that the trained model gives to the validation examples, one digit each."""

    def __init__(self) -> None:
        self._labels: list[torch.Tensor] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._labels = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._labels.append(pl_module.classes(outputs))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._labels:
            return
        labels = "".join(str(label) for label in torch.cat(self._labels).tolist())
        lines = [labels[start : start + 100] for start in range(0, len(labels), 100)]
        log.info("predicted labels\n  %s", "\n  ".join(lines))
