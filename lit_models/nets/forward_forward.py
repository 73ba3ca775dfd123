"""A net of layers that judge how well an input and a label go together."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.nets.errors import unsupported_inputs


class ForwardForwardNet(nn.Module):
    """Linear layers with ReLU on inputs that begin with a label. The goodness of a layer is its mean squared output.

    Each layer gets the output of the layer before as a direction, without its length, which would tell the goodness
    (Hinton 2022, arXiv:2212.13345). With the defaults on MNIST, 784-500-500: 643,000 parameters. Returns the goodness
    of each label.

    Args:
        input_shape: shape of one input, which is flattened.
        num_classes: number of labels. A label replaces as many numbers at the beginning of an input.
        hidden_sizes: widths of the layers.

    Raises:
        ValueError: nothing but the label would be left of an input, or there is no layer.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, hidden_sizes: Sequence[int] = (500, 500)) -> None:
        super().__init__()
        size = math.prod(input_shape)
        if size <= num_classes:
            takes = f"inputs of more than {num_classes} numbers, because a label replaces the first {num_classes}"
            raise unsupported_inputs(f"a forward-forward net takes {takes}", input_shape)
        if not hidden_sizes:
            raise ValueError("model.net.hidden_sizes=[] must have at least one layer")
        self.num_classes = num_classes
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in itertools.pairwise([size, *hidden_sizes]))

    def with_labels(self, inputs: Tensor, labels: Tensor) -> Tensor:  # (B, *input_shape), int64 (B,)
        """Return flat inputs that begin with their label: their largest number in its place, and 0 in the others."""
        flat = inputs.flatten(1)
        one_hot = F.one_hot(labels, self.num_classes) * flat.amax(1, keepdim=True)
        return torch.cat([one_hot, flat[:, self.num_classes :]], 1)  # (B, 784)

    def run_layer(self, number: int, x: Tensor) -> Tensor:  # (B, width before)
        """Return the output of a layer for that of the layer before, or for inputs with labels."""
        direction = x / (x.norm(dim=1, keepdim=True) + 1e-4)
        return F.relu(self.layers[number](direction))  # (B, width)

    def goodness(self, inputs: Tensor) -> Tensor:  # (B, *input_shape)
        """Return the goodness of each label in each layer, ``(B, layers, num_classes)``."""
        of_labels = []
        for label in range(self.num_classes):
            x = self.with_labels(inputs, torch.full((len(inputs),), label, device=inputs.device))
            of_layers = []
            for number in range(len(self.layers)):
                x = self.run_layer(number, x)
                of_layers.append(x.square().mean(1))
            of_labels.append(torch.stack(of_layers, 1))  # (B, layers)
        return torch.stack(of_labels, 2)

    def forward(self, inputs: Tensor) -> Tensor:  # (B, *input_shape)
        return self.goodness(inputs).sum(1)  # (B, num_classes)
