"""Plots of series of numbers and their continuations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plots.figure import CLASSES, literal, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def continuations(series: np.ndarray, continued: np.ndarray, labels: Sequence[str]) -> "Figure":
    """Draw series, each in a panel of its own, and what a model continues them with.

    Args:
        series: ``(N, T)``.
        continued: ``(N, steps)``.
        labels: of the panels.
    """
    figure = new_figure(9, 0.8 + 1.5 * len(series))
    known = np.arange(1, series.shape[1] + 1)
    after = np.arange(series.shape[1], series.shape[1] + continued.shape[1] + 1)  # from the last known number on
    panels = figure.subplots(len(series), sharex=True, squeeze=False)[:, 0]
    for index, axes in enumerate(panels):
        style_axes(axes, "step" if index == len(series) - 1 else "", "")
        axes.set_title(literal(labels[index]), fontsize=10, loc="left")
        color = CLASSES[index % len(CLASSES)]
        joined = np.concatenate([series[index, -1:], continued[index]])
        axes.plot(known, series[index], color=color, linewidth=1.3, label="given")
        axes.plot(after, joined, color=color, linewidth=1.3, linestyle=(0, (2, 1)), label="continued")
        axes.axvline(series.shape[1], color="gray", linewidth=0.8)
    panels[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure
