"""Pairs of images, to learn which two show the same."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from datamodules.batch_loader import BatchLoader, derive_seed
from datamodules.image_files import load_image
from datamodules.images import MNIST


class PairLoader(BatchLoader):
    """Serves images in pairs: each is the first of one pair, and its partner is drawn from the served images.

    Inputs are two images on top of each other, ``(B, 2 * C, H, W)``. Targets are 1 where both are of one class and 0
    where they are not, int64 ``(B,)``. Every second pair is of one class, so a batch of even size has as many of one
    kind as of the other. An image is paired with itself only if there is no other of its class.

    The pairs, like the order, are a function of (seed, epoch). Without a seed they are always the same.
    """

    def _order(self) -> Tensor:
        """Return the pairs of this epoch, in order, as indices int64 ``(M, 2)``."""
        first = super()._order()
        seed = derive_seed(0) if self.seed is None else derive_seed(self.seed, self.epoch, 1)
        partners = draw_partners(self.targets[first].cpu(), torch.Generator().manual_seed(seed))
        return torch.stack([first, first[partners.to(first.device)]], 1)

    def _fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for pairs in batches:  # (B, 2)
            first, second = self.targets[pairs].unbind(1)
            yield pairs, self.inputs[pairs].flatten(1, 2), (first == second).long()


def draw_partners(classes: Tensor, generator: torch.Generator) -> Tensor:
    """Return a partner for each example, as positions int64 ``(M,)``: of its own class for every second one.

    Args:
        classes: of the examples, int64 ``(M,)``.
        generator: of the random numbers.
    """
    size = len(classes)
    by_class = classes.argsort(stable=True)  # the examples of each class side by side
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(size)
    counts = classes.bincount()
    count, start = counts[classes], (counts.cumsum(0) - counts)[classes]  # of the class of each example
    random = torch.rand(size, generator=generator, dtype=torch.float64)
    equal = start + (place - start + 1 + (random * (count - 1)).long()) % count
    different = (start + count + (random * (size - count)).long()) % size  # counted on from the end of the class
    return by_class[torch.where(torch.arange(size) % 2 == 0, equal, different)]


class MNISTPairs(MNIST):
    """Pairs of MNIST's digits, half of them equal. The pairs of training are drawn anew in every epoch.

    Those of validation and test are always the same. ``mean`` and ``std`` have a number for each of the two images.
    """

    shape, num_classes = (2, 28, 28), 2
    class_names = ("different", "equal")
    loader_class = PairLoader

    def _augment(self, images: Tensor, generator: torch.Generator, epoch: int, indices: Tensor, kind: str) -> Tensor:
        single = super()._augment(images.flatten(0, 1)[:, None], generator, epoch, indices.flatten(), kind)
        return single.view_as(images)

    def to_uint8(self, inputs: Tensor) -> Tensor:
        """Return the images of each pair side by side, a white line between them, uint8 ``(B, 1, H, 2 * W + 1)``."""
        first, second = super().to_uint8(inputs).chunk(2, 1)
        return torch.cat([first, torch.full_like(first[..., :1], 255), second], 3)

    def load_image(self, path: Path) -> tuple[Tensor, list[str]]:
        """Read one image of a pair, uint8 ``(1, H, W)``. Also return what was done to it."""
        return load_image(path, MNIST.shape, self.dark_background, self.center)
