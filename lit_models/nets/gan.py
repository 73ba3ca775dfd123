"""Generators, which make images from latent vectors, and discriminators, which return the logit of "real".

Shapes in the comments are those for a 28 x 28 gray image.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLPGenerator(nn.Sequential):
    """Linear layers with batch norm and leaky ReLU, and tanh at the end; 1,510,032 parameters for a 28 x 28 gray image.

    As in Lightning's basic-gan tutorial: each layer is twice as wide as the one before, the first one has no batch
    norm, and the epsilon of batch norm is 0.8 (there the second argument of BatchNorm1d).

    Args:
        latent_dim: numbers in a latent vector.
        output_shape: ``(C, H, W)``.
        hidden_sizes: widths of the layers.
    """

    def __init__(
        self, latent_dim: int, output_shape: Sequence[int], hidden_sizes: Sequence[int] = (128, 256, 512, 1024)
    ) -> None:
        layers: list[nn.Module] = []
        fan_in = latent_dim
        for width in hidden_sizes:
            norm = [nn.BatchNorm1d(width, eps=0.8)] if layers else []
            layers += [nn.Linear(fan_in, width), *norm, nn.LeakyReLU(0.2, inplace=True)]
            fan_in = width
        layers += [nn.Linear(fan_in, math.prod(output_shape)), nn.Tanh(), nn.Unflatten(1, tuple(output_shape))]
        super().__init__(*layers)

    def forward(self, latents: Tensor) -> Tensor:  # (B, latent_dim)
        return super().forward(latents)  # (B, *output_shape), from -1 to 1


class MLPDiscriminator(nn.Sequential):
    """Linear layers with leaky ReLU; 533,505 parameters for a 28 x 28 gray image.

    Args:
        input_shape: ``(C, H, W)``.
        hidden_sizes: widths of the layers.
    """

    def __init__(self, input_shape: Sequence[int], hidden_sizes: Sequence[int] = (512, 256)) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        fan_in = math.prod(input_shape)
        for width in hidden_sizes:
            layers += [nn.Linear(fan_in, width), nn.LeakyReLU(0.2, inplace=True)]
            fan_in = width
        super().__init__(*layers, nn.Linear(fan_in, 1))

    def forward(self, images: Tensor) -> Tensor:  # (B, *input_shape)
        return super().forward(images)  # (B, 1)


class DCGANGenerator(nn.Sequential):
    """Transposed convolutions with batch norm and ReLU, and tanh at the end (Radford et al. 2015, arXiv:1511.06434).

    The images grow from 4 x 4 pixels and double in size with each layer, while the channels halve. For 64 x 64 pixels
    and ``width=64`` it is the net of pytorch/examples, dcgan: 3,576,704 parameters with three channels. Smaller images
    need fewer layers; an odd size, such as 7 on the way to 28, takes a kernel of 3 in place of 4.

    Args:
        latent_dim: numbers in a latent vector.
        output_shape: ``(C, H, W)``, with H = W.
        width: channels before the last layer.
    """

    def __init__(self, latent_dim: int, output_shape: Sequence[int], width: int = 64) -> None:
        channels, *sizes = output_shape[0], *_halved(output_shape)[::-1]  # 4, 7, 14, 28
        widths = [width * 2**power for power in reversed(range(len(sizes) - 1))]  # 4, 2 and 1 times the width
        layers: list[nn.Module] = [nn.Unflatten(1, (latent_dim, 1, 1))]
        layers += _normalized(nn.ConvTranspose2d(latent_dim, widths[0], sizes[0], bias=False))  # (B, 256, 4, 4)
        for fan_in, fan_out, size in zip(widths, widths[1:], sizes[1:], strict=False):
            convolution = nn.ConvTranspose2d(fan_in, fan_out, 4 - size % 2, 2, 1, bias=False)
            layers += _normalized(convolution)  # (B, 128, 7, 7) and (B, 64, 14, 14)
        layers += [nn.ConvTranspose2d(width, channels, 4 - sizes[-1] % 2, 2, 1, bias=False), nn.Tanh()]
        super().__init__(*layers)
        self.apply(_initialize)

    def forward(self, latents: Tensor) -> Tensor:  # (B, latent_dim)
        return super().forward(latents)  # (B, C, H, W), from -1 to 1


class DCGANDiscriminator(nn.Sequential):
    """The mirror image of :class:`DCGANGenerator`, with leaky ReLU and no batch norm in the first layer.

    For 64 x 64 pixels in three channels and ``width=64``: 2,765,568 parameters.

    Args:
        input_shape: ``(C, H, W)``, with H = W.
        width: channels after the first layer.
    """

    def __init__(self, input_shape: Sequence[int], width: int = 64) -> None:
        channels, *sizes = input_shape[0], *_halved(input_shape)  # 28, 14, 7, 4
        widths = [width * 2**power for power in range(len(sizes) - 1)]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 4 - sizes[0] % 2, 2, 1, bias=False),  # (B, 64, 14, 14)
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for fan_in, fan_out, size in zip(widths, widths[1:], sizes[1:], strict=False):
            convolution = nn.Conv2d(
                fan_in, fan_out, 4 - size % 2, 2, 1, bias=False
            )  # (B, 128, 7, 7) and (B, 256, 4, 4)
            layers += [convolution, nn.BatchNorm2d(fan_out), nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, sizes[-1], bias=False), nn.Flatten())
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        return super().forward(images)  # (B, 1)


def _halved(shape: Sequence[int]) -> list[int]:
    """Return the sizes of an image that is halved, and rounded up, until it has at most 4 pixels on a side."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] <= 4:
        raise ValueError(
            f"a DCGAN takes square images (channels, size, size) of more than 4 pixels, not inputs of shape "
            f"{tuple(shape)}; model=gan takes any images"
        )
    sizes = [shape[1]]
    while sizes[-1] > 4:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _normalized(convolution: nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


def _initialize(layer: nn.Module) -> None:
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1, 0.02)
        nn.init.zeros_(layer.bias)
