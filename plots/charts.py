"""The charts and pictures themselves: numbers in, a figure of matplotlib out."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from runs.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, VAL, WRONG = "#3b6ea5", "#d9822b", "#c23b3b"
CLASSES = ("#3b6ea5", "#d9822b", "#4f9d69", "#8d6bb1", "#8c6d5a", "#c77aa8", "#7f7f7f", "#b0a63b", "#41a5b8", "#c23b3b")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, inches; matplotlib is imported here, when there is something to draw."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="tight")


def plain(axes: "Axes", x: str, y: str) -> "Axes":
    """Axes in the look of all charts."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def save(figure: "Figure", path: Path) -> np.ndarray:
    """Writes a PNG file, whole or not at all; returns its pixels, uint8 ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    with atomic_write(path) as temporary:
        temporary.write_bytes(file.getvalue())
    return pixels


def loss(
    rows: Sequence[dict[str, float]], curve: Sequence[tuple[float, float]], size: int, checked_on: str
) -> "Figure":
    """The training loss (line) and the validation loss (dots) against the training examples seen.

    Args:
        rows: of metrics.csv; curve: examples seen and mean loss since the point before; size: of the training set.
    """
    figure = new_figure(6.4, 4)
    axes = plain(figure.subplots(), "training examples seen", "loss")
    points = curve or [(row["epoch"] * size, row["train/loss"]) for row in rows if "train/loss" in row]
    marker = "." if len(points) < 3 else ""
    axes.plot(*zip(*points, strict=True), color=TRAIN, linewidth=1.2, label="training", marker=marker)
    if checked := [(row["epoch"] * size, row["val/loss"]) for row in rows if "val/loss" in row]:
        axes.plot(*zip(*checked, strict=True), "o", color=VAL, markersize=5, label=checked_on)
    values = [value for _, value in (*points, *checked) if np.isfinite(value)]
    if values and min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False)
    return figure


def accuracy(rows: Sequence[dict[str, float]], checked_on: str) -> "Figure":
    """The share that is right after each epoch."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.4, 4)
    axes = plain(figure.subplots(), "epoch", "right, %")
    for key, colour, label in (("train/acc", TRAIN, "training"), ("val/acc", VAL, checked_on)):
        if points := [(row["epoch"], 100 * row[key]) for row in rows if key in row]:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=label)
    if len({row["epoch"] for row in rows}) == 1:
        axes.set_xlim(0, 2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def images(
    pictures: Tensor,
    titles: Sequence[str],
    colours: Sequence[str] | None = None,
    title: str = "",
    captions: Sequence[str] | None = None,
) -> "Figure":
    """Images, uint8 ``(N, C, H, W)``, up to six in a row, each with its title and below it its caption."""
    columns = min(6, len(pictures))
    cell, head = np.array([1.55, 2.05 if captions else 1.9]), 0.3 if title else 0.0  # inches
    width, height = cell * (columns, -(-len(pictures) // columns)) + (0, head)
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))  # one for all: axes of its own for each image take far longer
    axes.axis("off")
    for number, picture in enumerate(pictures):
        left, top = cell * (number % columns, number // columns) + (0.07, head + 0.42)
        extent = (left, left + 1.4, top + 1.4, top)
        axes.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
        colour = colours[number] if colours else "black"
        middle: dict[str, Any] = {"ha": "center", "parse_math": False}  # a name may have dollars in it
        axes.text(left + 0.7, top - 0.05, titles[number], va="bottom", fontsize=10, color=colour, **middle)
        if captions:
            axes.text(left + 0.7, top + 1.43, captions[number][-22:], va="top", fontsize=7, **middle)
    axes.text(width / 2, 0.2, title, ha="center", va="center", fontsize=11)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure


def predictions(
    pictures: Tensor,
    shares: Tensor,
    targets: Tensor | None,
    names: Sequence[str],
    title: str = "",
    captions: Sequence[str] | None = None,
) -> "Figure":
    """Images with the class that the net gives them and its probability; wrong ones in red with the true class.

    Args:
        pictures: uint8 ``(N, C, H, W)``; shares: ``(N, classes)``; targets: ``(N,)``, None where they are not known.
    """
    confidence, labels = shares.max(1)
    truths = labels if targets is None else targets
    titles, colours = [], []
    for probability, label, target in zip(confidence.tolist(), labels.tolist(), truths.tolist(), strict=True):
        wrong = f"\nis {names[target]}" if label != target else ""
        titles.append(f"{names[label]}  {100 * probability:.0f} %{wrong}")
        colours.append(WRONG if wrong else "black")
    return images(pictures, titles, colours, title, captions)


def confusion(counts: np.ndarray, names: Sequence[str]) -> "Figure":
    """How often each class ``(row)`` was taken for each class ``(column)``, with the mistakes alone in colour."""
    size = len(names)
    side = min(11.0, 2.2 + 0.44 * size)
    figure = new_figure(side, side)
    axes = figure.subplots()
    mistakes = counts * (1 - np.eye(size, dtype=counts.dtype))
    axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=max(1, mistakes.max()))
    ticks = range(size)
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(ticks, names)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.tick_params(length=0)
    middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
    for row, column in np.ndindex(size, size) if size <= 20 else ():
        if counts[row, column]:
            dark = mistakes[row, column] > 0.6 * mistakes.max() > 0
            weight = "bold" if row == column else "normal"
            colour = "white" if dark else "black"
            axes.text(column, row, str(counts[row, column]), color=colour, weight=weight, **middle)
    return figure


def classes(counts: np.ndarray, names: Sequence[str]) -> "Figure":
    """The share of each class that is right."""
    totals = counts.sum(1)
    shares = 100 * counts.diagonal() / np.maximum(totals, 1)
    figure = new_figure(6.4, 1.2 + 0.3 * len(names))
    axes = plain(figure.subplots(), "right, %", "")
    axes.barh(range(len(names)), np.where(totals, shares, 0), color=TRAIN, height=0.7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(max(0, np.floor(shares[totals > 0].min() / 10) * 10 - 10), 102)
    for place, (share, total) in enumerate(zip(shares, totals, strict=True)):
        if total:
            axes.text(share, place, f"{share:.1f} ", va="center", ha="right", fontsize=8, color="white")
        else:
            axes.text(axes.get_xlim()[0], place, "no example", va="center", ha="left", fontsize=8)
    axes.grid(axis="y", visible=False)
    return figure


def filters(weight: Tensor) -> "Figure":
    """What the first convolution looks for, each filter on its own scale: weights ``(filters, channels, H, W)``."""
    weight = weight[:64]
    low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
    pictures = (255 * (weight - low) / (high - low).clamp_min(1e-12)).to(torch.uint8)
    if pictures.shape[1] not in (1, 3):
        pictures = pictures[:, :1]
    columns = min(8, len(pictures))
    lines = -(-len(pictures) // columns)
    size = np.array(pictures.shape[2:]) + 1
    mosaic = np.full((*(size * (lines, columns) - 1), pictures.shape[1]), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        top, left = size * (number // columns, number % columns)
        mosaic[top : top + size[0] - 1, left : left + size[1] - 1] = picture
    figure = new_figure(0.9 * columns, 0.9 * lines + 0.4)
    axes = figure.subplots()
    axes.axis("off")
    axes.imshow(mosaic.squeeze(-1) if mosaic.shape[-1] == 1 else mosaic, cmap="gray", interpolation="nearest")
    figure.suptitle("filters of the first layer", fontsize=11)
    return figure


@torch.no_grad()
def boundaries(
    pl_module: Any,
    way: dict[int, dict[str, Tensor]],
    points: Tensor,
    targets: Tensor,
    names: Sequence[str],
    prepare: Callable[[Tensor], Tensor],
    columns: Sequence[str],
) -> dict[str, "Figure"]:
    """The decision boundary with the points ``(N, 2)``, at the end and over the epochs.

    Args:
        pl_module: the trained model; way: epoch -> weights of its net; targets: ``(N,)``; names: of the two classes.
        prepare: makes what the net sees of points; columns: what the axes are called.
    """
    low, high = points.amin(0), points.amax(0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    x, y = (torch.linspace(low[axis], high[axis], 120) for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)
    net, final = pl_module.net, {name: tensor.clone() for name, tensor in pl_module.net.state_dict().items()}
    training = net.training
    net.eval()

    def paint(axes: "Axes", state: dict[str, Tensor], size: float) -> None:
        net.load_state_dict(state)
        shares = pl_module.probabilities(net(prepare(grid).to(next(net.parameters())))).float().cpu()
        first = shares[:, 0].view(120, 120).numpy()
        axes.contourf(x, y, first, levels=np.linspace(0, 1, 11), colors=_blend(CLASSES[1], CLASSES[0], 10), alpha=0.45)
        if first.min() < 0.5 < first.max():
            axes.contour(x, y, first, levels=[0.5], colors="black", linewidths=1.2)
        for number, name in enumerate(names):
            across, up = points[targets == number].T
            axes.scatter(across, up, s=size, color=CLASSES[number], edgecolor="white", linewidth=0.3, label=name)

    one = new_figure(5.6, 5)
    axes = plain(one.subplots(), *columns)
    paint(axes, final, 16)
    axes.legend(loc="upper left", fontsize=8)
    many = new_figure(9, 6)
    epochs = [list(way)[place] for place in np.unique(np.linspace(0, len(way) - 1, 6).round().astype(int))]
    for axes, epoch in zip(many.subplots(2, 3).ravel(), [*epochs, *[None] * (6 - len(epochs))], strict=True):
        axes.axis("off")
        if epoch is not None:
            paint(axes, way[epoch], 6)
            axes.set_title("before training" if epoch == 0 else f"epoch {epoch}", fontsize=10)
    net.load_state_dict(final)
    net.train(training)
    return {"boundary": one, "boundaries": many}


def _blend(low: str, high: str, steps: int) -> list[tuple[float, float, float]]:
    """Colours from one through white to another."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", [low, "white", high])(np.linspace(0, 1, steps)).tolist()


def line(x: np.ndarray, y: np.ndarray, weight: float, bias: float) -> "Figure":
    """The points, the line that was fitted, and the one that least squares gives."""
    figure = new_figure(6.4, 4)
    axes = plain(figure.subplots(), "input", "target")
    axes.plot(x, y, "o", color=TRAIN, label="points")
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, weight * ends + bias, color=VAL, label=f"fitted: {_formula(weight, bias)}")
    if len(set(x)) > 1:
        slope, height = np.polyfit(x, y, 1)
        label = f"least squares: {_formula(slope, height)}"
        axes.plot(ends, slope * ends + height, "--", color="grey", linewidth=1, label=label)
    axes.legend(frameon=False)
    return figure


def _formula(weight: float, bias: float) -> str:
    return f"{weight:,.4g} x {'-' if bias < 0 else '+'} {abs(bias):,.4g}"


def surface(x: np.ndarray, y: np.ndarray, path: np.ndarray) -> "Figure":
    """The mean squared error over weight and bias, and the path ``(steps + 1, 2)`` that was walked on it."""
    from matplotlib.colors import LogNorm

    goal = np.array(np.polyfit(x, y, 1)) if len(set(x)) > 1 else path[-1]
    places = np.vstack([path, goal])
    low, high = places.min(0), places.max(0)
    margin = 0.15 * np.maximum(high - low, 0.1 * np.maximum(np.abs(high), 1))
    weights, biases = (np.linspace(low[axis] - margin[axis], high[axis] + margin[axis], 150) for axis in (0, 1))
    errors = weights[None, :, None] * x + biases[:, None, None] - y  # (biases, weights, points)
    heights = (errors**2).mean(-1)
    figure = new_figure(6.4, 4.6)
    axes = plain(figure.subplots(), "weight", "bias")
    levels = np.geomspace(max(heights.min(), 1e-9 * heights.max(), 1e-12), heights.max(), 16)
    heights = np.maximum(heights, levels[0])
    shown = axes.contourf(weights, biases, heights, levels=levels, norm=LogNorm(), cmap="Blues_r")
    figure.colorbar(shown, label="mean squared error", format="%.2g")
    label = "the path, a dot after each epoch" if len(path) < 50 else "the path"
    axes.plot(*path.T, "-o", color=VAL, markersize=3.5, linewidth=1.2, label=label)
    axes.plot(*path[0], "s", color="black", markersize=6, label="start")
    axes.plot(*goal, "*", color=WRONG, markersize=11, label="least squares")
    axes.legend(fontsize=8)
    return figure
