"""Grids of images: examples, predictions and the filters of a convolution."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from plots.figure import WRONG, literal, new_figure
from plots.generative import mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_grid(
    images: Tensor,
    titles: Sequence[str],
    colors: Sequence[str] | None = None,
    title: str = "",
    captions: Sequence[str] | None = None,
) -> "Figure":
    """Draw images, uint8 ``(N, C, H, W)``, up to six in a row, each with its title above and its caption below.

    Wide images, up to twice as wide as high, are as high as others, and fewer are in a row.

    Args:
        colors: colors of the titles.
        title: title of the whole figure.
    """
    side = 1.4 * min(max(images.shape[3] / images.shape[2], 1), 2.1)  # width of an image in inches; its height is 1.4
    columns = min(round(9.3 // (side + 0.14)), len(images))
    cell, header = np.array([side + 0.15, 2.05 if captions else 1.9]), 0.3 if title else 0.0
    width, height = cell * (columns, -(-len(images) // columns)) + (0, header)
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: separate axes take far longer
    axes.axis("off")
    for index, image in enumerate(images):
        left, top = cell * (index % columns, index // columns) + (0.07, header + 0.42)
        extent = (left, left + side, top + 1.4, top)
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
        color, middle = colors[index] if colors else "black", left + side / 2
        axes.text(middle, top - 0.05, literal(titles[index]), ha="center", va="bottom", fontsize=10, color=color)
        if captions:
            room = round(16 * side)  # characters that are as wide as the image
            caption = captions[index] if len(captions[index]) <= room else "…" + captions[index][1 - room :]
            axes.text(middle, top + 1.43, literal(caption), ha="center", va="top", fontsize=7)
    axes.text(width / 2, 0.2, literal(title), ha="center", va="center", fontsize=11)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure


def predictions(
    images: Tensor,
    probs: Tensor,
    targets: Tensor | None,
    class_names: Sequence[str],
    title: str = "",
    captions: Sequence[str] | None = None,
) -> "Figure":
    """Draw images with their predicted class and its probability; wrong ones in red, with the true class below.

    Args:
        images: uint8 ``(N, C, H, W)``.
        probs: ``(N, classes)``.
        targets: ``(N,)``, or None where the true classes are not known.
    """
    confidences, labels = probs.max(1)
    true_labels = labels if targets is None else targets
    titles, colors = [], []
    for confidence, label, target in zip(confidences.tolist(), labels.tolist(), true_labels.tolist(), strict=True):
        wrong = f"\ntrue: {class_names[target]}" if label != target else ""
        titles.append(f"{class_names[label]}  {100 * confidence:.0f} %{wrong}")
        colors.append(WRONG if wrong else "black")
    return image_grid(images, titles, colors, title, captions)


def filters(weight: Tensor) -> "Figure":
    """Draw the filters of the first convolution, ``(filters, channels, H, W)``, each on its own scale."""
    weight = weight[:64]
    low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
    images = (255 * (weight - low) / (high - low).clamp_min(1e-12)).to(torch.uint8)
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    columns = min(8, len(images))
    figure = new_figure(0.9 * columns, 0.9 * -(-len(images) // columns) + 0.4)
    axes = figure.subplots()
    axes.axis("off")
    axes.imshow(mosaic(images, columns, gap=1), cmap="gray", interpolation="nearest")
    figure.suptitle("filters of the first layer", fontsize=11)
    return figure
