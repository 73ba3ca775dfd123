"""Multi-layer perceptrons."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers with an activation between them; returns logits.

    With the defaults on MNIST, 784-512-256-128-64-10: 575,050 parameters.

    Args:
        shape: of one input; it is flattened.
        num_classes: number of logits.
        hidden: widths between input and output.
        activation: name of a class of torch.nn.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (512, 256, 128, 64),
        activation: str = "ReLU",
    ) -> None:
        layer = getattr(nn, activation, None)
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise ValueError(f"model.net.activation={activation} is no layer of torch.nn")
        widths = [math.prod(shape), *hidden, num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), layer()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:  # (B, *shape)
        return super().forward(x)  # (B, num_classes)


class BinaryMLP(MLP):
    """An :class:`MLP` that ends in the log-odds of class 1, ``(B, 1)``; without hidden layers logistic regression."""

    def __init__(
        self, shape: Sequence[int], num_classes: int, hidden: Sequence[int] = (), activation: str = "Sigmoid"
    ) -> None:
        if num_classes != 2:
            raise ValueError(
                f"one number tells two classes apart, not {num_classes}; "
                "model=mlp learns more classes and model=mlp_regression a number"
            )
        super().__init__(shape, 1, hidden, activation)
