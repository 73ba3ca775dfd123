"""Every option of every group composes, builds what it names and trains."""

import itertools

import pytest
import torch
from hydra.utils import instantiate

import command_line
import datamodules
from tests.conftest import PROJECT


def options(group: str) -> list[str]:
    names = sorted(path.stem for path in (PROJECT / "conf" / group).glob("*.yaml"))
    assert names
    return names


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few random images in place of the files of the image data sets."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (40, *self.shape), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (40,), generator=generator)
        return (images, labels), (images, labels)

    monkeypatch.setattr(datamodules.images.ImageDataModule, "load", load)


@pytest.mark.parametrize("group", sorted(path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()))
def test_every_yaml_says_in_its_first_line_what_it_is(group: str) -> None:
    for path in (PROJECT / "conf" / group).rglob("*.yaml"):
        if group != "hydra":
            header = path.read_text().removeprefix("# @package _global_\n")
            assert header.startswith("# "), path


def two_steps(*overrides: str) -> dict:
    from pathlib import Path

    import train

    cfg = command_line.compose(*overrides, "trainer.max_epochs=2", "trainer.accelerator=cpu", "logger=none")
    folder = Path("run")
    folder.mkdir()
    return train.train(cfg, folder)


IMAGES = ["mnist", "cifar10"]  # Fashion-MNIST has MNIST's shape
IMAGE_MODELS = ["cnn", "dropout_cnn", "lenet", "mlp", "quick_cnn", "residual_cnn", "resnet18"]


@pytest.mark.parametrize(("model", "data"), [*itertools.product(IMAGE_MODELS, IMAGES)])
def test_every_image_model_trains_on_every_image_data_set(model: str, data: str, tiny: None) -> None:
    result = two_steps(f"model={model}", f"data={data}", "data.val_size=8", "data.batch_size=16")
    assert result["status"] == "finished"
    assert result["steps"] == 4
    figures = {name for name in result["metrics"] if name.count("/") == 1}
    assert figures == {f"{stage}/{metric}" for stage in ("train", "val", "test") for metric in ("loss", "acc")}


@pytest.mark.parametrize(("optimizer", "scheduler"), [*itertools.product(options("optimizer"), options("scheduler"))])
@pytest.mark.parametrize("model", ["model=blobs_mlp data=blobs model.steps_per_batch=3", "model=mlp data=mnist"])
def test_every_optimizer_goes_with_every_scheduler(model: str, optimizer: str, scheduler: str, tiny: None) -> None:
    sizes = [] if "blobs" in model else ["data.val_size=8", "data.batch_size=16"]
    result = two_steps(*model.split(), f"optimizer={optimizer}", f"scheduler={scheduler}", *sizes)
    assert result["status"] == "finished"


@pytest.mark.parametrize("data", [name for name in options("data") if name != "image_folder"])
def test_every_data_set_says_what_it_feeds(data: str) -> None:
    datamodule = instantiate(command_line.compose(f"data={data}").data)
    assert datamodule.shape
    assert len(datamodule.class_names) in (0, datamodule.num_classes)


@pytest.mark.parametrize("group", ["trainer", "callbacks", "logger"])
def test_every_other_option_trains(group: str, tiny: None) -> None:
    for option in options(group):
        cfg = command_line.compose(f"{group}={option}")
        assert cfg[group] is not None or option == "none"
        built = instantiate(cfg[group], save_dir=".") if group == "logger" and cfg[group] else instantiate(cfg[group])
        assert built is not None
