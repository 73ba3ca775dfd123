"""A net that compares two images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet


class SiameseNet(nn.Module):
    """One ResNet-18 for both images of a pair, and two linear layers that compare what it finds in them.

    For gray images it is the net of pytorch/examples, siamese_network: 11,432,897 parameters. Returns the log-odds that
    both show the same.

    Args:
        input_shape: ``(2 * C, H, W)``, the two images of a pair on top of each other.
        num_classes: 2, different and equal.
        hidden_size: width of the layer between the features of both and the log-odds.

    Raises:
        ValueError: the inputs are not pairs of images.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int = 2, hidden_size: int = 256) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] % 2 or num_classes != 2:
            raise ValueError(
                "a siamese net takes pairs of images (2 x channels, height, width), equal or different, not inputs of "
                f"shape {tuple(input_shape)} and {num_classes} classes; data=mnist_pairs gives such pairs"
            )
        self.trunk = ResNet(BasicBlock, [2, 2, 2, 2])
        self.trunk.conv1 = nn.Conv2d(input_shape[0] // 2, 64, 7, stride=2, padding=3, bias=False)
        features = self.trunk.fc.in_features
        self.trunk.fc = nn.Identity()
        self.head = nn.Sequential(
            nn.Linear(2 * features, hidden_size),  # (B, 1024) to (B, 256)
            nn.ReLU(inplace=True),
            nn.Linear(hidden_size, 1),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.constant_(layer.bias, 0.01)

    def forward(self, pairs: Tensor) -> Tensor:  # (B, 2 * C, H, W)
        # One after the other, as in the example: batch norm takes the statistics of 64 images, not of 128.
        features = [self.trunk(images) for images in pairs.chunk(2, 1)]  # (B, 512) each
        return self.head(torch.cat(features, 1))  # (B, 1)
