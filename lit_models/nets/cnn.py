"""The small convolutional nets of the MNIST tutorials and of the one on distillation.

Shapes in the comments are those for a 28 x 28 gray image where nothing else is said.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.nets.errors import unsupported_inputs


def count_features(features: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the number of features that ``features`` computes from one image.

    Raises:
        ValueError: the inputs are not images.
    """
    if len(input_shape) != 3:
        raise unsupported_inputs("a convolutional net takes images (channels, height, width)", input_shape)
    with torch.no_grad():
        return features(torch.zeros(1, *input_shape)).numel()


class CNN(nn.Module):
    """Two convolutions and one linear layer; 8,490 parameters on MNIST. Returns logits."""

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], 10, 5),  # (B, 10, 24, 24)
            nn.MaxPool2d(2),  # (B, 10, 12, 12)
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),  # (B, 20, 8, 8)
            nn.MaxPool2d(2),  # (B, 20, 4, 4)
            nn.ReLU(),
            nn.Flatten(),  # (B, 320)
        )
        self.fc = nn.Linear(count_features(self.features, input_shape), num_classes)

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
    """A residual block after each of two convolutions, against vanishing gradients (He et al. 2015, arXiv:1512.03385,
    figure 2); 41,514 parameters on MNIST. Returns logits."""

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], 16, 5),  # (B, 16, 24, 24)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 16, 12, 12)
            ResidualBlock(16),
            nn.Conv2d(16, 32, 5),  # (B, 32, 8, 8)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 32, 4, 4)
            ResidualBlock(32),
            nn.Flatten(),  # (B, 512)
        )
        self.fc = nn.Linear(count_features(self.features, input_shape), num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.fc(self.features(x))  # (B, num_classes)


class QuickCNN(nn.Module):
    """A net for one epoch on a CPU: two convolutions on cropped images, with batch norm after the pooling, where there
    is less to do; 43,386 parameters on MNIST. Returns logits.

    Args:
        input_shape: ``(C, H, W)``.
        num_classes: number of logits.
        crop: pixels to cut off at each side. MNIST's digits fill 20 x 20 pixels.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, crop: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ZeroPad2d(-crop),  # (B, 1, 20, 20)
            nn.Conv2d(input_shape[0], 16, 5, bias=False),  # (B, 16, 16, 16)
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
            nn.Linear(count_features(self.features, input_shape), 128),  # (B, 128)
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.classifier(self.features(x))  # (B, num_classes)


class DropoutCNN(nn.Module):
    """Two convolutions and two linear layers with dropout of channels and of units; 21,840 parameters on MNIST.

    Returns logits: the tutorial's log-softmax and negative log likelihood together are the cross-entropy.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], 10, 5),  # (B, 10, 24, 24)
            nn.MaxPool2d(2),  # (B, 10, 12, 12)
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),  # (B, 20, 8, 8)
            nn.Dropout2d(),
            nn.MaxPool2d(2),  # (B, 20, 4, 4)
            nn.ReLU(),
            nn.Flatten(),  # (B, 320)
        )
        self.classifier = nn.Sequential(
            nn.Linear(count_features(self.features, input_shape), 50),  # (B, 50)
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(50, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.classifier(self.features(x))  # (B, num_classes)


class ExampleCNN(nn.Module):
    """The net of pytorch/examples, mnist: two convolutions without pooling between them, and two linear layers, with
    dropout of units; 1,199,882 parameters on MNIST. Returns logits."""

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], 32, 3),  # (B, 32, 26, 26)
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),  # (B, 64, 24, 24)
            nn.MaxPool2d(2),  # (B, 64, 12, 12); before the ReLU, which gives the same
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Flatten(),  # (B, 9216)
        )
        self.classifier = nn.Sequential(
            nn.Linear(count_features(self.features, input_shape), 128),  # (B, 128)
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.classifier(self.features(x))  # (B, num_classes)


class StackedCNN(nn.Module):
    """Groups of 3 x 3 convolutions that end in pooling, and two linear layers with dropout between them.

    The two nets of PyTorch's tutorial on knowledge distillation: ``[[128, 64], [64, 32]]`` with ``hidden_size=512`` has
    1,186,986 parameters on CIFAR-10, and ``[[16], [16]]`` with 256 has 267,738. Returns logits.

    Args:
        input_shape: ``(C, H, W)``.
        num_classes: number of logits.
        groups: channels of the convolutions in each group.
        hidden_size: width of the layer between features and logits.
        dropout: probability of its units to be left out.

    Raises:
        ValueError: the inputs are not images, or too small to be halved by each group.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        groups: Sequence[Sequence[int]] = ((16,), (16,)),
        hidden_size: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 2 ** len(groups):
            raise unsupported_inputs(
                f"a net that halves images {len(groups)} times takes images (channels, height, width)", input_shape
            )
        layers: list[nn.Module] = []
        channels = input_shape[0]
        for widths in groups:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.Flatten())  # (B, 32 * 8 * 8) on CIFAR-10
        self.classifier = nn.Sequential(
            nn.Linear(count_features(self.features, input_shape), hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.classifier(self.features(x))  # (B, num_classes)
