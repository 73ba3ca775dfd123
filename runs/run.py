"""A run on the disk as Python objects, for scripts and notebooks."""

import contextlib
import csv
import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.result import read_result

if TYPE_CHECKING:
    from PIL.Image import Image


class Rows(list[dict[str, Any]]):
    """The rows of a table. A notebook shows them as one, and ``pandas.DataFrame(rows)`` takes them."""

    def _repr_html_(self) -> str:
        columns = list(dict.fromkeys(name for row in self for name in row))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in columns)}</tr>" for row in self)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Run:
    """A run that was trained.

    Attributes:
        directory: the run directory.
        result: the content of ``result.json``.
        metrics: the rows of ``metrics.csv``, for each epoch and, with ``record.every_n_batches``, within epochs. What
            was not measured is left out.
    """

    directory: Path
    result: dict[str, Any] = field(repr=False)
    metrics: Rows = field(repr=False)

    @property
    def figures(self) -> "dict[str, Image]":
        """The pictures of the run by name, which a notebook shows. They are read from ``pictures/`` anew each time."""
        return {file.stem: read_image(file) for file in sorted((self.directory / "pictures").glob("*.png"))}


@dataclass(frozen=True)
class Predictions:
    """What a run predicts.

    Attributes:
        table: the file of the rows.
        rows: one for each example.
        figure: the first examples, or None where there is nothing to draw.
    """

    table: Path
    rows: Rows = field(repr=False)
    figure: "Image | None" = field(repr=False)


def read_run(directory: Path) -> Run:
    """Return the run in a directory."""
    file = directory / "metrics.csv"
    metrics = read_rows(file) if file.is_file() else Rows()
    return Run(directory, read_result(directory) or {}, metrics)


def read_rows(file: Path, words: Iterable[str] = ()) -> Rows:
    """Return the rows of a table that a command has written, with numbers as numbers and without empty cells.

    Args:
        file: a CSV file.
        words: columns that stay text, such as names of classes, which may look like numbers.

    Raises:
        ValueError: it is no such table.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            return Rows(
                {name: cell if name in words else _number(cell) for name, cell in row.items() if cell}
                for row in csv.DictReader(lines)
            )
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def read_predictions(table: Path) -> Predictions:
    """Return the predictions that ``predict.py`` has written to a ``predictions.csv``."""
    with open(table, newline="", encoding="utf-8") as lines:
        has_numbers = "prediction" in next(csv.reader(lines))  # else the truth is the name of a class
    rows = read_rows(table, ("input", "label", "top 3", *(() if has_numbers else ("truth",))))
    picture = table.with_suffix(".png")
    # An older one is that of predictions which these have replaced.
    is_new = picture.is_file() and picture.stat().st_mtime_ns >= table.stat().st_mtime_ns
    return Predictions(table, rows, read_image(picture) if is_new else None)


def read_image(file: Path) -> "Image":
    """Return a picture, read from the file. Other formats than PNG are refused: for some, Pillow starts a program."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.load()
            return image
    except UnidentifiedImageError:
        raise ValueError(f"{file} is not a PNG image") from None


def _number(cell: str) -> Any:
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(cell)
    return cell


def _cell(value: Any) -> str:
    return "" if value is None else html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
