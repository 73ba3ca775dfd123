"""Plots of an attack on a classifier: its accuracy over epsilon, and the images that fool it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from plots.figure import TRAIN, WRONG, literal, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def adversarial_examples(
    accuracies: Mapping[float, float],
    examples: Mapping[float, tuple[Tensor, Tensor, Tensor]],
    class_names: Sequence[str],
) -> "Figure":
    """Draw the accuracy over epsilon, and below it a row of images for each epsilon.

    Args:
        accuracies: epsilon -> fraction of correct predictions.
        examples: epsilon -> images, uint8 ``(N, C, H, W)``, their true and their predicted classes ``(N,)``.
        class_names: names of the classes.
    """
    rows = {epsilon: parts for epsilon, parts in examples.items() if len(parts[0])}
    columns = max((len(images) for images, *_ in rows.values()), default=1)
    cell, left, top = np.array([1.1, 1.35]), 1.1, 3.4  # inches: of an image with its title, and around all of them
    width, height = max(left + cell[0] * columns + 0.1, 7.0), top + cell[1] * len(rows) + 0.1
    figure = new_figure(width, height)
    figure.set_layout_engine("none")

    axes = figure.add_axes((0.9 / width, 1 - 2.6 / height, min(6, width - 1.2) / width, 2.4 / height))
    style_axes(axes, "epsilon, of pixels from 0 to 1", "accuracy (%)")
    epsilons, percent = list(accuracies), [100 * accuracy for accuracy in accuracies.values()]
    axes.plot(epsilons, percent, "-o", color=TRAIN, markersize=5)
    axes.set_ylim(-3, 108)
    for epsilon, value in zip(epsilons, percent, strict=True):
        axes.annotate(f"{value:.1f}", (epsilon, value), (0, 6), textcoords="offset points", ha="center", fontsize=8)

    canvas = figure.add_axes((0, 0, 1, 1))  # one for all images, in inches from the top left: many axes take far longer
    canvas.axis("off")
    for row, (epsilon, parts) in enumerate(rows.items()):
        upper = top + cell[1] * row
        canvas.text(left - 0.12, upper + 0.5, f"ε = {epsilon:g}", ha="right", va="center", fontsize=10)
        for column, (image, target, label) in enumerate(zip(*parts, strict=True)):
            _draw_example(canvas, (left + cell[0] * column, upper), image, class_names[target], class_names[label])
    canvas.set_xlim(0, width)
    canvas.set_ylim(height, 0)
    canvas.set_aspect("auto")
    return figure


def _draw_example(canvas: "Axes", corner: tuple[float, float], image: Tensor, target: str, label: str) -> None:
    """Draw an image one inch wide with its class, and the predicted one where that differs."""
    x, y = corner
    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    canvas.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + 1, y + 1, y), interpolation="nearest")
    title, color = (target, "black") if label == target else (f"{target} → {label}", WRONG)
    size = 9 if len(title) < 14 else 6
    canvas.text(x + 0.5, y - 0.04, literal(title), ha="center", va="bottom", fontsize=size, color=color)
