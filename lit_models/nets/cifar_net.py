"""The net of the CIFAR-10 speedruns."""

import functools
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.nets.errors import unsupported_inputs


class CifarNet(nn.Module):
    """Whitened patches, three groups of convolutions and a linear layer (Jordan 2024, arXiv:2404.00498, section 3);
    1,972,792 parameters on CIFAR-10. Returns logits; in evaluation the weighted mean over six views of each image.

    Args:
        input_shape: ``(C, H, W)``, 9 x 9 pixels or more.
        num_classes: number of logits.
        widths: channels of each group.
        tta: whether evaluation looks at more than the image itself (test-time augmentation). It then takes six times as
            long.

    Raises:
        ValueError: the inputs are not images, or too small.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, widths: Sequence[int] = (64, 256, 256), tta: bool = True
    ) -> None:
        least = 2 ** len(widths) + 1  # each group halves what the whitening leaves
        if len(input_shape) != 3 or min(input_shape[1:]) < least:
            raise unsupported_inputs(f"CifarNet takes images of at least {least} x {least} pixels", input_shape)
        super().__init__()
        self.tta = tta
        channels = input_shape[0]
        self.whitening = nn.Conv2d(channels, 8 * channels, 2)  # each direction of the 2 x 2 patches, with both signs
        self.whitening.weight.requires_grad_(False)
        self.groups = nn.Sequential(*itertools.starmap(ConvGroup, itertools.pairwise([8 * channels, *widths])))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        features = self.features(x) if self.training or not self.tta else self.tta_features(x)
        return self.head(features) / 9  # (B, num_classes)

    def features(self, x: Tensor) -> Tensor:  # (B, 3, 32, 32)
        x = F.gelu(self.whitening(x))  # (B, 24, 31, 31)
        x = self.groups(x)  # (B, 256, 3, 3)
        return F.max_pool2d(x, x.shape[2:]).flatten(1)  # (B, 256); compiled amax has gradients of NaN in bfloat16

    def tta_features(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        """Return the weighted mean of the features of six views.

        The logits of that mean are the mean of the logits: the last layer has no bias.
        """
        height, width = x.shape[2:]
        padded = F.pad(x, [1] * 4, mode="reflect")
        up_left, down_right = padded[..., :height, :width], padded[..., 2:, 2:]
        views = ((0.25, x), (0.125, up_left), (0.125, down_right))
        parts = (weight * (self.features(view) + self.features(view.flip(3))) for weight, view in views)
        return functools.reduce(torch.add, parts)  # (B, 256)

    @torch.no_grad()
    def init_whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Make the outputs of the first layer for the 2 x 2 patches of ``images`` uncorrelated, with mean square 1.

        Each filter is an eigenvector of the patches' second moments, divided by the root of its eigenvalue.

        Args:
            images: ``(N, C, H, W)``.
            eps: added to the eigenvalues.
        """
        moments = torch.zeros(())
        for part in images.split(500):
            patches = F.unfold(part.float(), 2)  # (500, 4 C, places)
            moments = moments + (patches @ patches.mT).sum(0) / (len(images) * patches.shape[2])
        values, vectors = torch.linalg.eigh(moments.cpu().double())  # too small for a GPU
        # The sign of an eigenvector is arbitrary, and differs from one processor to the next.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        filters = (vectors / (values + eps).sqrt()).T.unflatten(1, (-1, 2, 2))  # (4 C, C, 2, 2)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))


class ConvGroup(nn.Module):
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
    # The first output channels are the input channels. Those beyond start at random.
    nn.init.dirac_(convolution.weight.data[:channels])
    return convolution


def _batch_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)  # with only 200 steps torch's 0.1 is too slow
    norm.weight.requires_grad_(False)  # stays 1
    return norm
