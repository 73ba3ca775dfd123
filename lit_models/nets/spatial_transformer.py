"""A net that first turns, shifts and scales its images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.nets.cnn import DropoutCNN, count_features
from lit_models.nets.errors import unsupported_inputs


class SpatialTransformer(nn.Module):
    """A :class:`DropoutCNN` behind an affine map of the image that a small net chooses for each image.

    Jaderberg et al. 2015, arXiv:1506.02025, section 3, as in PyTorch's tutorial; 27,360 parameters on MNIST. The map
    starts as the identity. Returns logits.

    Args:
        input_shape: ``(C, H, W)``, 28 x 28 pixels or more.
        num_classes: number of logits.

    Raises:
        ValueError: the inputs are not images, or too small.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 28:
            raise unsupported_inputs("a spatial transformer takes images of at least 28 x 28 pixels", input_shape)
        features = nn.Sequential(
            nn.Conv2d(input_shape[0], 8, 7),  # (B, 8, 22, 22) of an image of 28 x 28
            nn.MaxPool2d(2),  # (B, 8, 11, 11)
            nn.ReLU(),
            nn.Conv2d(8, 10, 5),  # (B, 10, 7, 7)
            nn.MaxPool2d(2),  # (B, 10, 3, 3)
            nn.ReLU(),
            nn.Flatten(),  # (B, 90)
        )
        last = nn.Linear(32, 6)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])  # the identity
        self.localization = nn.Sequential(
            features, nn.Linear(count_features(features, input_shape), 32), nn.ReLU(), last
        )
        self.classifier = DropoutCNN(input_shape, num_classes)

    def transform(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        """Return the images as the classifier sees them, of the same shape."""
        maps = self.localization(x).unflatten(1, (2, 3))  # (B, 2, 3)
        grid = F.affine_grid(maps, list(x.shape), align_corners=False)  # (B, H, W, 2)
        return F.grid_sample(x, grid, align_corners=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.classifier(self.transform(x))  # (B, num_classes)
