"""The plots of a run, its event files, and TensorBoard in a browser."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import datamodules
import train
from cli.compose import compose, run_title
from plots import figure
from tests.conftest import PROJECT

BLOBS = ("model=blobs_mlp", "data=blobs", "trainer.accelerator=cpu", "trainer.max_epochs=4")


def run(*overrides: str) -> dict:
    return train.train_config(compose(*overrides), Path("run"))


def plot_names() -> set[str]:
    return {path.stem for path in Path("run/pictures").glob("*.png")}


def pixels(name: str) -> np.ndarray:
    return matplotlib.image.imread(f"run/pictures/{name}.png")[..., :3]


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the image data sets by images that a net can classify: the brighter, the higher the class."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(200) % self.num_classes
        noise = torch.randint(20, (200, *self.shape), generator=generator)
        return [((25 * labels.view(-1, 1, 1, 1) + noise).clamp(0, 255).to(torch.uint8), labels)] * 2

    monkeypatch.setattr(datamodules.images.ImageDataModule, "load", load)


# --- plots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data, model", [("mnist", "cnn"), ("cifar10", "lenet"), ("fashion_mnist", "mlp")])
def test_image_classifiers_get_all_their_plots(data: str, model: str, few_images: None) -> None:
    run(f"data={data}", f"model={model}", "data.val_size=20", "trainer.max_epochs=2", "logger=none")
    expected = {"loss", "accuracy", "confusion", "classes", "samples", "predictions", "mistakes"}
    assert plot_names() == expected | ({"filters"} if model != "mlp" else set())
    for name in plot_names():
        assert pixels(name).std() > 0.02, f"{name} is empty"
        assert 300 < pixels(name).shape[1] < 1300


def test_samples_plot_shows_the_first_test_images(few_images: None) -> None:
    run("data=mnist", "model=mlp", "data.val_size=20", "trainer.max_epochs=1", "logger=none")
    # Higher classes are brighter, so the six samples get brighter from left to right.
    image = pixels("samples").mean(-1)
    center = image[int(0.5 * len(image)) : int(0.75 * len(image))]  # below the titles
    middles = [np.median(center[:, int((number + 0.5) / 6 * image.shape[1])]) for number in range(6)]
    assert middles == sorted(middles)
    assert middles[0] < 0.1 < 0.4 < middles[-1]


def fail(*arguments: object) -> None:
    raise RuntimeError("no\nfont")


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ("callbacks.plots.loss_curve", "loss.png"),
        ("callbacks.plots.confusion_matrix", "confusion.png"),
        ("callbacks.plots.to_pixels", "loss.png"),
        ("datamodules.images.ImageDataModule.to_uint8", "the pictures of the test"),
    ],
)
def test_run_is_finished_whatever_its_pictures_raise(
    broken: str, lost: str, few_images: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broken, fail)
    result = run("model=mlp", "model.net.hidden_sizes=[8]", "data.val_size=20", "trainer.max_epochs=1", "logger=none")
    assert result["status"] == "finished"
    assert json.loads(Path("run/result.json").read_text())["status"] == "finished"
    assert f"{lost} cannot be drawn: RuntimeError: no font; the run continues" in caplog.messages
    assert plot_names() == set() if "to_pixels" in broken else "accuracy" in plot_names()


def test_test_files_that_broke_during_training_leave_the_run_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datamodules.ImageFolder._check_readable", lambda self, split: None)  # before they broke
    for name, color in (("a", 0), ("b", 255)):
        for part in ("train", "test"):
            (folder := tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (color, number, 0)).save(folder / f"{number}.png")
                if part == "test":
                    (folder / f"{number}.png").write_text("no image")
    result = run("model=mlp", "data=image_folder", "data.root=images", "trainer.max_epochs=1", "logger=none")
    assert result["status"] == "finished"
    assert not any(name.startswith("test/") for name in result["metrics"])
    assert "test/: nothing is measured, because no example could be read" in caplog.messages


def test_decision_boundary_plot_separates_the_classes() -> None:
    run("experiment=blobs_logits", "trainer.accelerator=cpu", "logger=none")
    assert plot_names() == {"loss", "accuracy", "confusion", "classes", "boundary", "boundaries"}
    image = pixels("boundary")
    height, width, _ = image.shape
    # Class 0 is at (2, 2), in the blue half at the top right. Class 1 is in the orange half at the bottom left.
    corner = {"blue": image[int(0.15 * height), int(0.9 * width)], "orange": image[int(0.8 * height), int(0.2 * width)]}
    assert corner["blue"][2] > corner["blue"][0] + 0.1
    assert corner["orange"][0] > corner["orange"][2] + 0.1


def test_line_plot_passes_near_its_points() -> None:
    run("experiment=line_rescaled", "model.steps_per_batch=1000", "trainer.max_epochs=3", "logger=none")
    assert plot_names() == {"loss", "line", "surface"}
    image = pixels("line")
    points, fitted = (
        np.argwhere(np.abs(image - np.array(matplotlib.colors.to_rgb(color))).max(-1) < 0.02)
        for color in (figure.TRAIN, figure.VAL)
    )
    assert len(points) > 100
    distances = np.abs(points[:, None] - fitted[None]).sum(-1).min(1)
    assert np.quantile(distances, 0.9) < 40  # of about 400 pixels; 150 before training


def test_diverged_run_gets_its_plots() -> None:
    run("experiment=line_diverging", "logger=none")
    assert plot_names() == {"loss", "line", "surface"}


class Bars(datamodules.InMemoryDataModule):
    """A data set of images that does not override ``to_uint8``."""

    shape, num_classes, class_names = (1, 12, 12), 2, ("upright", "flat")

    def load(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        targets = torch.arange(60) % 2
        upright = torch.zeros(12, 12)
        upright[:, 5:7] = 3
        images = torch.where(targets[:, None, None] == 0, upright, upright.T)[:, None]
        return (images[:40], targets[:40]), (images[40:], targets[40:])


def test_custom_image_data_set_is_plotted(tmp_path: Path) -> None:
    cfg = compose("model=mlp", "data=blobs", "trainer.max_epochs=1", "logger=none")
    cfg.data = {"_target_": f"{__name__}.Bars", "batch_size": 8, "val_size": 8}
    assert train.train_config(cfg, tmp_path)["status"] == "finished"
    assert (tmp_path / "pictures/predictions.png").exists()
    pictures = Bars().to_uint8(Bars().load()[0][0][:2])
    assert (pictures.dtype, pictures.shape) == (torch.uint8, (2, 1, 12, 12))
    assert set(pictures.unique().tolist()) == {0, 255}
    assert len(Bars().to_uint8(torch.zeros(0, 1, 12, 12))) == 0


@pytest.mark.parametrize(("model", "name"), [("mlp", "loss_curve"), ("gan", "adversarial_losses")])
def test_losses_are_drawn_over_the_examples_that_were_trained_on(
    model: str, name: str, few_images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the batches in each epoch: the means of epochs and the points within them have one scale."""
    drawn: list[tuple] = []
    monkeypatch.setattr(f"callbacks.plots.{name}", lambda *given: drawn.append(given) or figure.new_figure(1, 1))
    monkeypatch.setattr("callbacks.plots.Plots._epoch_figures", lambda *_: {})
    limits = ("trainer.limit_train_batches=3", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    run(f"model={model}", "data=mnist", "data.batch_size=5", "data.val_size=20", "logger=none", *limits)
    rows, curves, epoch_size, last = drawn[-1]
    assert [row["epoch"] * epoch_size for row in rows] == [15, 30]
    points = curves["g_loss"] if model == "gan" else curves
    assert [seen for seen, _ in points] == [5, 10, 15, 20, 25, 30]
    assert last == (pytest.approx(0.6931, abs=1e-4) if model == "gan" else "validation")  # ln 2


def test_weight_history_continues_after_resume() -> None:
    settings = (*BLOBS, "model.steps_per_batch=20", "logger=none")
    run(*settings, "trainer.max_epochs=2")
    whole = torch.load("run/checkpoints/last.ckpt", weights_only=True)["callbacks"]["Plots"]["weight_history"]
    assert len(whole) == 3
    run("resume=run", "trainer.max_epochs=4")
    history = torch.load("run/checkpoints/last.ckpt", weights_only=True)["callbacks"]["Plots"]["weight_history"]
    assert len(history) == 5
    assert all(torch.equal(history[0][name], whole[0][name]) for name in history[0])


@pytest.mark.slow
def test_weight_history_of_a_long_training_is_thinned() -> None:
    run("experiment=line_slow", "trainer.max_epochs=250", "logger=none")
    history = torch.load("run/checkpoints/last.ckpt", weights_only=True)["callbacks"]["Plots"]["weight_history"]
    assert list(history) == list(range(0, 251, 4))


def test_plots_can_be_turned_off_or_drawn_every_n_epochs() -> None:
    run(*BLOBS, "model.steps_per_batch=20", "logger=none", "callbacks.pictures=null")
    assert not Path("run/pictures").exists()
    result = run(*BLOBS, "model.steps_per_batch=20", "callbacks.pictures.every_n_epochs=2")
    events = EventAccumulator(Path("run/dashboard.txt").read_text().strip()).Reload()
    assert [image.step for image in events.Images("pictures/boundary")] == [40, 80]
    assert result["status"] == "finished"


# --- event files --------------------------------------------------------------------------------------------------


def test_event_files_hold_curves_plots_graph_config_and_hparams(few_images: None) -> None:
    settings = ("data=mnist", "model=cnn", "data.val_size=20", "trainer.max_epochs=2", "optimizer.lr=0.01", "seed=3")
    result = run(*settings)
    folder = Path(Path("run/dashboard.txt").read_text().strip())
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    scalars = {f"{stage}/{metric}" for stage in ("train", "val", "test") for metric in ("loss", "acc")}
    assert scalars | {"trainer/examples_per_second"} <= set(tags["scalars"])
    assert "hp_metric" not in tags["scalars"]
    assert not any(name.startswith("test/acc/") for name in tags["scalars"])  # each would be a column of HPARAMS
    assert {f"pictures/{name}" for name in plot_names()} == set(tags["images"])
    assert "config/text_summary" in tags["tensors"]
    assert tags["graph"]
    (point,) = events.Scalars("test/acc")  # HPARAMS adds no second point
    assert point.value == pytest.approx(result["metrics"]["test/acc"])
    row = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    assert row.session_start_info.hparams["optimizer.lr"].number_value == pytest.approx(0.01)
    # TensorBoard would show the metrics of one such list for all runs; without any it shows those of each.
    assert "_hparams_/experiment" not in events.PluginTagToContent("hparams")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_event_files_of_a_generator_hold_its_graph(
    model: str, few_images: None, capfd: pytest.CaptureFixture[str]
) -> None:
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "callbacks.pictures=null", "data.val_size=20")
    run("data=mnist", f"model={model}", *short)
    assert EventAccumulator(Path("run/dashboard.txt").read_text().strip()).Reload().Tags()["graph"]
    output, errors = capfd.readouterr()
    assert "Error" not in output + errors


def test_tensorboard_extras_write_pr_curves_and_embeddings(few_images: None) -> None:
    run("data=mnist", "model=cnn", "data.val_size=20", "trainer.max_epochs=1", "callbacks=tensorboard_extras")
    folder = Path(Path("run/dashboard.txt").read_text().strip())
    tensors = EventAccumulator(str(folder)).Reload().Tags()["tensors"]
    assert {f"test/{digit}" for digit in range(10)} <= set(tensors)
    assert "last layer's inputs" in (folder / "projector_config.pbtxt").read_text().replace("\\'", "'")
    (vectors,) = folder.rglob("tensors.tsv")
    assert len(vectors.read_text().splitlines()) == 200
    (labels,) = folder.rglob("metadata.tsv")
    assert labels.read_text().split()[:11] == [*"0123456789", "0"]


def test_tensorboard_extras_refuse_a_regression() -> None:
    with pytest.raises(ValueError, match="callbacks=tensorboard_extras is for classifiers"):
        run("experiment=line_slow", "callbacks=tensorboard_extras", "logger=none")


@pytest.mark.parametrize(
    "overrides, title",
    [
        ([], "mnist_cnn/seed=1"),
        (["model=cnn", "optimizer.lr=0.1"], "mnist_cnn/lr=0.1 seed=1"),
        (["data.batch_size=64", "trainer.accelerator=cpu", "logger=tensorboard"], "mnist_cnn/batch_size=64 seed=1"),
        (["experiment=mnist_cnn", "model=mlp"], "mnist_cnn/model=mlp seed=1"),
        (["data.root=/a/b", "+model.weights=../x/y.pt"], "mnist_cnn/weights=.._x_y.pt seed=1"),
    ],
)
def test_run_title_lists_the_overrides_and_the_seed(overrides: list[str], title: str) -> None:
    assert run_title("mnist_cnn", overrides, 1) == title


# --- a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Train three runs and start TensorBoard. Return its address and the working directory."""
    folder = tmp_path_factory.mktemp("dashboard")
    line = ["experiment=line_slow", "trainer.max_epochs=50"]
    for settings in ([*BLOBS, "seed=1"], [*BLOBS, "optimizer.lr=0.1", "seed=2"], line):
        command = [sys.executable, str(PROJECT / "train.py"), *settings]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "outputs", "--port", "0", "--host", "127.0.0.1"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://[^ ]+", line)))
        yield address, folder
    finally:
        server.terminate()
        server.wait()


# Returns all visible text. TensorBoard's custom elements keep theirs in shadow roots, which querySelector skips.
VISIBLE_TEXT = """
const parts = [], pictures = [];
(function walk(node) {
  if (node.nodeType === Node.TEXT_NODE) {
    const parent = node.parentElement;
    if (node.textContent.trim() && (!parent || parent.checkVisibility())) parts.push(node.textContent.trim());
  }
  if (node.tagName === 'IMG' && node.naturalWidth > 100) pictures.push(node.naturalWidth);
  if (['SCRIPT', 'STYLE'].includes(node.tagName)) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
})(document.body);
return [parts.join(' '), pictures];
"""


def wait_for(browser, *words: str, pictures: int = 0) -> str:
    from selenium.webdriver.support.ui import WebDriverWait

    def text_if_complete(window) -> str | bool:
        text, images = window.execute_script(VISIBLE_TEXT)
        return text if all(word in text for word in words) and len(images) >= pictures else False

    return WebDriverWait(browser, 60, ignored_exceptions=()).until(text_if_complete, f"{words} are not all shown")


@pytest.mark.browser
def test_browser_shows_runs_charts_and_a_plot(dashboard: tuple[str, Path], browser) -> None:
    address, _ = dashboard
    browser.get(f"{address}#timeseries")
    runs = ("blobs_mlp_on_blobs/max_epochs=4 seed=1", "blobs_mlp_on_blobs/max_epochs=4 lr=0.1 seed=2")
    wait_for(browser, *runs, "pictures", "boundary", "train", "val", "test", pictures=1)


@pytest.mark.browser
def test_browser_draws_a_curve(dashboard: tuple[str, Path], browser) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    address, folder = dashboard
    browser.get(f"{address}?tagFilter=train%2Floss%24#timeseries")
    wait = WebDriverWait(browser, 60)
    card = wait.until(lambda window: window.find_elements(By.TAG_NAME, "scalar-card"))[0]

    def has_lines(_) -> bool:
        image = matplotlib.image.imread(io.BytesIO(card.screenshot_as_png))[..., :3]
        return int((image.max(-1) - image.min(-1) > 0.3).sum()) > 100  # colored pixels

    wait.until(has_lines)
    for file in folder.glob("outputs/blobs_mlp_on_blobs/*/metrics.csv"):
        last = float(file.read_text().splitlines()[-1].split(",")[2])
        assert f"{last:.4f}" in card.text  # the table below the chart


@pytest.mark.browser
def test_browser_shows_hparams_with_the_test_metrics_of_different_models(dashboard: tuple[str, Path], browser) -> None:
    address, folder = dashboard
    browser.get(f"{address}#hparams")
    results = [json.loads(path.read_text())["metrics"] for path in folder.glob("outputs/*/*/result.json")]
    figures = [f"{metrics.get('test/acc', metrics.get('test/r2')):#.5g}" for metrics in results]  # r2 of the line
    assert len(results) == 3
    shown = ["coefficients/b", "coefficients/w", "test/acc", "test/loss", "test/r2"]  # the first five by name
    text = wait_for(browser, *shown, "optimizer.lr", "0.10000", *figures)
    (weight,) = (f"{metrics['w']:#.5g}" for metrics in results if "w" in metrics)
    assert weight in text
    assert "test/rmse" in text  # among those that can be ticked
    assert "hp_metric" not in text
    assert os.path.isdir(folder / "outputs" / "blobs_mlp_on_blobs" / "max_epochs=4 lr=0.1 seed=2")
