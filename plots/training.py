"""Training curves: the loss and the accuracy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plots.figure import TRAIN, VAL, literal, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNNING_MEAN = "training, mean over the running epoch"


def loss_curve(
    rows: Sequence[dict[str, float]], curve: Sequence[tuple[float, float]], epoch_size: int, val_label: str
) -> "Figure":
    """Plot the training loss (line) and the validation loss (dots) over the training examples seen.

    Args:
        rows: rows of metrics.csv.
        curve: pairs of training examples seen and the mean loss since the previous pair.
        epoch_size: number of training examples seen in an epoch.
        val_label: what the validation loss is measured on.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.4, 4)
    axes = style_axes(figure.subplots(), "training examples seen", "loss")
    means = [(row["epoch"] * epoch_size, row["train/loss"]) for row in rows if "train/loss" in row]
    points, label = (curve, "training") if curve else (means, RUNNING_MEAN)
    marker = "." if len(points) < 3 else ""
    axes.plot(*zip(*points, strict=True), color=TRAIN, linewidth=1.2, label=label, marker=marker)
    if val_points := [(row["epoch"] * epoch_size, row["val/loss"]) for row in rows if "val/loss" in row]:
        axes.plot(*zip(*val_points, strict=True), "o", color=VAL, markersize=5, label=literal(val_label), clip_on=False)
    values = [value for _, value in (*points, *val_points) if np.isfinite(value)]
    if values and min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=True))
    axes.legend(frameon=False)
    return figure


def accuracy_curve(rows: Sequence[dict[str, float]], val_label: str) -> "Figure":
    """Plot the training and the validation accuracy over the epochs.

    That of the training is the mean over the epoch, in which the net gets better; the other is measured after it.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.4, 4)
    axes = style_axes(figure.subplots(), "epoch", "accuracy (%)")
    for key, color, label in (("train/acc", TRAIN, RUNNING_MEAN), ("val/acc", VAL, val_label)):
        if points := [(row["epoch"], 100 * row[key]) for row in rows if key in row]:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color, label=literal(label))
    if len({row["epoch"] for row in rows}) == 1:
        axes.set_xlim(0, 2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure
