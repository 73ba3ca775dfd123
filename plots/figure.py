"""What all figures share: colors, the style of axes, literal text, and rendering to pixels."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, VAL, WRONG = "#3b6ea5", "#d9822b", "#c23b3b"
CLASSES = ("#3b6ea5", "#d9822b", "#4f9d69", "#8d6bb1", "#8c6d5a", "#c77aa8", "#7f7f7f", "#b0a63b", "#41a5b8", "#c23b3b")


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, its size in inches. Matplotlib is imported only when there is something to draw."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="tight")


def style_axes(axes: "Axes", x: str, y: str) -> "Axes":
    """Label the axes, and give them the style that all plots share."""
    axes.set_xlabel(literal(x))
    axes.set_ylabel(literal(y))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: plain_number(value))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def plain_number(value: float) -> str:
    """Return the label of a tick. Matplotlib's own would be small numbers, with a factor or an offset beside the axis."""
    value = round(value, 12) + 0.0  # a sum of steps that is to be 0 may be 5e-17; the sum makes 0 of -0
    return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}", 1 if value < 0 else 0)


def literal(text: str) -> str:
    """Escape ``text`` so that matplotlib draws it literally. It would read what is between two ``$`` as a formula.

    Use it for text from outside: names of classes, settings, columns and files.
    """
    return text.replace("$", r"\$")


def to_pixels(figure: "Figure") -> np.ndarray:
    """Render a figure as uint8 ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
