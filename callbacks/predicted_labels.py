"""Print the labels that a classifier predicts."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch

from runs.protocols import Classifies

log = logging.getLogger(__name__)


class PredictedLabels(pl.Callback):
    """Prints the predicted labels of the validation examples after training, one digit each."""

    measures = ()

    def __init__(self) -> None:
        self._labels: list[torch.Tensor] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._labels = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if isinstance(pl_module, Classifies) and isinstance(outputs, torch.Tensor):
            self._labels.append(pl_module.classes(outputs))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._labels:
            return
        labels = "".join(str(label) for label in torch.cat(self._labels).tolist())
        lines = [labels[start : start + 100] for start in range(0, len(labels), 100)]
        log.info("predicted labels\n  %s", "\n  ".join(lines))
