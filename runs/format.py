"""Format numbers and tables for people."""

import math
import re
import unicodedata
from collections.abc import Sequence

# Control characters, surrogates (bytes that are not UTF-8) and the two line separators of Unicode.
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
# That embed or override a direction. The marks of one, U+061C, U+200E and U+200F, are part of Arabic and Hebrew texts.
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def format_metric(name: str, value: float) -> str:
    """Format accuracies and other shares in percent and everything else with four significant digits.

    The metric of a class that has no example is nan.
    """
    if math.isnan(value) and name.count("/") > 1:
        return "no example"
    if is_percentage(name):
        return f"{100 * value:.2f} %"
    return f"{value:,.4f}" if 0.01 <= abs(value) < 1e15 else f"{value:.4g}"


def is_percentage(name: str) -> bool:
    """Return whether people read a metric in percent."""
    words = re.findall("[a-z]+", "/".join(name.lower().split("/")[:2]))  # without the name of a class
    return not {"acc", "accuracy", "recognized"}.isdisjoint(words)


def format_metrics(metrics: dict[str, float]) -> str:
    """Format a row of metrics as ``train loss 0.0712 acc 97.91 %  val loss …``."""
    stages: dict[str, list[str]] = {}
    for name, value in metrics.items():
        stage, _, metric = name.partition("/")
        if metric:
            stages.setdefault(stage, []).append(f"{metric} {format_metric(name, value)}")
    return printable("  ".join(f"{stage} {' '.join(values)}" for stage, values in stages.items()))


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def check_positive_int(name: str, value: object) -> None:
    """Raise ValueError, with the message of all such settings, unless a value is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value} must be a whole number of at least 1")


def pluralize(number: int, one: str, many: str | None = None) -> str:
    """Return ``1 step`` or ``2,000 steps``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def round_float32(value: float) -> float:
    """Round to the nine digits that distinguish one float32 from the next."""
    return float(f"{value:.9g}")


def printable(text: str, keep: str = "") -> str:
    r"""Escape, as ``\x1b``, each character that could move the cursor or is not UTF-8.

    Names from files and strings from an untrusted run could hide or reorder what is printed.

    Args:
        keep: control characters that stay, such as line breaks.
    """
    if text.isprintable():  # most is, and this is quick
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in keep and (unicodedata.category(char) in UNPRINTABLE or char in BIDIRECTIONAL)
        else char
        for char in text
    )


def text_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, its cells printable and padded to the width of their columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def markdown_table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the lines of a Markdown table; the keys of the first row are its header."""
    lines = (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows))
    return ["| " + " | ".join(map(escape_markdown, cells)) + " |" for cells in lines]


def escape_markdown(text: str) -> str:
    """Return a text that becomes no image, link or HTML.

    A viewer would fetch what a stored text of an untrusted run names.
    """
    for special, escaped in (("\\", r"\\"), ("|", r"\|"), ("<", r"\<"), ("](", r"]\(")):
        text = text.replace(special, escaped)
    return text
