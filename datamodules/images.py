"""MNIST, Fashion-MNIST and CIFAR-10: uint8 in memory, normalized batch by batch."""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules import sources
from datamodules.batch_loader import Batch, derive_seed
from datamodules.image_files import load_image
from datamodules.in_memory import InMemoryDataModule
from datamodules.names import check_names
from datamodules.published import DATASETS


class ImageDataModule(InMemoryDataModule):
    """Images in memory, as uint8: by default a published data set from :mod:`datamodules.sources`.

    Args:
        root: directory of the data.
        mean: of each channel, in [0, 1], for ``(x / 255 - mean) / std``.
        std: of each channel.
        augment: augmentation of training images. ``none``; ``crop`` shifts them by up to 4 pixels, with zero padding;
            ``flip_crop`` also mirrors half of them, as is usual for CIFAR-10 (He et al. 2015, arXiv:1512.03385, section
            4.2); ``alternate`` mirrors a random half in the first epoch, the other half in the next, and so on, and
            shifts by up to 2 pixels with reflection padding (Jordan 2024, arXiv:2404.00498, section 3.6);
            ``flip_resize`` mirrors half of them and enlarges a random part of each, of 80 to 100 % of its area.
        **loading: see :class:`InMemoryDataModule`.
    """

    name = ""  # in published.DATASETS
    dark_background = False  # whether images show bright objects on black
    center = False  # whether the object is centered and scaled to a fixed size
    only_read = False  # whether nothing is downloaded to the root, nor written or removed there: a checkpoint names it

    def __init__(
        self,
        root: str | os.PathLike[str],
        mean: Sequence[float],
        std: Sequence[float],
        augment: str = "none",
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if augment not in ("none", "crop", "flip_crop", "alternate", "flip_resize"):
            raise ValueError(f"data.augment={augment} must be none, crop, flip_crop, alternate or flip_resize")
        self.augment = None if augment == "none" else functools.partial(self._augment, kind=augment)
        self._mirrored_first: Tensor | None = None  # bool (N,): the half that is mirrored in epoch 0, 2, ...
        channels = self.shape[0]
        if len(mean) != channels or len(std) != channels:
            raise ValueError(f"data.mean and data.std need one number for each of the {channels} channels")
        if not all(number > 0 for number in std):
            raise ValueError(f"data.std={list(std)} must be above 0")
        self.root = root
        self.mean, self.std = tuple(mean), tuple(std)
        self._mean, self._std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
        self.md5 = sources.md5_of(self.name) if self.name in DATASETS else None

    @classmethod
    def has_data(cls, root: str | os.PathLike[str]) -> bool:
        """Return whether a directory holds the whole published data set. Of other data it is not known."""
        return sources.has_data(cls.name, root) if cls.name in DATASETS else True

    def fitted_config(self) -> dict[str, Any]:
        root = os.path.realpath(self.root)  # a finished run is used from any directory
        check_names([root], "data.root")
        return {"root": root}

    def load(self) -> tuple[Batch, Batch]:
        return sources.load(self.name, self.root, self.only_read)

    def load_image(self, path: Path) -> tuple[Tensor, list[str]]:
        """Read an image file as this data set would store it, uint8 ``shape``. Also return what was done to it."""
        return load_image(path, self.shape, self.dark_background, self.center)

    def normalize(self, inputs: Tensor) -> Tensor:
        """Turn uint8 ``(B, C, H, W)`` into normalized float32, bit for bit as torchvision does."""
        mean, std = self._mean_and_std(inputs.device)
        return inputs.float().div_(255).sub_(mean).div_(std)

    def _augment(self, images: Tensor, generator: torch.Generator, epoch: int, indices: Tensor, kind: str) -> Tensor:
        if kind == "alternate":
            return flip_crop(images, generator, self._mirrored(epoch, indices), pad=2, reflect=True)
        if kind == "flip_resize":
            return flip_resized_crop(images, generator)
        return flip_crop(images, generator, flip=kind == "flip_crop")

    def _mirrored(self, epoch: int, indices: Tensor) -> Tensor:
        """Return which images to mirror, bool ``(B,)``: those that were not mirrored in the previous epoch."""
        if self._mirrored_first is None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, 0, 0, 0, 1))  # not used for anything else
            self._mirrored_first = torch.rand(len(self._parts[0][1]), generator=generator) < 0.5
        if self._mirrored_first.device != indices.device:
            self._mirrored_first = self._mirrored_first.to(indices.device)
        return self._mirrored_first[indices] ^ (epoch % 2 == 1)

    def to_uint8(self, inputs: Tensor) -> Tensor:
        """Undo :meth:`normalize`: return uint8 ``(B, C, H, W)`` to look at."""
        mean, std = self._mean_and_std(inputs.device)
        return inputs.mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def flip_crop(
    images: Tensor, generator: torch.Generator, flip: bool | Tensor = True, pad: int = 4, reflect: bool = False
) -> Tensor:
    """Mirror some images ``(B, C, H, W)`` and shift each by up to ``pad`` pixels each way, in one gather.

    Args:
        generator: on the CPU.
        flip: whether to mirror each with probability 1/2, or which ones to mirror, bool ``(B,)``.
        reflect: pad by reflection instead of zeros.
    """
    size, _, height, width = images.shape
    down, right = _to_device(torch.randint(2 * pad + 1, (2, size), generator=generator), images.device)
    mirrored = torch.rand(size, generator=generator) < 0.5
    if flip is not False:
        mirrored = flip if isinstance(flip, Tensor) else _to_device(mirrored, images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if reflect:  # by index, which works for uint8 on every device
        rows, columns = (_reflected(length, pad, images.device) for length in (height, width))
        padded = images.index_select(2, rows).index_select(3, columns)
    else:
        padded = torch.nn.functional.pad(images, [pad] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2 pad + 1, 2 pad + 1, H, W), a view
    return windows[torch.arange(size, device=images.device), :, down, right]


def flip_resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, uint8 ``(B, C, H, W)``, and enlarge a random part of each to the whole.

    A part has 80 to 100 % of the area, and .9 to 1.1 times the shape of a square. As torchvision's RandomHorizontalFlip
    and RandomResizedCrop with these bounds do with pictures.

    Args:
        generator: on the CPU.
    """
    count, _, *size = images.shape
    tries = (10, count)  # the first that fits is taken, else the whole image
    area = math.prod(size) * torch.empty(tries).uniform_(0.8, 1.0, generator=generator)
    ratio = torch.empty(tries).uniform_(math.log(0.9), math.log(1.1), generator=generator).exp()
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()]).round_()  # (2, 10, B), of y and x
    whole = torch.tensor(size)[:, None]
    fits = (sizes <= whole[..., None]).all(0)
    part = torch.where(fits.any(0), sizes[:, fits.int().argmax(0), torch.arange(count)], whole)  # (2, B)
    start = (torch.rand(2, count, generator=generator) * (whole - part + 1)).floor_()
    mirrored = torch.rand(count, generator=generator) < 0.5
    return resized_crop(images, *(_to_device(numbers, images.device) for numbers in (start, part, mirrored)))


def resized_crop(images: Tensor, start: Tensor, part: Tensor, mirrored: Tensor) -> Tensor:
    """Enlarge a part of each image, uint8 ``(B, C, H, W)``, to the whole, between its pixels by bilinear interpolation.

    Args:
        start: first row and first column of each part, ``(2, B)``.
        part: rows and columns of each part, ``(2, B)``.
        mirrored: which images to mirror, bool ``(B,)``.
    """
    places = []
    for size, first, length in zip(images.shape[2:], start, part, strict=True):
        centers = (torch.arange(size, device=images.device) + 0.5) / size
        inside = (centers * length[:, None]).clamp(0.5).minimum(length[:, None] - 0.5)
        pixels = first[:, None] + inside
        places.append(2 * pixels / size - 1)  # (B, size)
    y, x = places
    x = torch.where(mirrored[:, None], x.flip(1), x)
    grid = torch.stack([x[:, None].expand(-1, y.shape[1], -1), y[..., None].expand(-1, -1, x.shape[1])], -1)
    return torch.nn.functional.grid_sample(images.float(), grid, align_corners=False).round_().to(images.dtype)


def _to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, asynchronously if it is a CUDA device."""
    return numbers.to(device, non_blocking=device.type == "cuda")


def _reflected(length: int, pad: int, device: torch.device) -> Tensor:
    """Return the indices of a row padded by reflection: 2 1 0 1 2 3 2 1 for four pixels and a padding of two."""
    places = torch.arange(-pad, length + pad, device=device).abs()
    return length - 1 - (length - 1 - places).abs()


class MNIST(ImageDataModule):
    """Handwritten digits, 60,000 + 10,000 (LeCun, Cortes, Burges; http://yann.lecun.com/exdb/mnist)."""

    name, shape, num_classes = "mnist", (1, 28, 28), 10
    dark_background = center = True
    class_names = tuple("0123456789")


class FashionMNIST(ImageDataModule):
    """Pieces of clothing, 60,000 + 10,000 (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)."""

    name, shape, num_classes = "fashion_mnist", (1, 28, 28), 10
    dark_background = True
    class_names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class CIFAR10(ImageDataModule):
    """Small photographs, 50,000 + 10,000 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)."""

    name, shape, num_classes = "cifar10", (3, 32, 32), 10
    class_names = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
