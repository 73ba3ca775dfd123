"""Every option of every config group composes, instantiates and trains, or is refused with one line."""

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import train
from cli.build import build
from cli.compose import compose
from cli.errors import format_error
from lit_models import GAN
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
PARTS = [(group, name) for group in ("optimizer", "scheduler") for name in options(group)]
with_every_part: set[str] = set()  # the models that were trained with every optimizer and scheduler


@pytest.mark.parametrize(("model", "data"), [*itertools.product(IMAGE_MODELS, ("mnist", "cifar10"))])
def test_image_models_train_on_every_image_data_set(model: str, data: str, tiny_images: None) -> None:
    result = two_steps(f"model={model}", f"data={data}", "data.val_size=8", "data.batch_size=16")
    assert result["status"] == "finished"
    assert result["steps"] == 4
    figures = {name for name in result["metrics"] if name.count("/") == 1}
    assert figures == {f"{stage}/{metric}" for stage in ("train", "val", "test") for metric in ("loss", "acc")}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[str]]:
    """Return the overrides of data=image_folder for three classes of images, and of data=csv for a table."""
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name / "1.png")
    (tmp_path / "table.csv").write_text("x,y,z\n1,a,3\n2,b,4\n3,a,5\n")
    table = [f"data.path={tmp_path / 'table.csv'}", "data.columns=[x]"]
    return {"image_folder": [f"data.root={tmp_path / 'images'}"], "csv": [*table, "data.target=y"]}


@pytest.mark.parametrize(("model", "data"), [*itertools.product(options("model"), options("data"))])
def test_model_trains_on_data_set_or_is_refused_with_one_line(
    model: str, data: str, files: dict[str, list[str]]
) -> None:
    check_two_steps_or_error(model, data, *files.get(data, []))
    if data == "csv":
        check_two_steps_or_error(model, data, *files[data], "data.target=z")  # a regression


def check_two_steps_or_error(model: str, data: str, *settings: str) -> None:
    """Take two steps of the model on the data, or expect one line of an error.

    On the first data set that the model takes, every optimizer and scheduler does so.
    """
    cfg = compose(f"model={model}", f"data={data}", *settings)
    try:
        datamodule, module = build(cfg)
    except Exception as error:
        assert model not in IMAGE_MODELS or data not in IMAGES, error
        line = format_error(error)
        assert any(words in line for words in (" takes ", " learns ", " goes from ", " separates two classes")), line
        return
    assert data in (*IMAGES, "mnist_pairs") or model not in ("cnn", "lenet") or data.startswith("one_")
    inputs = torch.randn(3, *datamodule.shape)
    targets = torch.randint(len(datamodule.class_names), (3,)) if datamodule.class_names else torch.randn(3, 10)
    if not datamodule.class_names:
        targets = targets[:, :1].expand(3, datamodule.num_classes)
    start = {name: weight.clone() for name, weight in module.state_dict().items()}
    for group, name in PARTS if model not in with_every_part else PARTS[:1]:
        module.load_state_dict(start)
        parts = {"optimizer": cfg.optimizer, "scheduler": cfg.scheduler} | {group: compose_part(group, name)}
        few = {"max_iter": 5} if name == "lbfgs" else {}  # evaluations in a step, of 20
        optimizer = instantiate(parts["optimizer"], **few)(module.parameters())
        if make := instantiate(parts["scheduler"], **schedule_lengths(parts["scheduler"])):
            scheduler = make(optimizer)

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            torch.manual_seed(1)  # else the line search of L-BFGS compares losses with different dropout
            optimizer.zero_grad()
            loss = loss_of(module, inputs, targets)
            loss.backward()
            for parameter in module.parameters():  # as GradientSteps does for L-BFGS
                parameter.grad = None if parameter.grad is None else parameter.grad.contiguous()
            return loss

        for _ in range(2):
            loss = optimizer.step(closure)
            if make:
                scheduler.step()
        assert torch.isfinite(loss)
        assert any(not torch.equal(weight, start[name]) for name, weight in module.state_dict().items())
    with_every_part.add(model)


def loss_of(module: LightningModule, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What a model learns from, or both of them."""
    if isinstance(module, GAN):
        fakes = module(torch.randn(len(inputs), module.latent_dim))
        return module._g_loss(fakes) + module._d_loss(inputs, fakes)
    return module.training_step((inputs, targets), 0)


@functools.cache
def compose_part(group: str, name: str) -> DictConfig | None:
    return compose(f"{group}={name}")[group]


def schedule_lengths(scheduler: DictConfig | None) -> dict:
    known = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max", "LinearDecay": "total_steps"}
    return {name: 2 for kind, name in known.items() if kind in str(scheduler and scheduler.get("_target_"))}


@pytest.mark.parametrize(("optimizer", "scheduler"), [*itertools.product(options("optimizer"), options("scheduler"))])
@pytest.mark.parametrize("model", ["model=blobs_mlp data=blobs model.steps_per_batch=3", "model=mlp data=mnist"])
def test_every_optimizer_trains_with_every_scheduler(
    model: str, optimizer: str, scheduler: str, tiny_images: None
) -> None:
    batch = 32 if optimizer == "lbfgs" else 16  # L-BFGS is for full batches: its history is of one function
    sizes = [] if "blobs" in model else ["data.val_size=8", f"data.batch_size={batch}"]
    result = two_steps(*model.split(), f"optimizer={optimizer}", f"scheduler={scheduler}", *sizes)
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
