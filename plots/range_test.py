"""The picture of a learning-rate range test."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plots.figure import TRAIN, VAL, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def range_test(rates: Sequence[float], losses: Sequence[float], suggested: float | None) -> "Figure":
    """Plot the smoothed loss over the learning rate, and mark the suggested rate."""
    figure = new_figure(6.4, 4)
    axes = style_axes(figure.subplots(), "learning rate", "training loss, smoothed")
    axes.set_xscale("log")
    axes.plot(rates, losses, color=TRAIN, linewidth=1.2, label="training")
    if suggested is not None:
        axes.axvline(suggested, color=VAL, linewidth=1.2, label=f"steepest fall, {suggested:g}")
    axes.legend(frameon=False)
    return figure
