"""The base class of all datamodules: splits, cross-validation, loaders, and what is fixed on resume."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from datamodules.batch_loader import Augment, BatchLoader
from datamodules.batch_loader import Batch as Batch  # for datamodules that import it from here
from datamodules.csv_file import CSVFile, is_number
from runs.format import check_positive_int, pluralize

log = logging.getLogger(__name__)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_fractions(**fractions: float) -> None:
    """Raise ValueError for a ``val_size`` or ``test_size`` that is not a fraction in [0, 1)."""
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"data.{name}={fraction} must be a fraction of the examples: at least 0 and below 1")


class InMemoryDataModule(pl.LightningDataModule):
    """A data set in memory. A subclass implements :meth:`load` and sets ``shape`` and ``num_classes``.

    Args:
        batch_size: training examples per step and process; None takes all of them at once.
        eval_batch_size: examples per step in validation and test. It changes the speed, not the results.
        val_size: examples held out of the training set by a fixed permutation, the same for every seed.
        folds: number of parts of that permutation for cross-validation: part ``fold`` is held out instead.
        fold: number of the part, 0 to folds - 1.
        validate_on: ``val`` for the held-out examples, ``test`` for the test set, as in tutorials that hold nothing
            out, or ``train``.
        seed: seed of the order of the training examples.
        shuffle: whether the order changes from epoch to epoch. A full batch does not need it.
        drop_last: whether to leave out the last training batch of an epoch where it is smaller than the others.

    Raises:
        ValueError: a setting is out of range.
    """

    shape: tuple[int, ...]  # of one normalized input
    num_classes: int  # length of the net's output
    class_names: tuple[str, ...] = ()  # empty for regression
    augment: Augment | None = None  # applied to training batches only
    loader_class: type[BatchLoader] = BatchLoader
    _mean: Tensor  # for normalize, in subclasses that standardize
    _std: Tensor

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
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None:
                check_positive_int(f"data.{name}", value)
        if type(seed) is not int:
            raise ValueError(f"data.seed={seed} must be a whole number")
        for name, switch in (("shuffle", shuffle), ("drop_last", drop_last)):
            if type(switch) is not bool:
                raise ValueError(f"data.{name}={switch} must be true or false")
        if validate_on not in ("val", "test", "train"):
            raise ValueError(f"data.validate_on={validate_on} must be val, test or train")
        if folds is not None:
            if not isinstance(folds, int) or folds < 2:
                raise ValueError(f"data.folds={folds} must be a whole number of at least 2")
            if not isinstance(fold, int) or not 0 <= fold < folds:
                raise ValueError(f"data.fold={fold} must be a whole number from 0 to {folds - 1}")
            if validate_on != "val":
                raise ValueError(f"data.folds goes with data.validate_on=val, not with {validate_on}")
        elif fold != 0:
            raise ValueError(f"data.fold={fold} is one of data.folds=, which is missing")
        self.folds, self.fold = folds, fold
        self.batch_size, self.eval_batch_size, self.val_size = batch_size, eval_batch_size, val_size
        self.validate_on, self.seed, self.shuffle = validate_on, seed, shuffle
        self.drop_last = drop_last
        self._says_left_out = False
        self.test_split = "test"  # what test_dataloader serves; evaluate.py sets it to val or train
        self._parts: list[tuple[Any, Tensor]] = []  # (inputs or files, targets) of the training set and the test set

    def load(self) -> tuple[Batch, Batch]:
        """Return the training set and the test set: ``((inputs, targets), (inputs, targets))``."""
        raise NotImplementedError

    def normalize(self, inputs: Tensor) -> Tensor:
        """Turn a batch of stored inputs into inputs of the net."""
        return inputs

    def denormalize_targets(self, predictions: Tensor) -> Tensor:
        """Turn predictions or targets from the units of the training into those of the data."""
        return predictions

    def to_uint8(self, inputs: Tensor) -> Tensor:
        """Turn normalized images into uint8 ``(B, C, H, W)`` to look at, each scaled to its own range."""
        low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
        return ((inputs - low) / (high - low).clamp_min(1e-9)).mul_(255).round_().to(torch.uint8)

    def read_rows(self, path: Path) -> tuple[list[str], Tensor]:
        """Return the rows of a CSV file, with or without a header, as text and as inputs, float32 ``(N, columns)``.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or its rows are not inputs of this data set.
        """
        size = self.shape[0]
        names = [f"x{number}" for number in range(1, size + 1)]
        table = CSVFile(path, names)
        if len(table.header) != size or (table.header != names and any(map(is_number, table.header))):
            raise ValueError(f"{path}, line 1: {','.join(table.header)} is not {size} numbers")
        table.header = names  # columns go by position here
        return table.lines_of_text(), torch.from_numpy(table.matrix(names)).float()

    def fitted_config(self) -> dict[str, Any]:
        """Return the settings that were read from files. With them in its config a run works without the files."""
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
            # Not seeded by `seed`: runs with different seeds are compared on the same validation examples.
            order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        self.val_indices, self.train_indices = self._split_off(order, self.val_size)

    def _split_off(self, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the validation indices (the first ``size``, or a fold) and the training indices."""
        if self.folds is None:
            return order[:size], order[size:]
        if self.folds > len(order):
            raise ValueError(f"data.folds={self.folds}: there are only {len(order)} examples")
        parts = list(order.tensor_split(self.folds))
        return parts.pop(self.fold), torch.cat(parts)

    def _random_split(
        self, indices: Tensor, fraction: float, generator: torch.Generator, validation: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return a random part of the indices (for validation a fold, if there are any) and the rest, both sorted."""
        order = indices[torch.randperm(len(indices), generator=generator)]
        size = round(fraction * len(order))
        held_out, rest = self._split_off(order, size) if validation else (order[:size], order[size:])
        return held_out.sort().values, rest.sort().values

    def state_dict(self) -> dict[str, int]:
        """Return what the position in an epoch and the schedule depend on, which must be the same on resume."""
        examples = len(self.train_indices)
        processes, batches = (self.trainer.world_size, self.trainer.accumulate_grad_batches) if self.trainer else (1, 1)
        return {
            "batch": min((self.batch_size or examples) * processes, examples),
            "batches": batches,
            "examples": examples,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise ValueError if the run cannot be resumed with this data and these batch sizes."""
        units = {
            "batch": "examples in a batch (data.batch_size, times the processes)",
            "batches": "batches in a step (trainer.accumulate_grad_batches)",
            "examples": "examples to learn from",
        }
        for name, now in self.state_dict().items():
            if now != state.get(name, now):
                were = f"{units[name]}: {state[name]} in this run, and now {now}"
                raise ValueError(f"resume: {were}, which cannot change on resume")

    def train_dataloader(self) -> BatchLoader:
        loader = self._make_loader(0, self.train_indices, self.batch_size, training=True)
        if loader.left_out and not (self.drop_last or self._says_left_out):
            self._says_left_out = True  # Lightning asks for the loader several times
            log.info(
                "left out: the last %s of each epoch, because batch norm cannot normalize a batch of one; another "
                "data.batch_size uses all",
                pluralize(loader.left_out, "example"),
            )
        return loader

    def val_dataloader(self) -> BatchLoader | list[Batch]:
        return self._eval_dataloader(self.validate_on)

    def test_dataloader(self) -> BatchLoader | list[Batch]:
        """Serve the whole split in every process, so that each has all predictions and no example is counted twice."""
        return self._eval_dataloader(self.test_split, replicate=True)

    def first_inputs(self, size: int) -> Tensor:
        """Return the first training inputs, normalized and not augmented, to initialize a net from."""
        loader = self._make_loader(0, self.train_indices[:size], size)
        loader.rank, loader.world_size = 0, 1  # the same in every process
        return next(iter(loader))[0]

    def _eval_dataloader(self, split: str, replicate: bool = False) -> BatchLoader | list[Batch]:
        """Serve all examples of a split in order, or nothing if it is empty."""
        indices = self._indices(split)
        if not len(indices):
            return []
        loader = self._make_loader(int(split == "test"), indices, self.eval_batch_size)
        if replicate:
            loader.rank, loader.world_size = 0, 1
        return loader

    def _indices(self, split: str) -> Tensor:
        """Return the examples of a split: all of ``_parts[1]`` for the test, some of ``_parts[0]`` for the others."""
        test_indices = torch.arange(len(self._parts[1][1]))
        return {"train": self.train_indices, "val": self.val_indices, "test": test_indices}[split]

    def _make_loader(self, part: int, indices: Tensor, batch_size: int | None, training: bool = False) -> BatchLoader:
        device = self._device()
        inputs, targets = self._parts[part]
        inputs, targets = self._parts[part] = inputs.to(device), targets.to(device)
        return self.loader_class(
            inputs, targets, indices.to(device), batch_size or len(indices), **self._loader_options(training)
        )

    def _mean_and_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the statistics for :meth:`normalize` on a device. They are moved there once."""
        if self._mean.device != device:
            self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self._mean, self._std

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _loader_options(self, training: bool) -> dict[str, Any]:
        """Return the arguments that all loaders share, and those of the training loader."""
        options: dict[str, Any] = {"normalize": self.normalize}
        if self.trainer is not None:
            options |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        if training:
            # Overfitting is learning the same batches in every epoch.
            shuffles = self.shuffle and not getattr(self.trainer, "overfit_batches", 0)
            options |= {"seed": self.seed if shuffles else None, "augment": self.augment}
            whole = self.batch_size if self.drop_last else None
            options["smallest"] = whole or (2 if self._has_batch_norm() else 0)
        return options

    def _has_batch_norm(self) -> bool:
        module = self.trainer.lightning_module if self.trainer is not None else None
        return module is not None and any(isinstance(layer, BATCH_NORMS) for layer in module.modules())
