"""Losses that the exercises pair with their nets and torch.nn does not have. All take predictions and targets."""

import torch.nn.functional as F
from torch import Tensor, nn


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of the sigmoid of log-odds ``(B, 1)`` with classes 0 and 1, int64 ``(B,)``."""

    def forward(self, log_odds: Tensor, classes: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(log_odds[:, 0], classes.float())


class CrossEntropyOfSoftmax(nn.Module):
    """Cross-entropy that takes the softmax of logits ``(B, C)`` for logits, as a common mistake has it.

    The softmax is thus applied twice, and with two classes the loss cannot fall below ln(1 + 1/e) = 0.3133.
    """

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(logits.softmax(1), classes)


class SumOfDifferences(nn.Module):
    """``(predictions - targets).sum()``: no loss to minimise, but one that has a gradient."""

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:  # both (B, N), to a scalar
        return (predictions - targets).sum()
