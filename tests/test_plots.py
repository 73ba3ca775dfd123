"""Plots are drawn from numbers alone, and names are drawn as they are, not as formulas."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from callbacks.plots import Plots
from lit_models import GAN
from plots.classification import confusion_matrix, decision_boundaries, decision_boundary, per_class_accuracy
from plots.figure import new_figure, style_axes, to_pixels
from plots.generative import adversarial_losses, latent_walk
from plots.images import image_grid, predictions
from plots.line import line_fit, loss_surface
from plots.training import accuracy_curve, loss_curve
from runs.files import write_png
from tests.conftest import run

TRAINING_FIGURES = Plots._training_figures

# matplotlib reads text between two dollar signs as a formula, and fails on this one.
NAMES = (r"$\frac{$", r"5$ \$ 6$")
ROWS = [{"epoch": 1.0, "train/loss": 2.0, "val/loss": 1.9, "train/acc": 0.5, "val/acc": 0.6}]
POINTS, TARGETS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1, 1])
IMAGES = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)


def probs_of(points: torch.Tensor) -> torch.Tensor:
    return torch.stack([points.sum(1).sigmoid(), 1 - points.sum(1).sigmoid()], 1)


FIGURES = {
    "confusion_matrix": lambda names: confusion_matrix(np.array([[3, 1], [0, 2]]), names),
    "per_class_accuracy": lambda names: per_class_accuracy(np.array([[3, 1], [0, 2]]), names),
    "decision_boundary": lambda names: decision_boundary(probs_of, POINTS, TARGETS, names, names),
    "image_grid": lambda names: image_grid(IMAGES, names, title=names[0], captions=names),
    "predictions": lambda names: predictions(IMAGES, torch.eye(2), torch.tensor([1, 1]), names, names[0], names),
    "loss_curve": lambda names: loss_curve(ROWS, [], 100, names[0]),
    "accuracy_curve": lambda names: accuracy_curve(ROWS, names[0]),
    "axes": lambda names: style_axes(new_figure(3, 2).subplots(), *names).figure,
}


@pytest.mark.parametrize("name", FIGURES)
def test_names_with_dollar_signs_are_drawn_literally(name: str) -> None:
    pixels = to_pixels(FIGURES[name](NAMES))
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    # The dollar signs must be drawn too.
    without = to_pixels(FIGURES[name]([text.replace("$", "") for text in NAMES]))
    assert pixels.shape != without.shape or (pixels != without).any()


def test_confusion_matrix_names_classes_without_examples() -> None:
    figure = confusion_matrix(np.array([[3, 1], [0, 0]]), ["ant", "cat"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ant", "cat (no example)"]


def test_shortened_caption_begins_with_an_ellipsis() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    figure = image_grid(images, ["", ""], captions=["six_and_sixteen_22.png", "seven_and_seventeen.png"])
    assert [text.get_text() for text in figure.axes[0].texts if text.get_fontsize() == 7] == [
        "six_and_sixteen_22.png",
        "…ven_and_seventeen.png",
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_image_grid_has_up_to_six_images_per_row(size: int) -> None:
    figure = image_grid(torch.zeros(size, 1, 8, 8, dtype=torch.uint8), ["a"] * size)
    width, height = figure.get_size_inches()
    assert width == pytest.approx(1.55 * min(size, 6))
    assert height == pytest.approx(1.9 * -(-size // 6))


def tick_labels(figure: Figure, axis: str) -> list[str]:
    """Return the labels of the ticks that are drawn."""
    figure.draw_without_rendering()
    of_axis = getattr(figure.axes[0], f"{axis}axis")
    low, high = sorted(of_axis.get_view_interval())
    return [tick.label1.get_text() for tick in of_axis.get_major_ticks() if low <= tick.get_loc() <= high]


def test_loss_after_one_example_has_whole_numbers_of_examples() -> None:
    assert tick_labels(loss_curve([], [(1, 0.5)], 1, "validation"), "x") == ["0", "1"]


@pytest.mark.parametrize("offset", [0, 1000])
def test_small_losses_have_whole_numbers_at_their_ticks(offset: float) -> None:
    figure = loss_curve([], [(100, offset + 1e-5), (200, offset + 3e-5)], 100, "validation")
    numbers = [float(label.replace(",", "")) for label in tick_labels(figure, "y")]
    assert figure.axes[0].yaxis.get_offset_text().get_text() == ""
    assert all(offset + 0.9e-5 < number < offset + 3.1e-5 for number in numbers) and len(set(numbers)) == len(numbers)


def test_ticks_have_plain_numbers_that_do_not_overlap() -> None:
    figure = loss_curve([], [(1e6, 1.2), (2e6, 1.1)], 100, "validation")
    assert "1,500,000" in tick_labels(figure, "x") and {len(label) for label in tick_labels(figure, "y")} == {4}
    ticks = [tick.label1.get_window_extent() for tick in figure.axes[0].xaxis.get_major_ticks()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(ticks))


def test_bars_of_accuracies_begin_at_zero() -> None:
    figure = per_class_accuracy(np.array([[97, 3, 0], [1, 1, 98], [0, 0, 0]]), ["a", "b", "c"])
    assert figure.axes[0].get_xlim() == (0, 100)
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["97.0", "1.0", "no example"]
    assert [text.get_color() for text in figure.axes[0].texts] == [
        "white",
        "black",
        "black",
    ]  # white beside a bar is lost


def test_accuracy_of_the_training_is_named_a_mean_over_the_epoch() -> None:
    axes = accuracy_curve(ROWS, "validation").axes[0]
    assert [line.get_label() for line in axes.lines] == ["training, mean over the running epoch", "validation"]
    assert axes.get_ylabel() == "accuracy (%)"


def test_several_steps_for_each_batch_count_its_examples_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net learns from 200 examples 3 times in each epoch. conftest replaces the method that draws them."""
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(Plots, "_training_figures", TRAINING_FIGURES)
    monkeypatch.setattr(Plots, "_draw", lambda self, trainer, figures: drawn.update(figures))
    more = ("model.steps_per_batch=3", "data.batch_size=50", "trainer.max_epochs=2", "trainer.log_every_n_steps=2")
    run("run", "model=blobs_mlp", "data=blobs", "logger=none", *more)
    assert list(drawn["loss"].axes[0].lines[0].get_xdata()) == [300, 600, 900, 1200]


def test_walk_has_room_for_the_axis_name() -> None:
    images = torch.zeros(16, 1, 28, 28, dtype=torch.uint8)
    figure = latent_walk(images, range(4), (-0.0054, -0.54, -120, -150), ("first", "second"))
    figure.draw_without_rendering()
    assert figure.axes[0].yaxis.label.get_window_extent().x0 > 0


def test_decision_boundaries_include_the_first_and_the_last_epoch() -> None:
    epochs: list[int] = []

    def probs_at(epoch: int, points: torch.Tensor) -> torch.Tensor:
        epochs.append(epoch)
        return probs_of(points)

    figure = decision_boundaries(probs_at, list(range(0, 101, 10)), POINTS, TARGETS, ("a", "b"))
    assert (len(epochs), epochs[0], epochs[-1]) == (6, 0, 100)
    assert [axes.get_title() for axes in figure.axes][::5] == ["before training", "epoch 100"]


def test_line_plots_work_for_one_point_and_for_many() -> None:
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.1, 5.9])
    path = np.array([[0.0, 0.0], [1.0, 0.5], [1.9, 0.1]])
    for count in (1, 3):
        for figure in (line_fit(x[:count], y[:count], 2.0, 0.0), loss_surface(x[:count], y[:count], path)):
            assert to_pixels(figure).std() > 5


def test_losses_of_a_gan_have_a_line_only_where_the_model_names_it() -> None:
    """The README's GAN adds both losses of its discriminator; those of a Wasserstein GAN may be negative."""
    rows = [{"epoch": epoch, "train/g_loss": -1.0 * epoch, "train/d_loss": 0.5} for epoch in (1, 2, 3)]
    axes = adversarial_losses(rows, {}, 100).axes[0]
    assert [line.get_label() for line in axes.lines] == ["generator", "discriminator"]
    assert axes.get_ylim()[0] < -3
    axes = adversarial_losses(rows[:0], {"g_loss": [(10, 0.7)], "d_loss": [(10, 0.6)]}, 100, math.log(2)).axes[0]
    assert axes.lines[2].get_label() == "0.693: a coin would do as well"
    assert axes.get_ylim()[0] == 0
    assert GAN.undecided_loss == pytest.approx(-math.log(0.5))


def test_png_file_holds_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(Path("pictures/noise.png"), pixels)
    with Image.open("pictures/noise.png") as image:
        assert (np.asarray(image) == pixels).all()
    assert [path.name for path in Path("pictures").iterdir()] == ["noise.png"]
