"""Knowledge distillation: a net that learns from the data and from a trained net."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.supervised import Batch, Classifier


class Distillation(Classifier):
    """Classification that is also to be as sure of each class as a teacher is (Hinton et al. 2015, arXiv:1503.02531).

    ``loss`` is the sum of ``hard_loss``, that of the classes, weighted by ``1 - soft_weight``, and of ``soft_loss``,
    weighted by ``soft_weight``: the cross-entropy of the student's probabilities with the teacher's, both softened by
    the temperature, times its square.

    The teacher does not learn. Its weights are in the checkpoints, so a resumed or evaluated run needs no other file.

    Args:
        net: the student.
        teacher: a trained net that returns logits of the same classes, that of ``model.teacher=RUN``.
        input_shape: of the data.
        num_classes: of the data.
        temperature: what the logits are divided by. A higher one shows more of how the classes resemble each other.
        soft_weight: of the teacher, from 0 to 1.
        **kwargs: see :class:`Supervised`.

    Raises:
        ValueError: there is no teacher, or it returns something else.
    """

    measures = ("loss", "hard_loss", "soft_loss", "acc")

    def __init__(
        self,
        net: nn.Module,
        teacher: nn.Module | None,
        input_shape: Sequence[int],
        num_classes: int,
        temperature: float = 2.0,
        soft_weight: float = 0.25,
        **kwargs: Any,
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise ValueError(
                "this model learns from a teacher: model.teacher=RUN names a run of a classifier of the same data, "
                "such as one of experiment=cifar10_teacher"
            )
        if not temperature > 0:
            raise ValueError(f"model.temperature={temperature} must be above 0")
        if not 0 <= soft_weight <= 1:
            raise ValueError(f"model.soft_weight={soft_weight} must be from 0 to 1")
        super().__init__(net=net, **kwargs)
        self.temperature, self.soft_weight = temperature, soft_weight
        self.teacher = teacher.requires_grad_(False)
        with torch.no_grad():
            returns = tuple(teacher.eval()(torch.zeros(1, *input_shape)).shape[1:])
        teacher.train()  # until the first step: Lightning warns of modules that begin a training in another mode
        if returns != (num_classes,):
            raise ValueError(
                f"model.teacher returns {returns} numbers for an input, not the logits of {num_classes} classes"
            )

    def model_step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        logits = self(inputs)  # (B, num_classes)
        self.teacher.eval()  # no dropout, and the statistics of batch norm stay
        with torch.no_grad():
            soft_targets = (self.teacher(self.in_memory_format(inputs)) / self.temperature).softmax(1)
        hard_loss = self.loss(logits, targets)
        soft_loss = self.temperature**2 * F.cross_entropy(logits / self.temperature, soft_targets)
        loss = (1 - self.soft_weight) * hard_loss + self.soft_weight * soft_loss
        if not len(targets):  # a mean over no examples is not a number
            loss = hard_loss = soft_loss = logits.sum()
        losses = {"loss": loss, "hard_loss": hard_loss, "soft_loss": soft_loss}
        self.accumulate(stage, len(targets), losses, self.compute_metrics(logits.detach(), targets))
        return loss, logits

    def parameter_groups(self) -> Any:
        return self.net.parameters()
