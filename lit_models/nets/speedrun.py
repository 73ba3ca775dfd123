"""The net of the CIFAR-10 speedruns."""

import functools
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpeedrunNet(nn.Module):
    """Whitened patches, three groups of convolutions and a linear layer (Jordan 2024, arXiv:2404.00498, section 3);
    1,972,792 parameters on CIFAR-10. Returns logits; in evaluation those of six views of each image, weighted.

    Args:
        shape, num_classes: of the images, of 9 x 9 pixels or more, and of the answer.
        widths: channels of each group.
        views: whether evaluation looks at more than the image as it is. It then takes six times as long.
    """

    def __init__(
        self, shape: Sequence[int], num_classes: int, widths: Sequence[int] = (64, 256, 256), views: bool = True
    ) -> None:
        least = 2 ** len(widths) + 1  # each group halves what the whitening leaves
        if len(shape) != 3 or min(shape[1:]) < least:
            raise ValueError(
                f"SpeedrunNet takes images of at least {least} x {least} pixels, not inputs of shape {tuple(shape)}; "
                "model=mlp takes any inputs"
            )
        super().__init__()
        self.views = views
        self.whitening = nn.Conv2d(shape[0], 8 * shape[0], 2)  # each direction of the 2 x 2 patches with both signs
        self.whitening.weight.requires_grad_(False)
        self.groups = nn.Sequential(*itertools.starmap(Group, itertools.pairwise([8 * shape[0], *widths])))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        features = self.features(x) if self.training or not self.views else self.features_of_views(x)
        return self.head(features) / 9  # (B, num_classes)

    def features(self, x: Tensor) -> Tensor:  # (B, 3, 32, 32)
        x = F.gelu(self.whitening(x))  # (B, 24, 31, 31)
        return self.groups(x).amax((2, 3))  # (B, 256, 3, 3), then (B, 256)

    def features_of_views(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        """Weighted means, which are the same of features and of logits: the last layer has no bias."""
        height, width = x.shape[2:]
        padded = F.pad(x, [1] * 4, mode="reflect")
        up_left, down_right = padded[..., :height, :width], padded[..., 2:, 2:]
        views = ((0.25, x), (0.125, up_left), (0.125, down_right))
        parts = (weight * (self.features(view) + self.features(view.flip(3))) for weight, view in views)
        return functools.reduce(torch.add, parts)  # (B, 256)

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Makes the first layer's answers to the 2 x 2 patches of ``images`` ``(N, C, H, W)`` uncorrelated, of mean
        square 1: each filter is an eigenvector of the patches' second moments over the root of its eigenvalue."""
        moments = torch.zeros(())
        for part in images.split(500):
            patches = F.unfold(part.float(), 2)  # (500, 4 C, places)
            moments = moments + (patches @ patches.mT).sum(0) / (len(images) * patches.shape[2])
        values, vectors = torch.linalg.eigh(moments.cpu().double())  # too small for a GPU
        filters = (vectors / (values + eps).sqrt()).T.unflatten(1, (-1, 2, 2))  # (4 C, C, 2, 2)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))


class Group(nn.Module):
    """Two convolutions, the second on a quarter of the pixels, each with batch norm and GELU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(channels, width), _batch_norm(width)
        self.conv2, self.norm2 = _convolution(width, width), _batch_norm(width)

    def forward(self, x: Tensor) -> Tensor:  # (B, channels, H, W)
        x = F.max_pool2d(self.conv1(x), 2)  # (B, width, H / 2, W / 2)
        x = F.gelu(self.norm1(x))
        return F.gelu(self.norm2(self.conv2(x)))  # (B, width, H / 2, W / 2)


def _convolution(channels: int, width: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:channels])  # hands on what comes in; channels beyond that start at random
    return convolution


def _batch_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)  # 200 steps are few for torch's 0.1
    norm.weight.requires_grad_(False)  # stays 1
    return norm
