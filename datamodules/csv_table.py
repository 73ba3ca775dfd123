"""Your own table: a CSV file whose rows are examples, with columns of numbers to learn from and one column to learn."""

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.csv_file import CSVFile, in_one_line, is_number
from datamodules.in_memory import Batch, InMemoryDataModule, check_fractions
from datamodules.names import check_names

log = logging.getLogger(__name__)


class CSVTable(InMemoryDataModule):
    """Rows of a CSV file whose first line names the columns.

    Inputs are the numbers of the file, float32 ``(N, columns)``; :meth:`normalize` standardizes them. A target of text is
    learned as classes, int64 ``(N,)``, one of numbers as a number, float32 ``(N, 1)``, standardized too: a mean squared
    error of 1 is that of answering the mean, whatever the input. All means and standard deviations are those of the
    training rows.

    Args:
        path: of the file.
        target: the column to learn.
        columns: those to learn from; null takes all others that hold numbers, except columns without a name.
        classes: whether numbers in the target are classes.
        standardize: false takes all numbers as they are.
        test_path: a file with the same columns to test on; null holds out ``test_size``.
        val_size, test_size: shares that are held out by a fixed permutation, below 1.
        fitted_state: what :meth:`fitted_config` gave before; null asks the file.
        **batches: see :class:`InMemoryDataModule`.

    Raises:
        FileNotFoundError, ValueError: no such file, column or class, a cell that holds no number, or too few rows.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: str,
        columns: Sequence[str] | None = None,
        classes: bool = False,
        standardize: bool = True,
        test_path: str | os.PathLike[str] | None = None,
        val_size: float = 0.1,
        test_size: float = 0.2,
        fitted_state: Mapping[str, Any] | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        check_fractions(val_size=val_size, test_size=test_size)
        self.path, self.test_path = Path(path), None if test_path is None else Path(test_path)
        self.target, self.columns = str(target), None if columns is None else tuple(map(str, columns))
        self.classes, self.standardize = classes, standardize
        self.val_fraction, self.test_fraction = val_size, test_size
        self.fitted_state: dict[str, Any] = {}
        if fitted_state is None:
            self.setup()
        else:
            self._set_fitted_state(**fitted_state)

    def fitted_config(self) -> dict[str, Any]:
        paths = {"path": self.path, "test_path": self.test_path}
        resolved = {name: str(path.resolve()) for name, path in paths.items() if path}
        check_names(resolved.values(), "data.path")
        return resolved | {"fitted_state": self.fitted_state}

    def _set_fitted_state(self, **facts: Any) -> None:
        plain = {name: fact if isinstance(fact, (str, float)) else list(fact) for name, fact in facts.items()}
        self.fitted_state |= plain
        self.md5 = self.fitted_state["md5"]
        self.columns, self.class_names = (
            tuple(map(in_one_line, self.fitted_state[name])) for name in ("columns", "class_names")
        )
        self.shape, self.num_classes = (len(self.columns),), len(self.class_names) or 1
        if "mean" in self.fitted_state:
            self._mean, self._std = torch.tensor(self.fitted_state["mean"]), torch.tensor(self.fitted_state["std"])

    def setup(self, stage: str | None = None) -> None:
        if self._parts:
            return
        table, test = CSVFile(self.path), CSVFile(self.test_path) if self.test_path else None
        md5 = hashlib.md5(table.content + (test.content if test else b"")).hexdigest()
        if not self.fitted_state:
            self._set_fitted_state(columns=self._columns_of(table), class_names=self._classes_of(table), md5=md5)
        elif self.fitted_state["md5"] != md5:
            raise ValueError(
                f"{self.path} has changed since the run began: which of its rows were held out is not known"
            )
        inputs, targets = self._examples(table)
        generator = torch.Generator().manual_seed(0)  # not the run's: runs are compared on the same rows
        if test:
            test_inputs, test_targets = self._examples(test)
        else:
            held_out, rest = self._random_split(
                torch.arange(len(targets)), self.test_fraction, generator, validation=False
            )
            test_inputs, test_targets = inputs[held_out], targets[held_out]
            inputs, targets = inputs[rest], targets[rest]
        self.val_indices, self.train_indices = self._random_split(
            torch.arange(len(targets)), self.val_fraction, generator
        )
        if not len(self.train_indices):
            raise ValueError(f"{self.path} has too few rows ({len(table.rows)}) to hold any out")
        if "mean" not in self.fitted_state:
            self._set_fitted_state(**self._statistics(inputs[self.train_indices], targets[self.train_indices]))
        self._parts = [self._stored(inputs, targets), self._stored(test_inputs, test_targets)]

    def load(self) -> tuple[Batch, Batch]:
        self.setup()
        train, test = ((inputs.cpu(), targets.cpu()) for inputs, targets in self._parts)
        return train, test

    def _columns_of(self, table: CSVFile) -> Sequence[str]:
        """The columns to learn from."""
        table.column(self.target)
        if self.columns is not None:
            if self.target in self.columns or not self.columns:
                what = f"has the target {self.target} in it" if self.columns else "is empty"
                raise ValueError(f"data.columns {what}; it names the columns to learn from")
            return self.columns
        others = [name for name in table.header if name and name != self.target]
        columns = [name for name in others if not np.isnan(table.numbers(name)).all()]
        if not columns:
            raise ValueError(f"{self.path} has no column of numbers to learn {self.target} from")
        if text := [name for name in others if name not in columns]:
            log.info("not learned from, for there are no numbers in them: %s", ", ".join(text))
        whole = [name for name in columns if not np.isnan(table.numbers(name)).any()]
        for name in columns:
            table.check_numbers(name, f"; data.columns=[{','.join(whole)}] leaves the column out" if whole else "")
        return columns

    def _classes_of(self, table: CSVFile) -> Sequence[str]:
        """The classes that the target has, in order; none where it is a number."""
        cells = table.column(self.target)
        if not self.classes and any(map(is_number, cells)):
            table.check_numbers(self.target, "; data.classes=true takes what is in the column for classes")
            return []
        if "" in cells:
            raise table.error(cells.index(""), self.target, "the cell is empty")
        names = sorted(set(cells), key=lambda cell: (float(cell) if is_number(cell) else math.inf, cell))
        if len(names) < 2:
            raise ValueError(f"{self.path}, column {self.target}: all rows are {names[0]!r}, nothing can be learned")
        check_names(names, self.path)
        return names

    def _examples(self, table: CSVFile) -> tuple[Tensor, Tensor]:
        """Numbers, float64 ``(N, columns)``, with classes, int64 ``(N,)``, or numbers, float64 ``(N, 1)``."""
        inputs = self._inputs(table)
        cells = table.column(self.target)
        if not self.class_names:
            table.check_numbers(self.target)
            return inputs, torch.from_numpy(table.numbers(self.target))[:, None]
        label = {name: number for number, name in enumerate(self.class_names)}
        if strange := [row for row, cell in enumerate(cells) if cell not in label]:
            what = f"{cells[strange[0]]!r} is none of the classes {', '.join(self.class_names[:10])}"
            raise table.error(strange[0], self.target, what)
        return inputs, torch.tensor([label[cell] for cell in cells])

    def _inputs(self, table: CSVFile) -> Tensor:
        columns = self.fitted_state["columns"]
        for name in columns:
            table.check_numbers(name)
        return torch.from_numpy(np.stack([table.numbers(name) for name in columns], 1))

    def _statistics(self, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Mean and standard deviation, of what never changes 1, of each column and of a target of numbers."""
        numbers = inputs if self.class_names else torch.cat([inputs, targets], 1)
        mean, std = numbers.mean(0), numbers.std(0, correction=0)
        std[numbers.amin(0) == numbers.amax(0)] = 1
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        means, stds, size = mean.tolist(), std.tolist(), inputs.shape[1]
        of_target = {} if self.class_names else {"target_mean": means[size], "target_std": stds[size]}
        return {"mean": means[:size], "std": stds[:size], **of_target}

    def _stored(self, inputs: Tensor, targets: Tensor) -> Batch:
        if self.class_names:
            return inputs.float(), targets
        return inputs.float(), ((targets - self.fitted_state["target_mean"]) / self.fitted_state["target_std"]).float()

    def normalize(self, inputs: Tensor) -> Tensor:
        """Standardised, float32 ``(B, columns)``."""
        if self._mean.device != inputs.device:
            self._mean, self._std = self._mean.to(inputs.device), self._std.to(inputs.device)
        return inputs.sub(self._mean).div_(self._std)

    def denormalize_targets(self, predictions: Tensor) -> Tensor:
        """Predictions in the unit of the target; those of classes as they are."""
        if self.class_names:
            return predictions
        return predictions * self.fitted_state["target_std"] + self.fitted_state["target_mean"]

    def read_rows(self, path: Path) -> tuple[list[str], Tensor]:
        """The rows of a file as they stand there, and their inputs, float32 ``(N, columns)``.

        With a header the columns are found by name, in any order and among others; without one by their place.
        """
        table = CSVFile(path, self.columns)
        return [",".join(cells) for cells in table.rows], self._inputs(table).float()
