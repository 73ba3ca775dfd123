"""Compare the metrics of a run with what its experiment expects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs.format import format_metric

KINDS = ("at_least", "at_most", "published", "rtol", "atol", "epochs", "if_measured")


class ExpectationMissed(Exception):
    """A run with ``check=true`` did not reach what its experiment expects."""

    exit_code = 3


@dataclass
class Comparison:
    """One metric: the published value, the expected one and the measured one; ``None`` is unknown.

    ``expected`` is empty where a value is only published. That always passes.
    """

    metric: str
    published: float | None
    expected: str
    got: float | None
    passed: bool
    fits_epochs: bool = False  # whether it applies to this number of epochs only

    def row(self) -> tuple[str, str, str, str, str]:
        published, got = (
            "" if value is None else format_metric(self.metric, value) for value in (self.published, self.got)
        )
        verdict = ("as expected" if self.passed else "NOT as expected") if self.expected else ""
        return self.metric, published, self.expected, got, verdict


def is_checked(how: Mapping[str, Any]) -> bool:
    """Return whether ``expect:`` has more of a metric than a published figure, which is only printed."""
    return bool(set(how) - {"published", "epochs", "if_measured"})


def check_expectations(expect: Any) -> None:
    """Raise ValueError for an ``expect:`` that :func:`check_expected` cannot compare a run with."""
    example = "such as {test/acc:{at_least:0.9}}"
    if not (expect is None or isinstance(expect, dict)):
        raise ValueError(f"expect={expect} must be a mapping of metrics, {example}, or null")
    for metric, how in (expect or {}).items():
        if not isinstance(how, dict) or set(how) - set(KINDS):
            raise ValueError(f"expect.{metric}={how} must be a mapping with some of {', '.join(KINDS)}, {example}")
        for kind, value in how.items():
            numbers = value if kind == "published" and isinstance(value, list) else [value]
            unknown = kind == "published" and value is None
            if kind == "if_measured":
                if not isinstance(value, bool):
                    raise ValueError(f"expect.{metric}.if_measured={value} must be true or false")
            elif not (unknown or (numbers and all(type(number) in (int, float) for number in numbers))):
                raise ValueError(f"expect.{metric}.{kind}={'null' if value is None else value} must be a number")
        if {"rtol", "atol"} & set(how) and "published" not in how:
            raise ValueError(f"expect.{metric}: rtol and atol are a tolerance around published, which is missing")


def check_expected(
    expect: dict[str, dict[str, Any]],
    metrics: dict[str, float | None],
    rows: list[dict[str, float]],
    epochs: int | None = None,
) -> list[Comparison]:
    """Compare a run with the ``expect:`` of its experiment.

    Args:
        expect: metric -> ``at_least`` and ``at_most``, or a tolerance, ``rtol`` or ``atol``, around ``published``: a
            number, or a list with one number for each epoch. A ``published`` alone is printed and not checked, and a
            tolerance around None is left out. With ``epochs`` it applies to a training of that length only, with
            ``if_measured`` only to a run that measures the metric.
        metrics: their values at the end of the run.
        rows: the rows of ``metrics.csv``.
        epochs: number of epochs trained.
    """
    return [
        _compare(metric, how, metrics.get(metric), [row[metric] for row in rows if metric in row])
        for metric, how in expect.items()
        if how.get("epochs", epochs) == epochs
        and not ({"rtol", "atol"} & set(how) and how.get("published") is None)
        and not (how.get("if_measured") and metric not in metrics)
    ]


def _compare(metric: str, how: dict[str, Any], got: float | None, curve: list[float]) -> Comparison:
    """Compare one metric: its last value, or its whole curve where ``published`` is a list."""
    published: Any = how.get("published")
    fits_epochs = "epochs" in how
    exact = "rtol" in how or "atol" in how
    within = f"± {how['rtol']:g} of it" if "rtol" in how else f"± {how.get('atol', 0):g}"
    if isinstance(published, list):
        near = len(curve) == len(published) and all(_near(*pair, how) for pair in zip(curve, published, strict=True))
        passed, last = near or not exact, curve[-1] if curve else None
        expected = f"{within}, each of {len(published)}" if exact else ""
        return Comparison(metric, published[-1], expected, last, passed, fits_epochs)
    low, high = how.get("at_least", -float("inf")), how.get("at_most", float("inf"))
    passed = got is not None and low <= got <= high and (not exact or _near(got, published, how))
    passed |= not is_checked(how)
    bounds = [
        f"{sign} {format_metric(metric, how[key])}" for sign, key in (("≥", "at_least"), ("≤", "at_most")) if key in how
    ]
    expected = ", ".join([*bounds, *([within] if exact else [])])
    return Comparison(metric, published, expected, got, passed, fits_epochs)


def _near(got: float, published: float, how: dict[str, Any]) -> bool:
    return abs(got - published) <= how.get("atol", 0.0) + how.get("rtol", 0.0) * abs(published)
