"""Losses that the exercises pair with their nets and torch.nn does not have. All take predictions and targets."""

import torch.nn.functional as F
from torch import Tensor, nn


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of the sigmoid of log-odds ``(B, 1)`` with classes 0 and 1, int64 ``(B,)``."""

    def forward(self, log_odds: Tensor, classes: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(log_odds[:, 0], classes.float())


class DoubleSoftmaxCrossEntropy(nn.Module):
    """Cross-entropy of ``softmax(logits)`` in place of the logits ``(B, C)``, a common mistake.

    The softmax is thus applied twice, and with two classes the loss cannot fall below ln(1 + 1/e) = 0.3133.
    """

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(logits.softmax(1), classes)


class PixelCrossEntropy(nn.Module):
    """Binary cross-entropy of the sigmoid of logits with pixels from 0 to 1, both ``(B, *shape)``.

    It is the sum over the pixels of an image, and the mean over the images.
    """

    def forward(self, logits: Tensor, pixels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum") / max(len(pixels), 1)


class SumOfDifferences(nn.Module):
    """``(predictions - targets).sum()``: not a loss to minimize, but one that has a gradient."""

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:  # both (B, N), to a scalar
        return (predictions - targets).sum()


LOSSES_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, BinaryCrossEntropy, DoubleSoftmaxCrossEntropy)
LOSSES_OF_NUMBERS = (nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss)


def check_targets(loss: nn.Module, classes: int) -> None:
    """Check that a loss fits the targets of the data.

    Args:
        loss: loss of a model. One that is in neither tuple above fits both.
        classes: number of classes; 0 where the targets are numbers.

    Raises:
        ValueError: the loss is for classes and the targets are numbers, or the other way round, or its weights are not
            one for each class.
    """
    for takes_classes, losses in ((True, LOSSES_OF_CLASSES), (False, LOSSES_OF_NUMBERS)):
        if isinstance(loss, losses) and takes_classes != bool(classes):
            learns, has = ("classes", "numbers") if takes_classes else ("numbers", "classes")
            raise ValueError(
                f"this model learns {learns} (its loss is {type(loss).__name__}), "
                f"and the targets of the data are {has}; model={'mlp' if classes else 'mlp_regression'} learns {has}"
            )
    weight = getattr(loss, "weight", None)
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and isinstance(weight, Tensor) and len(weight) != classes:
        raise ValueError(f"model.loss.weight has {len(weight)} numbers, and the data has {classes} classes")
