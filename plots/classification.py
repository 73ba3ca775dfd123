"""Plots of a classifier: its confusion matrix, the accuracy of each class, and the boundary between two classes."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from plots.figure import CLASSES, TRAIN, WRONG, literal, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = 120  # points along each side of a decision boundary's background


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Draw the counts of ``(true class, predicted class)``, with the mistakes in color."""
    size = len(class_names)
    side = min(11.0, 2.2 + 0.44 * size)
    figure = new_figure(side, side)
    axes = figure.subplots()
    mistakes = counts * (1 - np.eye(size, dtype=counts.dtype))
    axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=max(1, mistakes.max()))
    ticks, labels = range(size), [literal(name) for name in class_names]
    true = [name if total else f"{name} (no example)" for name, total in zip(labels, counts.sum(1), strict=True)]
    axes.set_xticks(ticks, labels, rotation=90 if max(map(len, class_names)) > 2 else 0)
    axes.set_yticks(ticks, true)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    for row, column in np.ndindex(size, size) if size <= 20 else ():
        if counts[row, column]:
            dark = mistakes[row, column] > 0.6 * mistakes.max() > 0
            style: dict[str, Any] = {"color": "white" if dark else "black", "ha": "center", "va": "center"}
            weight = "bold" if row == column else "normal"
            axes.text(column, row, str(counts[row, column]), weight=weight, fontsize=8, **style)
    return figure


def per_class_accuracy(counts: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Draw the accuracy of each class as a bar, from the counts of ``(true class, predicted class)``."""
    totals = counts.sum(1)
    accuracies = 100 * counts.diagonal() / np.maximum(totals, 1)
    figure = new_figure(6.4, 1.2 + 0.3 * len(class_names))
    axes = style_axes(figure.subplots(), "accuracy (%)", "")
    axes.barh(range(len(class_names)), np.where(totals, accuracies, 0), color=TRAIN, height=0.7)
    axes.set_yticks(range(len(class_names)), [literal(name) for name in class_names])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)  # a bar that began elsewhere would show other proportions
    for index, (accuracy, total) in enumerate(zip(accuracies, totals, strict=True)):
        if not total:
            axes.text(0, index, " no example", va="center", ha="left", fontsize=8)
        elif accuracy < 10:  # beside a bar that is too short for it
            axes.text(accuracy, index, f" {accuracy:.1f}", va="center", ha="left", fontsize=8)
        else:
            axes.text(accuracy, index, f"{accuracy:.1f} ", va="center", ha="right", fontsize=8, color="white")
    axes.grid(axis="y", visible=False)
    return figure


def goodness_of_labels(images: Tensor, goodness: Tensor, targets: Tensor, class_names: Sequence[str]) -> "Figure":
    """Draw images with the goodness of each label below, the layers of the net one after the other in a bar.

    Args:
        images: uint8 ``(N, C, H, W)``.
        goodness: ``(N, layers, classes)``.
        targets: the true classes, ``(N,)``.
    """
    size, layers, classes = goodness.shape
    best = goodness.sum(1).argmax(1)
    figure = new_figure(1.75 * size + 0.4, 2.2 + 0.2 * classes)
    panels = figure.subplots(2, size, squeeze=False, height_ratios=(1.5, 0.4 + 0.2 * classes))
    longest = 1.05 * goodness.sum(1).max().item() or 1.0
    for index, (above, below) in enumerate(panels.T):
        above.imshow(images[index].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        above.axis("off")
        label, target = int(best[index]), int(targets[index])
        wrong = label != target
        title = class_names[label] + (f"\ntrue: {class_names[target]}" if wrong else "")
        above.set_title(literal(title), fontsize=10, color=WRONG if wrong else "black")
        style_axes(below, "goodness", "label" if index == 0 else "")
        start = np.zeros(classes)
        for layer, values in enumerate(goodness[index].numpy()):
            color = CLASSES[layer % len(CLASSES)]
            below.barh(range(classes), values, left=start, color=color, height=0.7, label=f"layer {layer + 1}")
            start += values
        below.set_yticks(range(classes), [literal(name) for name in class_names] if index == 0 else [""] * classes)
        below.plot(start[target] + 0.03 * longest, target, "<", color="black", markersize=5, label="true label")
        below.set_xlim(0, 1.05 * longest)
        below.set_ylim(classes - 0.5, -0.5)
        below.grid(axis="y", visible=False)
    place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 0.97), "ncols": layers + 1}
    panels[1, 0].legend(fontsize=7, frameon=False, borderaxespad=0, **place).set_in_layout(False)
    return figure


def decision_boundary(
    probs_of: Callable[[Tensor], Tensor],
    points: Tensor,
    targets: Tensor,
    class_names: Sequence[str],
    axis_names: Sequence[str],
) -> "Figure":
    """Draw the probability of two classes over the plane, the boundary where they are equal, and the examples.

    Args:
        probs_of: takes points ``(N, 2)`` to probabilities ``(N, 2)``.
        points: the examples, ``(N, 2)``.
        targets: their classes, ``(N,)``.
    """
    figure = new_figure(5.6, 5)
    axes = style_axes(figure.subplots(), *axis_names)
    _draw_boundary(axes, probs_of, points, targets, class_names, 16)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def decision_boundaries(
    probs_at: Callable[[int, Tensor], Tensor],
    epochs: Sequence[int],
    points: Tensor,
    targets: Tensor,
    class_names: Sequence[str],
) -> "Figure":
    """Draw the decision boundary after up to six of the epochs, evenly spread. Epoch 0 is before the training.

    Args:
        probs_at: takes an epoch and points ``(N, 2)`` to the probabilities ``(N, 2)`` after that epoch.
        points: the examples, ``(N, 2)``.
        targets: their classes, ``(N,)``.
    """
    shown = [epochs[index] for index in np.unique(np.linspace(0, len(epochs) - 1, 6).round().astype(int))]
    figure = new_figure(9, 6)
    panels = figure.subplots(2, 3).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, epoch in zip(panels, shown, strict=False):
        _draw_boundary(axes, functools.partial(probs_at, epoch), points, targets, class_names, 6)
        axes.set_title("before training" if epoch == 0 else f"epoch {epoch}", fontsize=10)
    return figure


def _draw_boundary(
    axes: "Axes",
    probs_of: Callable[[Tensor], Tensor],
    points: Tensor,
    targets: Tensor,
    class_names: Sequence[str],
    marker_size: float,
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    low, high = points.amin(0), points.amax(0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    x, y = (torch.linspace(low[axis], high[axis], GRID) for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)
    first = probs_of(grid)[:, 0].view(GRID, GRID).numpy()
    blend = LinearSegmentedColormap.from_list("", [CLASSES[1], "white", CLASSES[0]])
    axes.contourf(x, y, first, levels=np.linspace(0, 1, 11), colors=blend(np.linspace(0, 1, 10)).tolist(), alpha=0.45)
    if first.min() < 0.5 < first.max():
        axes.contour(x, y, first, levels=[0.5], colors="black", linewidths=1.2)
    for index, name in enumerate(class_names):
        style: dict[str, Any] = {"color": CLASSES[index], "edgecolor": "white", "linewidth": 0.3}
        across, up = points[targets == index].T
        axes.scatter(across, up, s=marker_size, label=literal(name), **style)
