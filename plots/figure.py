"""What all figures share: colors, the style of axes, literal text, and rendering to pixels."""

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

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
        axis.set_major_formatter(plain_formatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def plain_formatter() -> "ScalarFormatter":
    """Return a formatter of whole numbers and decimals at the ticks. Matplotlib's own puts a factor beside the axis."""
    from matplotlib.ticker import ScalarFormatter

    class PlainFormatter(ScalarFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            whole, point, decimals = super().__call__(x, pos).partition(".")
            return re.sub(r"(?<=\d)(?=(\d{3})+$)", ",", whole) + point + decimals

    formatter = PlainFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


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
