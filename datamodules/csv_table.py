"""Your own table: a CSV file whose rows are examples, with numeric input columns and one target column."""

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

from datamodules.csv_file import CSVFile, in_one_line, is_number, read_content
from datamodules.in_memory import Batch, InMemoryDataModule, check_fractions
from datamodules.names import check_names
from runs.overrides import typed_setting

log = logging.getLogger(__name__)

MANY_CLASSES = 10  # more, with fewer than two rows each on average, are names or notes rather than classes


class CSVTable(InMemoryDataModule):
    """Rows of a CSV file whose first line names the columns.

    Inputs are the numbers in the file, float32 ``(N, columns)``; :meth:`normalize` standardizes them. A target of text
    is a class, int64 ``(N,)``. A target of numbers is float32 ``(N, 1)``, also standardized: always
    predicting the mean then has a mean squared error of 1. Means and standard deviations are those of the training
    rows.

    Args:
        path: the file.
        target: the column to predict.
        columns: the input columns; None takes all others that hold numbers, except columns without a name.
        classes: whether numbers in the target are classes, and texts of which most are in one row only.
        standardize: False leaves all numbers unchanged.
        test_path: a file with the same columns to test on; None holds out ``test_size``.
        val_size: fraction of the training rows to hold out by a fixed permutation, below 1.
        test_size: fraction of all rows to hold out by a fixed permutation, below 1.
        fitted_state: the state that :meth:`fitted_config` returned when the run began; None reads the file.
        **loading: see :class:`InMemoryDataModule`.

    Raises:
        FileNotFoundError, ValueError: no such file, column or class, a cell that is not a number, or too few rows.
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
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
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

    def _set_fitted_state(self, **state: Any) -> None:
        # Plain values for checkpoints; Hydra passes lists of its own class.
        self.fitted_state |= {
            name: value if isinstance(value, (str, float)) else list(value) for name, value in state.items()
        }
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
        paths = [path for path in (self.path, self.test_path) if path]
        contents = [read_content(path) for path in paths]
        md5 = hashlib.md5(b"".join(contents)).hexdigest()
        # Before they are parsed: a checkpoint may name any file, and an error may quote a cell.
        if self.fitted_state and self.fitted_state["md5"] != md5:
            raise ValueError(f"{self.path} has changed since the run began, so the rows that it held out are unknown")
        table, *others = (CSVFile(path, content=content) for path, content in zip(paths, contents, strict=True))
        test = next(iter(others), None)
        if not self.fitted_state:
            self._set_fitted_state(columns=self._input_columns(table), class_names=self._target_classes(table), md5=md5)
        inputs, targets = self._examples(table)
        generator = torch.Generator().manual_seed(0)  # not the run's seed: runs are compared on the same rows
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
        self._parts = [self._to_stored(inputs, targets), self._to_stored(test_inputs, test_targets)]

    def load(self) -> tuple[Batch, Batch]:
        self.setup()
        train, test = ((inputs.cpu(), targets.cpu()) for inputs, targets in self._parts)
        return train, test

    def _input_columns(self, table: CSVFile) -> Sequence[str]:
        """Return the names of the input columns."""
        table.column(self.target)
        if self.columns is not None:
            if self.target in self.columns or not self.columns:
                problem = f"contains the target {self.target}" if self.columns else "is empty"
                raise ValueError(f"data.columns {problem}; it lists the input columns")
            return self.columns
        others = [name for name in table.header if name and name != self.target]
        columns = [
            name for name in others if not np.isnan(table.numbers(name)).all() or table.holds_dressed_numbers(name)
        ]
        if not columns:
            raise ValueError(f"{self.path} has no column of numbers to learn {self.target} from")
        if text := [name for name in others if name not in columns]:
            log.info("not used as inputs, because they hold no numbers: %s", ", ".join(text))
        whole = [name for name in columns if not np.isnan(table.numbers(name)).any()]
        hint = f"; {typed_setting('data.columns', whole)} leaves the column out" if whole else ""
        for name in columns:
            table.check_numbers(name, hint)
        return columns

    def _target_classes(self, table: CSVFile) -> Sequence[str]:
        """Return the sorted classes of the target, or none if it is a number."""
        cells = table.column(self.target)
        if not self.classes and (any(map(is_number, cells)) or table.holds_dressed_numbers(self.target)):
            table.check_numbers(self.target, "; data.classes=true reads the column as classes")
            return []
        if "" in cells:
            raise table.error(cells.index(""), self.target, "the cell is empty")
        names = sorted(set(cells), key=lambda cell: (float(cell) if is_number(cell) else math.inf, cell))
        if len(names) < 2:
            raise ValueError(
                f"{self.path}, column {self.target}: all rows are {names[0]!r}, so there is nothing to learn"
            )
        if not self.classes and len(names) > max(MANY_CLASSES, len(cells) / 2):
            raise ValueError(
                f"{self.path}, column {self.target}: {len(names):,} different texts in {len(cells):,} rows are hardly "
                "classes; data.classes=true learns them anyway"
            )
        check_names(names, self.path)
        return names

    def _examples(self, table: CSVFile) -> tuple[Tensor, Tensor]:
        """Return inputs, float64 ``(N, columns)``, and targets: classes, int64 ``(N,)``, or float64 ``(N, 1)``."""
        inputs = torch.from_numpy(table.matrix(self.columns or ()))
        cells = table.column(self.target)
        if not self.class_names:
            table.check_numbers(self.target)
            return inputs, torch.from_numpy(table.numbers(self.target))[:, None]
        label = {name: number for number, name in enumerate(self.class_names)}
        if unknown := [row for row, cell in enumerate(cells) if cell not in label]:
            what = f"{cells[unknown[0]]!r} is not one of the classes {', '.join(self.class_names[:10])}"
            raise table.error(unknown[0], self.target, what)
        return inputs, torch.tensor([label[cell] for cell in cells])

    def _statistics(self, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the mean and standard deviation (1 for a constant) of each column and of a numeric target."""
        numbers = inputs if self.class_names else torch.cat([inputs, targets], 1)
        mean, std = numbers.mean(0), numbers.std(0, correction=0)
        std[numbers.amin(0) == numbers.amax(0)] = 1
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        means, stds, size = mean.tolist(), std.tolist(), inputs.shape[1]
        target_statistics = {} if self.class_names else {"target_mean": means[size], "target_std": stds[size]}
        return {"mean": means[:size], "std": stds[:size], **target_statistics}

    def _to_stored(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Return float32 inputs and the targets, standardized if they are numbers."""
        if self.class_names:
            return inputs.float(), targets
        return inputs.float(), ((targets - self.fitted_state["target_mean"]) / self.fitted_state["target_std"]).float()

    def normalize(self, inputs: Tensor) -> Tensor:
        """Standardize inputs, float32 ``(B, columns)``."""
        mean, std = self._mean_and_std(inputs.device)
        return inputs.sub(mean).div_(std)

    def denormalize_targets(self, predictions: Tensor) -> Tensor:
        """Return predictions in the unit of the target. Logits of classes stay unchanged."""
        if self.class_names:
            return predictions
        return predictions * self.fitted_state["target_std"] + self.fitted_state["target_mean"]

    def read_rows(self, path: Path) -> tuple[list[str], Tensor]:
        """Return the rows of a CSV file as text and as inputs, float32 ``(N, columns)``.

        With a header the columns are found by name, in any order and among others; without one by position.
        """
        table = CSVFile(path, self.columns)
        return table.lines_of_text(), torch.from_numpy(table.matrix(self.columns or ())).float()
