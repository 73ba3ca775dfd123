"""Data that is made or written down here: nothing to download."""

import torch

from datamodules.in_memory import Batch, InMemoryDataModule


class Blobs(InMemoryDataModule):
    """Two Gaussian clouds in the plane, std 1: class 0 around (2, 2), class 1 around (-2, -2).

    Args:
        size: points per class, in training and in the test set.
        data_seed: of the points; the test set is drawn after the training set.
        **batches: see :class:`InMemoryDataModule`.
    """

    shape, num_classes, class_names = (2,), 2, ("blob at (2, 2)", "blob at (-2, -2)")

    def __init__(self, size: int = 100, data_seed: int = 0, **batches) -> None:
        super().__init__(**batches)
        if size < 1:
            raise ValueError(f"data.size={size} must be at least 1")
        self.size, self.data_seed = size, data_seed

    def load(self) -> tuple[Batch, Batch]:
        generator = torch.Generator().manual_seed(self.data_seed)
        targets = torch.arange(2).repeat_interleave(self.size)
        centres = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])[targets]
        train, test = (centres + torch.randn(centres.shape, generator=generator) for _ in range(2))
        return (train, targets), (test, targets)
