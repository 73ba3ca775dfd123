"""Every model on every data set with every optimizer and schedule: it trains, or says in a line why it does not."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

import command_line
import train
from tests.conftest import PROJECT


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (PROJECT / "conf" / group).glob("*.yaml"))


IMAGES = ("cifar10", "fashion_mnist", "image_folder", "mnist")
IMAGE_MODELS = ("cnn", "dropout_cnn", "lenet", "mlp", "quick_cnn", "residual_cnn", "resnet18")
PARTS = [(group, name) for group in ("optimizer", "scheduler") for name in options(group)]


@pytest.fixture
def folders(tmp_path: Path) -> str:
    """Three classes of images, for data=image_folder."""
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name / "1.png")
    return f"data.root={tmp_path / 'images'}"


@pytest.mark.parametrize(("model", "data"), [*itertools.product(options("model"), options("data"))])
def test_it_trains_or_says_why_not(model: str, data: str, folders: str) -> None:
    cfg = command_line.compose(f"model={model}", f"data={data}", *([folders] if data == "image_folder" else []))
    try:
        datamodule, module = train.build(cfg)
    except Exception as error:
        assert (model not in IMAGE_MODELS) or (data not in IMAGES), error
        line = command_line.one_line(error)
        assert any(words in line for words in (" takes ", " learns ", " goes from ", "tells two classes apart")), line
        return
    assert data in IMAGES or model not in ("cnn", "lenet") or data.startswith("one_")
    inputs = torch.randn(3, *datamodule.shape)
    targets = torch.randint(len(datamodule.class_names), (3,)) if datamodule.class_names else torch.randn(3, 10)
    if not datamodule.class_names:
        targets = targets[:, :1].expand(3, datamodule.num_classes)
    start = {name: weight.clone() for name, weight in module.state_dict().items()}
    for group, name in PARTS:
        module.load_state_dict(start)
        parts = {"optimizer": cfg.optimizer, "scheduler": cfg.scheduler} | {group: runs_option(group, name)}
        optimizer = instantiate(parts["optimizer"])(module.parameters())
        if make := instantiate(parts["scheduler"], **lengths(parts["scheduler"])):
            scheduler = make(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            loss = module.loss(module(inputs), targets)
            loss.backward()
            optimizer.step()
            if make:
                scheduler.step()
        assert torch.isfinite(loss)
        assert any(not torch.equal(weight, start[name]) for name, weight in module.state_dict().items())


def runs_option(group: str, name: str):
    return command_line.compose(f"{group}={name}")[group]


def lengths(scheduler) -> dict:
    known = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max"}
    return {name: 2 for kind, name in known.items() if kind in str(scheduler and scheduler.get("_target_"))}


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in ("experiment", "trainer", "callbacks", "logger", "debug")
        for name in options(group)
    ],
)
def test_every_option_composes(choice: str) -> None:
    cfg = command_line.compose(choice)
    assert json.dumps(command_line.OmegaConf.to_container(cfg, resolve=True))
