"""Supervised learning: one step for regression and classification, in training, validation and test."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_models.exact import ExactModule
from lit_models.losses import check_targets

Batch = tuple[Tensor, Tensor]


class Supervised(ExactModule):
    """Minimizes ``loss(net(inputs), targets)`` and reports ``{train,val,test}/loss``, the mean over the examples.

    Args:
        net: maps a batch of inputs to predictions.
        loss: maps predictions and targets to their mean loss.
        optimizer: makes an optimizer from parameters.
        scheduler: makes a scheduler from an optimizer. None keeps the learning rate constant.
        **kwargs: see :class:`ExactModule`, which makes the gradient steps on what :meth:`training_step` returns.
    """

    measures: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.net, self.loss = net, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.to(memory_format=self._memory_format())

    def forward(self, inputs: Tensor) -> Tensor:  # (B, *input_shape) to logits (B, classes), or values (B, 1)
        return self.net(self.in_memory_format(inputs))

    def compute_metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return what to report besides the loss: name -> sum over the batch, a scalar tensor."""
        return {}

    def model_step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch and the predictions, and add both to the means of the epoch."""
        inputs, targets = batch
        predictions = self(inputs)
        # With several processes the part of one may be empty in the last batch. Its gradient is zero.
        loss = self.loss(predictions, targets) if len(targets) else predictions.sum()
        metrics = self.compute_metrics(predictions.detach(), targets)
        self.accumulate(stage, len(targets), {"loss": loss}, metrics)
        return loss, predictions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, _ = self.model_step(batch, "train")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        _, predictions = self.model_step(batch, "val")
        return predictions

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        _, predictions = self.model_step(batch, "test")
        return predictions

    def parameter_groups(self) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        """Return the parameters to optimize, or parameter groups with settings of their own."""
        return self.parameters()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameter_groups())
        if self.scheduler is None:
            return optimizer
        return [optimizer], [self.schedule(self.scheduler, optimizer)]

    def check_data(self, datamodule: Any) -> None:
        """Raise ValueError where the loss does not fit the targets of the data: see :func:`check_targets`."""
        try:
            check_targets(self.loss, len(datamodule.class_names))
        except ValueError as error:
            if getattr(datamodule, "classes", None) is not False or datamodule.class_names:
                raise
            raise ValueError(f"{error}; data.classes=true reads them as classes") from error


class Classifier(Supervised):
    """Supervised learning of classes. Reports ``{train,val,test}/acc``, the fraction of correct predictions, as well.

    The net returns logits: ``(B, num_classes)``, or ``(B, 1)`` for the log-odds of class 1.
    """

    measures: tuple[str, ...] = ("loss", "acc")

    def compute_metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if targets.is_floating_point():  # a vector, not a class
            return {}
        return {"acc": (self.classes(predictions) == targets).count_nonzero()}

    @staticmethod
    def classes(logits: Tensor) -> Tensor:
        """Return the predicted class of each row of logits, int64 ``(B,)``."""
        return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Return the probability of each class, ``(B, C)``. Log-odds ``(B, 1)`` give two."""
        return torch.cat([-logits, logits], 1).sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
