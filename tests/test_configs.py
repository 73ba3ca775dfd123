"""Every option of every config group composes, instantiates and trains, or is refused with one line."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

import train
from cli.build import build
from cli.compose import compose
from cli.errors import format_error
from runs.checkpoint import load_checkpoint
from tests.conftest import PROJECT


def options(group: str) -> list[str]:
    names = sorted(path.stem for path in (PROJECT / "conf" / group).glob("*.yaml"))
    assert names
    return names


@pytest.fixture
def tiny_images(random_images: Callable[[int, int], None]) -> None:
    random_images(40, 40)


@pytest.mark.parametrize("group", sorted(path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()))
def test_every_config_file_begins_with_a_description(group: str) -> None:
    for path in (PROJECT / "conf" / group).rglob("*.yaml"):
        if group != "hydra":
            header = path.read_text().removeprefix("# @package _global_\n")
            assert header.startswith("# "), path


def two_steps(*overrides: str) -> dict:
    cfg = compose(*overrides, "trainer.max_epochs=2", "trainer.accelerator=cpu", "logger=none")
    folder = Path("run")
    folder.mkdir()
    return train.train_config(cfg, folder)


IMAGES = ("cifar10", "fashion_mnist", "image_folder", "mnist")
IMAGE_MODELS = ("cnn", "dropout_cnn", "lenet", "mlp", "quick_cnn", "residual_cnn", "resnet18", "speedrun")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[str]]:
    """Return the overrides of data=image_folder for three classes of images, and of data=csv for a table."""
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 30)).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "table.csv").write_text("x,y,z\n1,a,3\n2,b,4\n3,a,5\n")
    table = [f"data.path={tmp_path / 'table.csv'}", "data.columns=[x]"]
    return {"image_folder": [f"data.root={tmp_path / 'images'}"], "csv": [*table, "data.target=y"]}


ONE_BATCH = [f"trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
SMALL = {
    **{data: ["data.val_size=4", "data.batch_size=4"] for data in ("cifar10", "fashion_mnist", "mnist", "mnist_pairs")},
    "tabular": ["data.size=100"],
    "sines": ["data.size=10", "data.length=50"],
}


# Of the pairs of a model and a data set the quick tests try some: those of one model, and those of two data sets.
PAIRS = [
    pytest.param(model, data, marks=() if model == "cnn" or data in ("mnist", "blobs") else pytest.mark.slow)
    for model, data in itertools.product(options("model"), options("data"))
]


@pytest.mark.parametrize(("model", "data"), PAIRS)
def test_model_trains_on_data_set_or_is_refused_with_one_line(
    model: str, data: str, files: dict[str, list[str]], random_images: Callable[[int, int], None]
) -> None:
    random_images(12, 4)
    settings = [f"model={model}", f"data={data}", *files.get(data, []), *SMALL.get(data, [])]
    check_two_steps_or_error(model, data, *settings)
    if data == "csv":
        check_two_steps_or_error(model, data, *settings, "data.target=z")  # a regression


def check_two_steps_or_error(model: str, data: str, *settings: str) -> None:
    """Train for two steps, which change the weights, or expect one line of an error."""
    cfg = compose(*settings)
    if "steps_per_batch" in cfg.model:  # 1,000 where all examples are one batch
        settings += ("model.steps_per_batch=1",)
    try:
        _, module = build(cfg)
    except Exception as error:
        assert model not in IMAGE_MODELS or data not in IMAGES, error
        line = format_error(error)
        assert any(words in line for words in (" takes ", " learns ", " goes from ", " separates two classes")), line
        return
    assert data in (*IMAGES, "mnist_pairs") or model not in ("cnn", "lenet") or data.startswith("one_")
    if data == "fashion_mnist":  # random images of the same shape as data=mnist
        return
    shutil.rmtree("run", ignore_errors=True)
    try:
        result = two_steps(*settings, *ONE_BATCH)
    except ValueError as error:  # of batch norm, and of a VAE, which see one example only
        words = ("Expected more than 1 value per channel", "reads pixels as probabilities")
        assert data.startswith("one_") and any(one in str(error) for one in words), error
        return
    assert result["steps"] >= 2
    trained = load_checkpoint(Path("run/checkpoints/last.ckpt"))["state_dict"]
    weights = dict(module.named_parameters())
    assert any(not torch.equal(trained[name], start) for name, start in weights.items())
    assert all(trained[name].isfinite().all() for name in weights)
    if model in IMAGE_MODELS and data in IMAGES:
        figures = {name for name in result["metrics"] if name.count("/") == 1}
        assert figures == {f"{stage}/{metric}" for stage in ("train", "val", "test") for metric in ("loss", "acc")}


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "scheduler"), [*itertools.product(options("optimizer"), options("scheduler"))])
@pytest.mark.parametrize("model", ["model=blobs_mlp data=blobs model.steps_per_batch=3", "model=mlp data=mnist"])
def test_every_optimizer_trains_with_every_scheduler(
    model: str, optimizer: str, scheduler: str, tiny_images: None
) -> None:
    batch = 32 if optimizer == "lbfgs" else 16  # L-BFGS is for full batches: its history is of one function
    sizes = [] if "blobs" in model else ["data.val_size=8", f"data.batch_size={batch}"]
    result = two_steps(*model.split(), f"optimizer={optimizer}", f"scheduler={scheduler}", *sizes)
    assert result["status"] == "finished"


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_optimizer_trains_convolutions(optimizer: str, tiny_images: None) -> None:
    """Their weights have four dimensions, and are channels-last."""
    sizes = ("data.val_size=8", "data.batch_size=32")
    result = two_steps("model=quick_cnn", "data=cifar10", f"optimizer={optimizer}", *sizes)
    assert result["status"] == "finished"


@pytest.mark.parametrize("data", options("data"))
def test_data_sets_declare_shape_and_classes(data: str, files: dict[str, list[str]]) -> None:
    datamodule = instantiate(compose(f"data={data}", *files.get(data, [])).data)
    assert datamodule.shape
    assert len(datamodule.class_names) in (0, datamodule.num_classes)


REQUIRED = {"callbacks=judge": ["callbacks.judge.run=judge"]}
GROUPS = ("experiment", "sweep", "metrics", "trainer", "callbacks", "logger", "debug")


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in options(group)])
def test_options_compose_and_resolve(choice: str) -> None:
    cfg = compose(choice, *REQUIRED.get(choice, []))
    assert json.dumps(OmegaConf.to_container(cfg, resolve=True))


@pytest.mark.parametrize("group", ["trainer", "callbacks", "logger"])
def test_trainer_callback_and_logger_options_instantiate(group: str, tiny_images: None) -> None:
    Path("judge").mkdir()
    train.train_config(compose("data=mnist", "data.val_size=8", "trainer.max_epochs=1", "logger=none"), Path("judge"))
    for option in options(group):
        choice = f"{group}={option}"
        cfg = compose(choice, *REQUIRED.get(choice, []), "trainer.accelerator=cpu")
        assert cfg[group] is not None or option == "none"
        if group == "logger":
            built = [instantiate(one, save_dir=".") for one in cfg.logger.values()]
        else:
            built = instantiate(cfg[group])
        assert built is not None
