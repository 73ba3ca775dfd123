"""A CSV file as a table of named columns. Errors give the line and the column."""

import csv
import difflib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.names import check_names
from runs.format import pluralize, printable

# A number as people write it: $1.00, 5 %, 1,234.50, 1.234,50, 1 234 or 0,5.
_CURRENCY = r"[$€£¥₹₩₽₺₫₪฿]|USD|EUR|GBP|JPY|CNY|CHF|RMB|元|円"
_DRESSED = re.compile(
    rf"[-+(]?\s?(?:{_CURRENCY})?\s?[-+]?"
    rf"(?:\d{{1,3}}(?:[,.'\u2019 \u00a0\u202f]\d{{3}})+|\d+)?(?:[.,]\d*)?(?:[eE][-+]?\d+)?"
    rf"\s?(?:{_CURRENCY}|[%‰])?\)?"
)
_BLANKS = re.compile(r"\s+")
_BREAK = re.compile(r"[\t\n\v\f\r]")


def read_content(path: Path) -> bytes:
    """Return the content of a regular file. Raise FileNotFoundError or ValueError where there is none."""
    if path.exists() and not path.is_file():  # a FIFO is waited for, and a device has no end
        raise ValueError(f"{path} is not a regular file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None


class CSVFile:
    """The cells of a CSV file, stripped; empty lines are skipped.

    Args:
        path: the file. The delimiter is the comma, semicolon or tab that is most frequent in its first line.
        names: names of the columns if the file has no header, that is, if its first line holds numbers only. Without
            any they are x1, x2, … in a file without a header; None reads the first line as one in any case.
        content: that of the file, where it has been read.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is not a table, or it is empty.
    """

    def __init__(self, path: Path, names: Sequence[str] | None = None, content: bytes | None = None) -> None:
        self.path = path
        try:
            content = read_content(path) if content is None else content
            text = content.decode("utf-8-sig")  # spreadsheets write a byte order mark
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
            lines = [(reader.line_num, [in_one_line(cell) for cell in cells]) for cells in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
        lines = [(number, cells) for number, cells in lines if any(cells)]
        if not lines:
            raise ValueError(f"{path} is empty")
        first = lines[0][1]
        if names is not None and not set(names) & set(first) and all(map(is_number, first)):
            lines.insert(0, (0, list(names) or [f"x{number}" for number in range(1, len(first) + 1)]))
        (_, self.header), *lines = lines
        self.lines, self.rows = [number for number, _ in lines], [cells for _, cells in lines]
        self._numbers: dict[str, np.ndarray] = {}
        self._check()

    def _check(self) -> None:
        named = [name for name in self.header if name]
        if twice := {name for name in named if named.count(name) > 1 and not is_number(name)}:
            raise ValueError(f"{self.path} has more than one column {min(twice)}")
        check_names(named, self.path)
        if not self.rows:
            raise ValueError(f"{self.path} has no rows, only one line, which names the columns")
        for number, cells in zip(self.lines, self.rows, strict=True):
            if len(cells) != len(self.header):
                found, expected = pluralize(len(cells), "cell"), pluralize(len(self.header), "column")
                raise ValueError(f"{self.path}, line {number}: {found} for {expected}")

    def column(self, name: str) -> list[str]:
        """Return the cells of a column. Raise ValueError if there is no such column."""
        if not name or name not in self.header:
            if all(map(is_number, self.header)):
                raise ValueError(f"{self.path} has no header: its first line has to name the columns")
            close = difflib.get_close_matches(name, self.header, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(f"{self.path} has no column {name}{hint}; it has {', '.join(filter(None, self.header))}")
        place = self.header.index(name)
        return [cells[place] for cells in self.rows]

    def numbers(self, name: str) -> np.ndarray:
        """Return a column as float64 ``(rows,)``, with nan for a cell that is not a number."""
        if name not in self._numbers:
            cells = self.column(name)
            self._numbers[name] = np.array([float(cell) if is_number(cell) else math.nan for cell in cells])
        return self._numbers[name]

    def check_numbers(self, name: str, hint: str = "") -> None:
        """Raise ValueError, with the hint at its end, for the first cell of a column that is not a number."""
        wrong = np.flatnonzero(np.isnan(self.numbers(name)))
        if len(wrong):
            cell = self.column(name)[wrong[0]]
            plain = ": write plain digits with a decimal point" if is_dressed_number(cell) else ""
            what = f"{cell!r} is not a number{plain}" if cell else "the cell is empty"
            raise self.error(wrong[0], name, what + hint)

    def holds_dressed_numbers(self, name: str) -> bool:
        """Return whether most cells of a column that are not empty are numbers, some of them to people only."""
        cells = [cell for cell in self.column(name) if cell]
        dressed = sum(map(is_dressed_number, cells))
        return bool(dressed) and 2 * (dressed + sum(map(is_number, cells))) > len(cells)

    def matrix(self, names: Sequence[str]) -> np.ndarray:
        """Return columns as float64 ``(rows, columns)``. Raise ValueError for a cell that is not a number."""
        for name in names:
            self.check_numbers(name)
        return np.stack([self.numbers(name) for name in names], 1)

    def lines_of_text(self) -> list[str]:
        """Return each row as one line of text."""
        return [printable(",".join(cells)) for cells in self.rows]

    def error(self, row: int, name: str, what: str) -> ValueError:
        """Return the error ``table.csv, line 7, column age: what``."""
        return ValueError(f"{self.path}, line {self.lines[row]}, column {name}: {what}")


def is_number(cell: str) -> bool:
    """Return whether a cell is a number that float32 can hold. ``1_0``, which Python reads as 10, is text here."""
    try:
        return abs(float(cell)) < 3.4e38 and "_" not in cell
    except ValueError:
        return False


def is_dressed_number(cell: str) -> bool:
    """Return whether a cell is a number to people only: with a currency, a percent sign, or commas in it."""
    return not is_number(cell) and bool(_DRESSED.fullmatch(cell)) and any(char.isdigit() for char in cell)


def in_one_line(cell: str) -> str:
    """Strip a cell, and replace its line breaks with blanks. Spreadsheets write them into long column names."""
    return _BLANKS.sub(lambda blanks: " " if _BREAK.search(blanks[0]) else blanks[0], cell.strip())
