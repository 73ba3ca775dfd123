"""A line, written in two ways."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RawLine(nn.Module):
    """``y = weight * x + bias`` with two bare numbers as parameters.

    Args:
        input_shape, num_classes: ``(1,)`` and 1, the only ones that a line can have.
        weight, bias: their initial values.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, weight: float = 1.0, bias: float = 0.0) -> None:
        _check(input_shape, num_classes)
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(weight)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, x: Tensor) -> Tensor:  # (B, 1)
        return self.weight * x + self.bias  # (B, 1)

    def coefficients(self) -> dict[str, float]:
        """Return slope and intercept by the names that the tutorials give them."""
        return {"w": self.weight.item(), "b": self.bias.item()}


class Line(nn.Linear):
    """The same line as a layer of torch.nn."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, weight: float = 1.0, bias: float = 0.0) -> None:
        _check(input_shape, num_classes)
        super().__init__(1, 1)
        nn.init.constant_(self.weight, weight)
        nn.init.constant_(self.bias, bias)

    coefficients = RawLine.coefficients


def _check(input_shape: Sequence[int], num_classes: int) -> None:
    if tuple(input_shape) != (1,) or num_classes != 1:
        raise ValueError(
            f"a line goes from one number to one number, not from shape {tuple(input_shape)} to {num_classes}; "
            "model=mlp_regression takes more numbers and model=mlp learns classes"
        )
