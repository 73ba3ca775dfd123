"""The small convolutional nets of the MNIST tutorials. Shapes in the comments are those for a 28 x 28 grey image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _numbers_out(features: nn.Module, shape: Sequence[int]) -> int:
    """How many numbers ``features`` makes of one image. Raises ValueError for inputs that are none."""
    if len(shape) != 3:
        raise ValueError(
            f"a convolutional net takes images (channels, height, width), not inputs of shape {tuple(shape)}; "
            "model=mlp takes any inputs"
        )
    with torch.no_grad():
        return features(torch.zeros(1, *shape)).numel()


class CNN(nn.Module):
    """Two convolutions and one linear layer; 8,490 parameters on MNIST. Returns logits."""

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], 10, 5),  # (B, 10, 24, 24)
            nn.MaxPool2d(2),  # (B, 10, 12, 12)
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),  # (B, 20, 8, 8)
            nn.MaxPool2d(2),  # (B, 20, 4, 4)
            nn.ReLU(),
            nn.Flatten(),  # (B, 320)
        )
        self.fc = nn.Linear(_numbers_out(self.features, shape), num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.fc(self.features(x))  # (B, num_classes)


class ResidualBlock(nn.Module):
    """``relu(x + conv3x3(relu(conv3x3(x))))``, the shape unchanged (He et al. 2015, arXiv:1512.03385, figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, channels, H, W)
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ResidualCNN(nn.Module):
    """The CNN's answer to vanishing gradients: a residual block (He et al. 2015, arXiv:1512.03385, figure 2) after each
    convolution. Returns logits."""

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], 16, 5),  # (B, 16, 24, 24)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 16, 12, 12)
            ResidualBlock(16),
            nn.Conv2d(16, 32, 5),  # (B, 32, 8, 8)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 32, 4, 4)
            ResidualBlock(32),
            nn.Flatten(),  # (B, 512)
        )
        self.fc = nn.Linear(_numbers_out(self.features, shape), num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.fc(self.features(x))  # (B, num_classes)


class QuickCNN(nn.Module):
    """Made for one epoch on a CPU: two convolutions with batch norm behind the pooling, where there is less to do, on
    images without their border; 43,386 parameters on MNIST. Returns logits.

    Args:
        shape, num_classes: of the images and of the answer.
        crop: pixels that are cut off at each side. MNIST's digits fill 20 x 20 pixels.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, crop: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ZeroPad2d(-crop),  # (B, 1, 20, 20)
            nn.Conv2d(shape[0], 16, 5, bias=False),  # (B, 16, 16, 16)
            nn.MaxPool2d(2),  # (B, 16, 8, 8)
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, bias=False),  # (B, 32, 6, 6)
            nn.MaxPool2d(2),  # (B, 32, 3, 3)
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),  # (B, 288)
        )
        self.classifier = nn.Sequential(
            nn.Linear(_numbers_out(self.features, shape), 128),  # (B, 128)
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.classifier(self.features(x))  # (B, num_classes)


class DropoutCNN(nn.Module):
    """Two convolutions and two linear layers with dropout of channels and of units; 21,840 parameters on MNIST.

    Returns logits: the tutorial's log-softmax and negative log likelihood together are the cross-entropy.
    """

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], 10, 5),  # (B, 10, 24, 24)
            nn.MaxPool2d(2),  # (B, 10, 12, 12)
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),  # (B, 20, 8, 8)
            nn.Dropout2d(),
            nn.MaxPool2d(2),  # (B, 20, 4, 4)
            nn.ReLU(),
            nn.Flatten(),  # (B, 320)
        )
        self.classifier = nn.Sequential(
            nn.Linear(_numbers_out(self.features, shape), 50),  # (B, 50)
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(50, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.classifier(self.features(x))  # (B, num_classes)
