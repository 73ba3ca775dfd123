"""evaluate.py attack=fgsm: what it measures, what it writes, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import datamodules
import evaluate
from callbacks.fgsm import FGSM, input_gradients
from cli.build import build, load_run
from cli.compose import compose
from lit_models import Classifier, nets
from tests.test_configs import IMAGE_MODELS
from tests.test_scripts import load_band_images, train_run

EPSILONS = [0.3, 0, 0.2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodules.MNIST, "load", load_band_images)
        patch.chdir(folder)
        steps = ("data.batch_size=20", "scheduler=none", "optimizer.lr=0.01", "callbacks.pictures=null")
        train_run(folder / "images", *steps, "data.val_size=100", "trainer.max_epochs=3")
        train_run(folder / "points", "model=blobs_mlp", "data=blobs", "trainer.max_epochs=1", "callbacks.pictures=null")
        train_run(folder / "vae", "model=vae", *steps, "trainer.max_epochs=1", "data.val_size=0", "optimizer=adam")
    return folder


@pytest.fixture
def images(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datamodules.MNIST, "load", load_band_images)
    return Path(shutil.copytree(runs / "images", tmp_path / "images"))


def attack(run: Path, epsilons: Any = EPSILONS, **settings: Any) -> dict[str, Any]:
    given = {"run": str(run), "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
    cfg = OmegaConf.create({**given, "attack": "fgsm", "epsilons": epsilons, **settings})
    return evaluate.evaluate_config(cfg, run)


def attacked_one_by_one(run: Path, epsilon: float) -> float:
    """The accuracy as PyTorch's tutorial measures it: a batch of one image, and the loss that the model trains with."""
    _, data, model = load_run(str(run), "last")
    pixels, targets = load_band_images(data)[1]
    right = 0
    for image, target in zip(pixels[:, None] / 255, targets[:, None], strict=True):
        inputs = ((image - 0.1307) / 0.3081).requires_grad_()
        logits = model(inputs)
        if logits.argmax() != target:
            continue
        nn.functional.cross_entropy(logits, target).backward()
        changed = (image + epsilon * inputs.grad.sign()).clamp(0, 1)
        right += int(model((changed - 0.1307) / 0.3081).argmax() == target)
    return right / len(pixels)


def test_accuracies_are_those_of_an_attack_image_by_image(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.fgsm.CHUNK", 64)  # a test batch of 200 images comes in four parts
    result = attack(images)
    written = json.loads((images / "evaluations/fgsm_last.json").read_text())["metrics"]
    assert list(written["acc"]) == ["0", "0.2", "0.3"]
    assert written["acc"]["0"] == pytest.approx(result["metrics"]["test/acc"], abs=1e-6)
    for epsilon in (0.2, 0.3):
        expected = attacked_one_by_one(images, epsilon)
        assert written["acc"][f"{epsilon:g}"] == pytest.approx(expected, abs=0.006)  # an image on the edge
    assert written["acc"]["0.3"] < written["acc"]["0.2"] < written["acc"]["0"] - 0.05


def test_evaluation_itself_is_the_same_with_an_attack(images: Path) -> None:
    assert attack(images) == attack(images, attack=None)
    assert (images / "evaluations/test_last.json").is_file()


def test_files_are_named_after_split_and_checkpoint(images: Path) -> None:
    attack(images, split="val", checkpoint="best")
    assert {path.name for path in (images / "evaluations").iterdir()} == {
        "val_best.json",
        "fgsm_val_best.json",
        "fgsm_val_best.png",
    }
    with Image.open(images / "evaluations/fgsm_val_best.png") as picture:
        assert min(picture.size) > 400


@pytest.mark.parametrize("name", ["fgsm_last.json", "fgsm_last.png"])
def test_files_of_others_are_not_overwritten(images: Path, name: str) -> None:
    (images / "evaluations").mkdir()
    (images / "evaluations" / name).write_text("{}")
    with pytest.raises(ValueError, match=f"{name} would be overwritten, and is not an evaluation of this project"):
        attack(images)
    assert [path.name for path in (images / "evaluations").iterdir()] == [name]
    (images / "evaluations" / name).unlink()
    assert attack(images) == attack(images)  # its own files are replaced


def test_examples_are_moved_by_epsilon_and_are_new_mistakes(images: Path) -> None:
    _, data, model = load_run(str(images), "last")
    data.setup()
    callback = FGSM([0, 0.25])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    trainer.test(model, datamodule=data, verbose=False)
    originals, _ = load_band_images(data)[1]
    changed, targets, predicted = callback._examples[0.25]
    assert len(changed) == 8
    assert (targets != predicted).all()
    for image in changed:
        difference = (originals.int() - image.int()).abs().amax((1, 2, 3))
        assert difference.min() <= 64  # 0.25 of 255, rounded
    pixels, targets, predicted = callback._examples[0.0]
    assert (targets == predicted).all()
    assert all((originals == image).all((1, 2, 3)).any() for image in pixels)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_image_classifier_is_attacked(name: str, random_images: Callable[[int, int], None]) -> None:
    random_images(40, 12)
    data, model = build(compose(f"model={name}", "data=cifar10", "data.val_size=8", "threads=1"))
    data.setup()
    callback = FGSM([0, 0.1])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    trainer.test(model, datamodule=data, verbose=False)
    accuracies = callback.accuracies()
    assert accuracies[0] == pytest.approx(trainer.callback_metrics["test/acc"].item(), abs=1e-6)
    assert accuracies[0.1] <= accuracies[0]
    inputs, targets = next(iter(data.test_dataloader()))
    assert input_gradients(model.eval(), inputs, targets).flatten(1).abs().amax(1).min() > 0


def test_gradients_of_log_odds_are_those_of_the_binary_cross_entropy() -> None:
    model = Classifier(net=nets.BinaryMLP((4,), 2), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD)
    inputs, targets = torch.randn(5, 4), torch.tensor([0, 1, 1, 0, 1])
    leaf = inputs.clone().requires_grad_()
    nn.functional.binary_cross_entropy_with_logits(model(leaf)[:, 0], targets.float(), reduction="sum").backward()
    with torch.inference_mode():
        found = input_gradients(model, inputs, targets)
    torch.testing.assert_close(found, leaf.grad)


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        ("points", {}, "attack=fgsm is for a classifier of images, not for Classifier with inputs of shape (2,)"),
        ("vae", {}, "attack=fgsm is for a classifier of images, not for VAE with inputs of shape (1, 28, 28)"),
        ("images", {"attack": "pgd"}, "attack=pgd must be fgsm or null"),
        ("images", {"epsilons": []}, "epsilons=[] must be a list of different numbers from 0 to 1"),
        ("images", {"epsilons": [0, 1.5]}, "epsilons=[0, 1.5] must be a list"),
        ("images", {"epsilons": [0, 0.1, 0.1]}, "epsilons=[0, 0.1, 0.1] must be a list"),
        ("images", {"epsilons": 0.1}, "epsilons=0.1 must be a list"),
        ("images", {"epsilons": "many"}, "epsilons=many must be a list"),
        ("images", {"epsilons": [True]}, "epsilons=[True] must be a list"),
    ],
)
def test_wrong_settings_are_refused(runs: Path, images: Path, run: str, settings: dict[str, Any], message: str) -> None:
    folder = images if run == "images" else runs / run
    with pytest.raises(ValueError) as error:
        attack(folder, **settings)
    assert str(error.value).startswith(message)
    assert not (folder / "evaluations").exists()


def test_images_that_are_no_pixels_are_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datamodules.MNIST, "to_uint8", datamodules.InMemoryDataModule.to_uint8)
    monkeypatch.setattr(datamodules.MNIST, "normalize", lambda self, inputs: inputs / 100.0 - 3)
    with pytest.raises(ValueError, match="attack=fgsm changes pixels from 0 to 255, and MNIST holds other images"):
        attack(images)
    assert not (images / "evaluations").exists()
