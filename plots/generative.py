"""Plots of autoencoders and generators: what they make, and the plane of their codes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from plots.figure import CLASSES, TRAIN, VAL, literal, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 2  # pixels between images, before they are enlarged
SIDE = 60  # pixels of a small image, about, once it is enlarged by a whole number


def sample_grid(images: Tensor, title: str) -> "Figure":
    """Draw images, uint8 ``(N, C, H, W)``, in a square."""
    return _image_figure(images, int(np.ceil(len(images) ** 0.5)), title=title)[0]


def samples_over_epochs(images: Mapping[int, Tensor], title: str) -> "Figure":
    """Draw a row of images for each epoch; a column has the same latent vector in all of them.

    Args:
        images: epoch -> uint8 ``(N, C, H, W)``. Epoch 0 is before the training.
    """
    labels = ["before training" if epoch == 0 else f"epoch {epoch}" for epoch in images]
    return _labeled_rows(list(images.values()), labels, title)


def reconstructions(originals: Tensor, reconstructed: Tensor, columns: int = 10, title: str = "") -> "Figure":
    """Draw images, uint8 ``(N, C, H, W)``, above what an autoencoder makes of them."""
    rows: list[Tensor] = []
    labels: list[str] = []
    for pair in zip(originals.split(columns), reconstructed.split(columns), strict=True):
        rows += pair
        labels += ["original", "reconstruction"]
    if len(originals) > 5:  # else the title is wider than the images
        title = title or "images and their reconstructions"
    return _labeled_rows(rows, labels, title, pair_gap=True)


def transformed_images(originals: Tensor, transformed: Tensor) -> "Figure":
    """Draw images, uint8 ``(N, C, H, W)``, above what a spatial transformer makes of them."""
    return _labeled_rows([originals, transformed], ["image", "transformed"], "images as the classifier sees them")


def latent_walk(images: Tensor, first: Sequence[float], second: Sequence[float], axis_names: Sequence[str]) -> "Figure":
    """Draw what a decoder makes of a grid of codes.

    Args:
        images: uint8 ``(rows * columns, C, H, W)``, row by row from the top.
        first: the codes along the columns, from left to right.
        second: the codes along the rows, from the top.
        axis_names: of the two axes.
    """
    figure, axes = _image_figure(images, len(first), left=100, bottom=50)
    axes.axis("on")
    axes.spines[:].set_visible(False)
    height, width = np.array(images.shape[2:]) + GAP
    for set_ticks, values, size in ((axes.set_xticks, first, width), (axes.set_yticks, second, height)):
        shown = np.unique(np.linspace(0, len(values) - 1, 4).round().astype(int))
        set_ticks((shown + 0.5) * size + GAP / 2, [f"{values[index]:.2g}" for index in shown])
    axes.tick_params(length=0)
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    return figure


def code_plane(codes: Tensor, targets: Tensor, class_names: Sequence[str]) -> "Figure":
    """Draw codes ``(N, D)`` as points in the plane, in the color of their class.

    More than two numbers are projected on their first two principal components.

    Args:
        codes: ``(N, D)``, with D of at least 2.
        targets: classes ``(N,)``, if there are any.
        class_names: of the classes; empty where there are none.
    """
    points, axis_names = project_codes(codes)
    figure = new_figure(7, 6)
    axes = style_axes(figure.subplots(), *axis_names)
    if codes.shape[1] > 2:  # components have one unit; without this, rounding errors would look like a second one
        axes.set_aspect("equal", adjustable="datalim")
    style: dict[str, Any] = {"s": 7, "alpha": 0.75, "linewidth": 0, "rasterized": True}
    if not class_names:
        axes.scatter(points[:, 0], points[:, 1], color=TRAIN, **style)
        return figure
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))  # no class hides the others
    colors = [_class_color(index, len(class_names)) for index in range(len(class_names))]
    across, up = points[order].T
    axes.scatter(across, up, c=[colors[target] for target in targets[order].tolist()], **style)
    for index, name in enumerate(class_names[:30]):
        axes.scatter([], [], color=colors[index], s=30, label=literal(name))
        if (targets == index).any():
            x, y = points[targets == index].median(0).values.tolist()
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
            axes.text(x, y, literal(name), ha="center", va="center", fontsize=10, weight="bold", bbox=box)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def project_codes(codes: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Return codes ``(N, D)`` as points in the plane ``(N, 2)``, and the names of its axes."""
    if codes.shape[1] == 2:
        return codes, ("first number of the code", "second number of the code")
    centered = codes.double() - codes.double().mean(0)
    _, deviations, components = torch.linalg.svd(centered, full_matrices=False)
    shares = (deviations.square() / deviations.square().sum().clamp_min(1e-30)).tolist()
    names = [
        f"{which} of {codes.shape[1]} principal components ({100 * share:.0f} % of the variance)"
        for which, share in zip(("first", "second"), shares, strict=False)
    ]
    return (centered @ components[:2].T).float(), (names[0], names[1])


def adversarial_losses(
    rows: Sequence[Mapping[str, float]],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    epoch_size: int,
    undecided: float | None = None,
) -> "Figure":
    """Plot the losses of a generator and a discriminator over the training examples seen.

    Args:
        rows: rows of metrics.csv.
        curves: ``g_loss`` and ``d_loss`` -> pairs of training examples seen and the mean loss since the previous pair.
            Without them the means of the epochs are drawn.
        epoch_size: number of training examples seen in an epoch.
        undecided: both losses where the discriminator cannot tell real images from fakes, if they are known.
    """
    figure = new_figure(6.4, 4)
    axes = style_axes(figure.subplots(), "training examples seen", "loss")
    values: list[float] = []
    for name, label, color in (("g_loss", "generator", TRAIN), ("d_loss", "discriminator", VAL)):
        means = [(row["epoch"] * epoch_size, row[f"train/{name}"]) for row in rows if f"train/{name}" in row]
        points = curves.get(name) or means
        values += [value for _, value in points]
        marker = "o" if len(points) < 20 else ""
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2, marker=marker, markersize=4, label=label)
    if undecided is not None:
        label = f"{undecided:.3g}: a coin would do as well"
        axes.axhline(undecided, color="gray", linewidth=1, linestyle="--", label=label)
    axes.set_xlim(left=0)
    axes.locator_params("x", nbins=5)
    if all(value >= 0 for value in values):  # those of a Wasserstein GAN may be negative
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _class_color(index: int, count: int) -> Any:
    if count <= len(CLASSES):
        return CLASSES[index]
    from matplotlib import colormaps

    return colormaps["turbo"](index / (count - 1))


def _labeled_rows(rows: Sequence[Tensor], labels: Sequence[str], title: str, pair_gap: bool = False) -> "Figure":
    """Draw rows of images with a label to the left of each."""
    columns = len(rows[0])
    images = torch.cat([_pad(row, columns) for row in rows])
    figure, axes = _image_figure(images, columns, title, left=120, pair_gap=pair_gap)
    for index, label in enumerate(labels):
        y = _tops(len(rows), images.shape[2], pair_gap)[index] + images.shape[2] / 2
        axes.text(-3, y, label, ha="right", va="center", fontsize=9)
    return figure


def _pad(images: Tensor, size: int) -> Tensor:
    """Return ``size`` images: white ones fill the rest."""
    return torch.cat([images, images.new_full((size - len(images), *images.shape[1:]), 255)])


def _image_figure(
    images: Tensor, columns: int, title: str = "", left: int = 12, bottom: int = 12, pair_gap: bool = False
) -> "tuple[Figure, Axes]":
    """Return a figure of images in rows, and its axes, whose units are the pixels of the images.

    Args:
        left: pixels left of the images.
        bottom: pixels below them.
    """
    whole = mosaic(images, columns, pair_gap)
    scale = round(SIDE / images.shape[2]) if images.shape[2] < SIDE else SIDE / images.shape[2]
    right, top = 12, 44 if title else 12
    size = scale * np.array(whole.shape[1::-1]) + (left + right, top + bottom)
    figure = new_figure(*size / 110)
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / size[0], bottom / size[1], *(1 - np.array((left + right, top + bottom)) / size)))
    axes.axis("off")
    extent = (0, whole.shape[1], whole.shape[0], 0)
    axes.imshow(whole, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    center = (left + size[0] - right) / 2 / size[0]
    figure.text(center, 1 - 22 / size[1], literal(title), ha="center", va="center", fontsize=11)
    return figure, axes


def mosaic(images: Tensor, columns: int, pair_gap: bool = False, gap: int = GAP) -> np.ndarray:
    """Return images, uint8 ``(N, C, H, W)``, as one, ``(height, width)`` or with colors ``(height, width, 3)``.

    Args:
        columns: images in a row.
        pair_gap: leave more space after every second row.
        gap: pixels around each image.
    """
    height, width = images.shape[2:]
    tops = _tops(-(-len(images) // columns), height, pair_gap, gap)
    size = (tops[-1] + height + gap, columns * (width + gap) + gap)
    whole = np.full((*size, images.shape[1]), 255, dtype=np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = tops[index // columns], gap + index % columns * (width + gap)
        whole[top : top + height, left : left + width] = image
    return whole.squeeze(-1) if images.shape[1] == 1 else whole


def _tops(rows: int, height: int, pair_gap: bool, gap: int = GAP) -> list[int]:
    """Return the first line of each row of images in a mosaic."""
    return [gap + row * (height + gap) + (row // 2 * 3 * gap if pair_gap else 0) for row in range(rows)]
