"""Data that fits in memory, served as whole batches cut from one tensor: no worker, no per-example Python."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, torch.Generator, int, Tensor], Tensor]  # inputs, generator, epoch, indices


class BatchLoader:
    """Yields ``(normalize(inputs[i]), targets[i])`` for one batch of indices ``i`` after the other.

    Lightning takes it as it is: sized, with a place that it keeps (``state_dict``) and a ``sampler`` that is told the
    epoch. The order is a function of (seed, epoch), so a resumed run sees the batches it would have seen.

    Args:
        inputs: ``(N, ...)``; targets: ``(N, ...)``, on the device that computes.
        indices: the examples to serve, int64 ``(M,)``.
        batch_size: examples per step and process; the last batch holds what is left.
        normalize: applied to each batch of inputs (normalisation).
        augment: applied before that, with a generator that is a function of (seed, epoch, batch), the epoch and the
            indices of the examples.
        seed: shuffles anew in every epoch; None keeps the order of ``indices``.
        rank, world_size: this process's share of each global batch of ``batch_size * world_size`` examples.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        indices: Tensor,
        batch_size: int,
        normalize: Callable[[Tensor], Tensor] | None = None,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        augment: Augment | None = None,
    ) -> None:
        self.inputs, self.targets, self.indices = inputs, targets, indices
        self.batch_size, self.normalize, self.seed = batch_size, normalize, seed
        self.rank, self.world_size, self.augment = rank, world_size, augment
        self.epoch = 0
        self._position = (0, 0)  # the epoch that is being served, and the batches of it that were

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        # A generator, because Lightning calls iter() once before it says which epoch it is: the work starts at next().
        order = self._order()
        epoch, start = self._position
        if epoch != self.epoch or start == len(self):
            start = 0
        global_batch = self.batch_size * self.world_size
        batches = list(order[start * global_batch :].split(global_batch))
        if self.world_size > 1:
            batches = [index.tensor_split(self.world_size)[self.rank] for index in batches]
        for number, (index, inputs, targets) in enumerate(self._fetch(batches), start):
            if self.augment is not None:
                generator = torch.Generator().manual_seed(derive_seed(self.seed or 0, self.epoch, number, self.rank))
                inputs = self.augment(inputs, generator, self.epoch, index)
            self._position = (self.epoch, number + 1)
            yield inputs if self.normalize is None else self.normalize(inputs), targets

    def _fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each batch of indices, in turn, with the stored inputs and the targets."""
        for index in batches:
            yield index, self.inputs.index_select(0, index), self.targets.index_select(0, index)

    def _order(self) -> Tensor:
        if self.seed is None:
            return self.indices
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        permutation = torch.randperm(len(self.indices), generator=generator)
        return self.indices[permutation.to(self.indices.device)]

    @property
    def sampler(self) -> "BatchLoader":
        return self  # where Lightning looks for set_epoch

    batch_sampler = None  # where it looks first

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._position[0], "batch": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = (state["epoch"], state["batch"])


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers, so that (1, 2) and (2, 1) are strangers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def check_fractions(**shares: float) -> None:
    """Raises ValueError for a ``val_size`` or ``test_size`` that is no share."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"data.{name}={share} is a share of the examples: at least 0 and below 1")


class InMemoryDataModule(pl.LightningDataModule):
    """Base of the data sets that fit in memory. A subclass fills in :meth:`load` and says what it feeds.

    Args:
        batch_size: training examples per step and process; None takes all of them at once.
        eval_batch_size: examples per step in validation and test, where it changes the speed replicate.
        val_size: examples held out of the training set by a fixed permutation (the same for every seed).
        folds: parts of that permutation for cross-validation; the part ``fold`` is held out instead of ``val_size``.
        fold: 0 to folds - 1.
        validate_on: ``val`` for those, ``test`` for the test set, as tutorials do that hold nothing out, or ``train``.
        seed: of the order of the training examples.
        shuffle: whether that order changes; a full batch does not need it.

    Raises:
        ValueError: a size that cannot be.
    """

    shape: tuple[int, ...]  # of one input, as the net sees it
    num_classes: int  # numbers that the net is to give for one input
    class_names: tuple[str, ...] = ()
    augment: Augment | None = None  # of a batch of training inputs; never for validation or test

    def __init__(
        self,
        batch_size: int | None = 128,
        eval_batch_size: int = 1000,
        val_size: int = 0,
        validate_on: str = "val",
        seed: int = 1,
        shuffle: bool = True,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"data.{name}={value} must be a whole number of at least 1")
        if validate_on not in ("val", "test", "train"):
            raise ValueError(f"data.validate_on={validate_on} must be val, test or train")
        if folds is not None:
            if not isinstance(folds, int) or folds < 2:
                raise ValueError(f"data.folds={folds} must be a whole number of at least 2")
            if not isinstance(fold, int) or not 0 <= fold < folds:
                raise ValueError(f"data.fold={fold} must be a whole number from 0 to {folds - 1}")
            if validate_on != "val":
                raise ValueError(f"data.folds goes with data.validate_on=val, not with {validate_on}")
        self.folds, self.fold = folds, fold
        self.batch_size, self.eval_batch_size, self.val_size = batch_size, eval_batch_size, val_size
        self.validate_on, self.seed, self.shuffle = validate_on, seed, shuffle
        self.test_split = "test"  # what test_dataloader serves; evaluate.py may ask for val or train
        self._parts: list[tuple[Any, Tensor]] = []  # training set, test set: inputs or files, and targets

    def load(self) -> tuple[Batch, Batch]:
        """The examples for training and for the test: ``((inputs, targets), (inputs, targets))``."""
        raise NotImplementedError

    def normalize(self, inputs: Tensor) -> Tensor:
        """What the net sees, from a batch of what is stored."""
        return inputs

    def denormalize_targets(self, predictions: Tensor) -> Tensor:
        """Predictions, or targets, in the units of the data where others are learned."""
        return predictions

    def to_uint8(self, inputs: Tensor) -> Tensor:
        """What the net saw as uint8 ``(B, C, H, W)`` to look at, each image from its least number to its greatest."""
        low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
        return ((inputs - low) / (high - low).clamp_min(1e-9)).mul_(255).round_().to(torch.uint8)

    def fitted_config(self) -> dict[str, Any]:
        """Settings that files gave. The config of a run holds them: what asks the run does not need the files."""
        return {}

    def setup(self, stage: str | None = None) -> None:
        if self._parts:
            return
        self._parts = list(self.load())
        size = len(self._parts[0][1])
        if not isinstance(self.val_size, int) or not 0 <= self.val_size < size:
            raise ValueError(
                f"data.val_size={self.val_size} must be between 0 and {size - 1}: there are {size} examples"
            )
        order = torch.arange(size)
        if self.val_size or self.folds:
            # Not seeded by `seed`: runs with different seeds are compared on the same examples.
            order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        self.val_indices, self.train_indices = self._split_off(order, self.val_size)

    def _split_off(self, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Indices for validation, the first ``size`` or a fold, and the rest for training."""
        if self.folds is None:
            return order[:size], order[size:]
        if self.folds > len(order):
            raise ValueError(f"data.folds={self.folds}: there are only {len(order)} examples")
        parts = list(order.tensor_split(self.folds))
        return parts.pop(self.fold), torch.cat(parts)

    def _random_split(
        self, indices: Tensor, share: float, generator: torch.Generator, validation: bool = True
    ) -> tuple[Tensor, Tensor]:
        """A share of the indices at random, for validation a fold if there are folds, and the rest; both in order."""
        order = indices[torch.randperm(len(indices), generator=generator)]
        size = round(share * len(order))
        held_out, rest = self._split_off(order, size) if validation else (order[:size], order[size:])
        return held_out.sort().values, rest.sort().values

    def state_dict(self) -> dict[str, int]:
        """What the place in an epoch and the schedule of a run are counted in, and how many examples it learns from."""
        examples = len(self.train_indices)
        processes, batches = (self.trainer.world_size, self.trainer.accumulate_grad_batches) if self.trainer else (1, 1)
        return {
            "batch": min((self.batch_size or examples) * processes, examples),
            "batches": batches,
            "examples": examples,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ValueError where a run cannot go on with what is here."""
        units = {
            "batch": "examples in a batch (data.batch_size, times the processes)",
            "batches": "batches in a step (trainer.accumulate_grad_batches)",
            "examples": "examples to learn from",
        }
        for name, now in self.state_dict().items():
            if now != state.get(name, now):
                were = f"{units[name]}: {state[name]} in this run, and now {now}"
                raise ValueError(f"resume: {were}, which cannot be changed in the middle")

    def train_dataloader(self) -> BatchLoader:
        return self._make_loader(0, self.train_indices, self.batch_size, training=True)

    def val_dataloader(self) -> BatchLoader | list[Batch]:
        return self._eval_dataloader(self.validate_on)

    def test_dataloader(self) -> BatchLoader | list[Batch]:
        """All of it in every process: what looks at the single predictions has them all, and none is counted twice."""
        return self._eval_dataloader(self.test_split, replicate=True)

    def first_inputs(self, size: int) -> Tensor:
        """The first training inputs as the net sees them, none of them augmented: for what is made from the data."""
        loader = self._make_loader(0, self.train_indices[:size], size)
        loader.rank, loader.world_size = 0, 1  # the same in every process
        return next(iter(loader))[0]

    def _eval_dataloader(self, split: str, replicate: bool = False) -> BatchLoader | list[Batch]:
        """All examples of a split, in their order."""
        test_indices = torch.arange(len(self._parts[1][1]))
        indices = {"train": self.train_indices, "val": self.val_indices, "test": test_indices}[split]
        if not len(indices):
            return []
        loader = self._make_loader(int(split == "test"), indices, self.eval_batch_size)
        if replicate:
            loader.rank, loader.world_size = 0, 1
        return loader

    def _make_loader(self, part: int, indices: Tensor, batch_size: int | None, training: bool = False) -> BatchLoader:
        device = self._device()
        inputs, targets = self._parts[part]
        inputs, targets = self._parts[part] = inputs.to(device), targets.to(device)
        return BatchLoader(
            inputs, targets, indices.to(device), batch_size or len(indices), **self._loader_options(training)
        )

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _loader_options(self, training: bool) -> dict[str, Any]:
        """What all loaders of this data set have in common."""
        serving: dict[str, Any] = {"normalize": self.normalize}
        if self.trainer is not None:
            serving |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        if training:
            serving |= {"seed": self.seed if self.shuffle else None, "augment": self.augment}
        return serving
