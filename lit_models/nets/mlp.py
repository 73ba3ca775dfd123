"""Multi-layer perceptrons."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers with an activation between them; returns logits.

    With the defaults on MNIST, 784-512-256-128-64-10: 575,050 parameters.

    Args:
        input_shape: shape of one input, which is flattened.
        num_classes: number of logits.
        hidden_sizes: widths of the layers between input and output.
        activation: name of a class in torch.nn.

    Raises:
        ValueError: there is no such activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_sizes: Sequence[int] = (512, 256, 128, 64),
        activation: str = "ReLU",
    ) -> None:
        layer = getattr(nn, activation, None)
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise ValueError(f"model.net.activation={activation} is not a layer of torch.nn")
        widths = [math.prod(input_shape), *hidden_sizes, num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), layer()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:  # (B, *input_shape)
        return super().forward(x)  # (B, num_classes)


class BinaryMLP(MLP):
    """An :class:`MLP` that returns the log-odds of class 1, ``(B, 1)``. Without hidden layers: logistic regression."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_sizes: Sequence[int] = (),
        activation: str = "Sigmoid",
    ) -> None:
        if num_classes != 2:
            raise ValueError(
                f"one logit separates two classes, not {num_classes}; "
                "model=mlp learns more classes and model=mlp_regression a number"
            )
        super().__init__(input_shape, 1, hidden_sizes, activation)
