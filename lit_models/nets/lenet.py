"""LeNet-5 with ReLU and max-pooling, as today's tutorials write it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.nets.errors import unsupported_inputs


class LeNet(nn.Module):
    """Two convolutions and three linear layers (LeCun et al. 1998, Gradient-based learning applied to document
    recognition, figure 2). 61,706 parameters with one input channel, 62,006 with three. Returns logits.

    Args:
        input_shape: ``(C, 32, 32)`` or ``(C, 28, 28)``.
        num_classes: number of logits.
        pad: whether images of 28 x 28 are padded with zeros to 32 x 32, the size of the paper. Without padding the net
            has 44,426 parameters with one input channel.

    Raises:
        ValueError: the images have another size.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, pad: bool = True) -> None:
        super().__init__()
        channels, *size = input_shape
        if size not in ([28, 28], [32, 32]):
            raise unsupported_inputs("LeNet takes images (channels, 28, 28) or (channels, 32, 32)", input_shape)
        self.padding = (32 - size[0]) // 2 if pad else 0
        side = 5 if pad or size[0] == 32 else 4  # of the last feature maps
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side**2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 28, 28) or (B, C, 32, 32)
        if self.padding:
            x = F.pad(x, [self.padding] * 4)  # (B, C, 32, 32)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (B, 6, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (B, 16, 5, 5)
        x = F.relu(self.fc1(x.flatten(1)))  # (B, 120)
        x = F.relu(self.fc2(x))  # (B, 84)
        return self.fc3(x)  # (B, num_classes)
