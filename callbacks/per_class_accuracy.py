"""Accuracy of a classifier for each class."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from callbacks import get_datamodule
from runs.protocols import Classifies


class PerClassAccuracy(pl.Callback):
    """Logs ``test/acc/CLASS``, the accuracy over the test examples of each class: nan where there are none."""

    measures = ()  # beside test/acc, which the module measures

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._names = get_datamodule(trainer).class_names if isinstance(pl_module, Classifies) else ()
        if self._names:
            self._accuracy = MulticlassAccuracy(len(self._names), average=None).to(pl_module.device)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        # No logits where a test step returns something else; no targets where all files of a batch are broken.
        if self._names and isinstance(outputs, Tensor) and len(batch[1]):
            self._accuracy.update(pl_module.classes(outputs), batch[1])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._names and self._accuracy.update_called:
            counts: Any = self._accuracy  # of true positives and false negatives
            values = self._accuracy.compute().masked_fill(counts.tp + counts.fn == 0, torch.nan)
            accuracies = dict(zip(self._names, values, strict=True))
            # MetricsHistory passes them to the loggers.
            pl_module.log_dict({f"test/acc/{name}": value for name, value in accuracies.items()}, logger=False)
