"""Data that is generated, or listed in the config: no download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.csv_file import CSVFile
from datamodules.in_memory import Batch, InMemoryDataModule
from runs.format import check_positive_int


class Table(InMemoryDataModule):
    """A few examples with one input and one target number each, used for training and test alike.

    Args:
        inputs: one number per example.
        targets: one number per example.
        scale: the inputs are multiplied by it.
        **loading: see :class:`InMemoryDataModule`.
    """

    shape, num_classes = (1,), 1

    def __init__(self, inputs: Sequence[float], targets: Sequence[float], scale: float = 1.0, **loading: Any) -> None:
        super().__init__(**loading)
        if len(inputs) != len(targets):
            raise ValueError(f"data.inputs has {len(inputs)} numbers and data.targets has {len(targets)}")
        self.inputs, self.targets, self.scale = inputs, targets, scale

    def load(self) -> tuple[Batch, Batch]:
        columns = torch.tensor(self.inputs)[:, None], torch.tensor(self.targets)[:, None]
        return columns, columns

    def normalize(self, inputs: Tensor) -> Tensor:
        return self.scale * inputs


class Generated(InMemoryDataModule):
    """Two classes drawn at random. The test set is drawn after the training set.

    Args:
        size: examples in the training set and in the test set, both classes together.
        data_seed: seed of the examples, independent of the run's seed.
        **loading: see :class:`InMemoryDataModule`.
    """

    num_classes = 2

    def __init__(self, size: int, data_seed: int = 0, **loading: Any) -> None:
        super().__init__(**loading)
        if size < 2:
            raise ValueError(f"data.size={size} must be at least 2")
        self.size, self.data_seed = size, data_seed

    def load(self) -> tuple[Batch, Batch]:
        generator = torch.Generator().manual_seed(self.data_seed)
        return self.draw(generator), self.draw(generator)

    def draw(self, generator: torch.Generator) -> Batch:
        """Return inputs, float32 ``(size, *shape)``, and classes, int64 ``(size,)``."""
        raise NotImplementedError


class Blobs(Generated):
    """Gaussian clouds in the plane, std 1: half of the points around (2, 2), class 0, half around (-2, -2), class 1."""

    shape, class_names = (2,), ("blob at (2, 2)", "blob at (-2, -2)")

    def draw(self, generator: torch.Generator) -> Batch:
        targets = (torch.arange(self.size) >= self.size // 2).long()
        centers = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])[targets]
        return centers + torch.randn(centers.shape, generator=generator), targets


class Separable(Generated):
    """Points in the plane on the two sides of the line x + y = 0, each at least 0.5 away from it."""

    shape, class_names = (2,), ("below", "above")

    def draw(self, generator: torch.Generator) -> Batch:
        normal = torch.tensor([0.5, 0.5]).sqrt()
        points = torch.randn(self.size, 2, generator=generator)
        side = points @ normal
        points += (0.5 * side.sign())[:, None] * normal
        return points, (side > 0).long()


class XOR(Generated):
    """Points in the plane around (0, 0) and (1, 1), class 0, and around (0, 1) and (1, 0), class 1.

    The continuous XOR of the UvA deep learning course, tutorial 2.

    Args:
        size: points in the training set.
        test_size: points in the test set.
        noise: its standard deviation in each direction.
        **drawing: see :class:`Generated`.
    """

    shape, class_names = (2,), ("equal", "different")

    def __init__(self, size: int, test_size: int, noise: float, **drawing: Any) -> None:
        super().__init__(size, **drawing)
        check_positive_int("data.test_size", test_size)
        if not noise >= 0:
            raise ValueError(f"data.noise={noise} must be at least 0")
        self.test_size, self.noise = test_size, noise

    def load(self) -> tuple[Batch, Batch]:
        generator = torch.Generator().manual_seed(self.data_seed)
        return self.draw(generator), self.draw(generator, self.test_size)

    def draw(self, generator: torch.Generator, size: int | None = None) -> Batch:
        corners = torch.randint(2, (size or self.size, 2), generator=generator)
        return corners + self.noise * torch.randn(corners.shape, generator=generator), corners[:, 0] ^ corners[:, 1]


class Tabular(Generated):
    """Rows of 8 standard normal features; the class is the side of a curved surface that a row lies on."""

    shape, class_names = (8,), ("negative", "positive")

    def draw(self, generator: torch.Generator) -> Batch:
        rows = torch.randn(self.size, 8, generator=generator)
        slopes = torch.linspace(-1, 1, 8)
        return rows, ((rows @ slopes + 0.5 * rows[:, 0] * rows[:, 1]) > 0).long()


class Sines(InMemoryDataModule):
    """Sine waves of one frequency, each shifted at random. The target of each number is the next one.

    A wave is ``sin((t + shift) / scale)`` for t = 0, 1, …, with a whole number from ``-4 scale`` to ``4 scale - 1`` as
    its shift. The first waves are the test set.

    Args:
        size: waves, in training and test together.
        test_size: waves in the test set.
        length: numbers in a wave. An input lacks the last of them, and its target the first.
        scale: steps in a radian; a period has 2 pi times as many.
        data_seed: seed of the shifts, independent of the run's seed.
        **loading: see :class:`InMemoryDataModule`.
    """

    def __init__(self, size: int, test_size: int, length: int, scale: int, data_seed: int = 0, **loading: Any) -> None:
        super().__init__(**loading)
        for name, value in (("size", size), ("test_size", test_size), ("length", length), ("scale", scale)):
            check_positive_int(f"data.{name}", value)
        if test_size >= size:
            raise ValueError(f"data.test_size={test_size} must be below data.size={size}")
        if length < 3:
            raise ValueError(f"data.length={length} must be at least 3")
        self.size, self.test_size, self.length, self.scale, self.data_seed = size, test_size, length, scale, data_seed
        self.shape, self.num_classes = (length - 1,), length - 1

    def load(self) -> tuple[Batch, Batch]:
        # numpy's old generator, of which numpy promises that it always gives the same numbers
        shifts = np.random.RandomState(self.data_seed).randint(-4 * self.scale, 4 * self.scale, self.size)
        waves = torch.from_numpy(np.sin((np.arange(self.length) + shifts[:, None]) / self.scale))  # float64
        if self.trainer is None or self.trainer.precision != "64-true":
            waves = waves.float()
        inputs, targets = waves[:, :-1], waves[:, 1:]
        test = slice(self.test_size)
        train = slice(self.test_size, None)
        return (inputs[train], targets[train]), (inputs[test], targets[test])

    def read_rows(self, path: Path) -> tuple[list[str], Tensor]:
        """Return the rows of a CSV file, series of any length, as text and as inputs, float32 ``(N, columns)``."""
        table = CSVFile(path, names=())
        return table.lines_of_text(), torch.from_numpy(table.matrix(table.header)).float()


class OneRandom(InMemoryDataModule):
    """One image and one target vector, both standard normal: enough for a single gradient step.

    Args:
        image: shape ``(C, H, W)`` of the image.
        outputs: length of the target.
        data_seed: seed of the numbers, independent of the run's seed.
        **loading: see :class:`InMemoryDataModule`.
    """

    def __init__(self, image: Sequence[int], outputs: int, data_seed: int = 0, **loading: Any) -> None:
        super().__init__(**loading)
        self.shape, self.num_classes, self.data_seed = tuple(image), outputs, data_seed

    def load(self) -> tuple[Batch, Batch]:
        generator = torch.Generator().manual_seed(self.data_seed)
        example: tuple[Tensor, Tensor] = (
            torch.randn(1, *self.shape, generator=generator),
            torch.randn(1, self.num_classes, generator=generator),
        )
        return example, example
