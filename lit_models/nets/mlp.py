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
        negative_slope: of ``LeakyReLU``.
        dropout: probability of the hidden units to be left out.
        initialization: ``default`` for torch's own, or ``kaiming``: biases of zero, and normal weights that keep the
            variance of the inputs through layers with ReLU (He et al. 2015, arXiv:1502.01852, equation 10).

    Raises:
        ValueError: there is no such activation or initialization.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_sizes: Sequence[int] = (512, 256, 128, 64),
        activation: str = "ReLU",
        negative_slope: float = 0.01,
        dropout: float = 0.0,
        initialization: str = "default",
    ) -> None:
        if initialization not in ("default", "kaiming"):
            raise ValueError(f"model.net.initialization={initialization} must be default or kaiming")
        layer = getattr(nn, activation, None)
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise ValueError(f"model.net.activation={activation} is not a layer of torch.nn")
        settings = {"negative_slope": negative_slope} if activation == "LeakyReLU" else {}
        widths = [math.prod(input_shape), *hidden_sizes, num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), layer(**settings), *([nn.Dropout(dropout)] if dropout else [])]
        super().__init__(*layers[: -2 if dropout else -1])
        if initialization == "kaiming":
            self._init_kaiming()

    def _init_kaiming(self) -> None:
        first, *others = (layer for layer in self if isinstance(layer, nn.Linear))
        nn.init.kaiming_normal_(first.weight, nonlinearity="linear")  # its inputs come from no ReLU
        for layer in others:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for layer in (first, *others):
            nn.init.zeros_(layer.bias)

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
