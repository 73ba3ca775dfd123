"""What the experiments after the tutorials of PyTorch and Lightning need: data, settings and pictures of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from cli.compose import compose
from datamodules import XOR
from datamodules.images import flip_resized_crop, resized_crop
from tests.conftest import run

TINY = ("trainer.accelerator=cpu", "logger=none", "threads=1")


def test_resized_crop_gives_what_torchvision_makes_of_pictures() -> None:
    """But for a rounding: Pillow rounds after each direction."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 20, 32), dtype=torch.uint8, generator=generator)
    part = torch.stack([torch.randint(14, 21, (40,), generator=generator), torch.randint(24, 33, (40,))])
    start = ((torch.tensor([[20], [32]]) - part + 1) * torch.rand(2, 40, generator=generator)).long()
    mirrored = torch.rand(40, generator=generator) < 0.5
    changed = resized_crop(images, start.float(), part.float(), mirrored)
    for number, image in enumerate(images):
        corner_and_size = [*start[:, number].tolist(), *part[:, number].tolist()]
        picture = functional.resized_crop(Image.fromarray(image.permute(1, 2, 0).numpy()), *corner_and_size, [20, 32])
        expected = np.array(picture)[:, ::-1] if mirrored[number] else np.array(picture)
        difference = np.abs(expected.astype(int) - changed[number].permute(1, 2, 0).numpy())
        assert difference.max() <= 1


def test_random_parts_have_80_to_100_percent_of_the_area() -> None:
    """In an image whose pixels are their own columns, a part is as wide as the difference of its edges."""
    columns = torch.arange(0, 250, 10, dtype=torch.uint8).expand(2000, 1, 25, 25)
    generator = torch.Generator().manual_seed(0)
    across = flip_resized_crop(columns, generator)[:, 0, 0].float()
    widths = (across[:, -1] - across[:, 0]).abs() / 10 + 1
    assert 25 * (0.8 / 1.1) ** 0.5 - 1 < widths.min() < 22
    assert widths.max() > 24
    assert 0.4 < (across[:, 0] > across[:, -1]).float().mean() < 0.6  # mirrored
    again = flip_resized_crop(columns, torch.Generator().manual_seed(0))
    assert torch.equal(again[:, 0, 0].float(), across)


def test_xor_is_the_exclusive_or_of_the_nearest_corner() -> None:
    data = XOR(size=1000, test_size=500, noise=0.1)
    (points, classes), (test_points, _) = data.load()
    corners = points.round().long()
    assert torch.equal(classes, corners[:, 0] ^ corners[:, 1])
    assert (points.shape, test_points.shape) == ((1000, 2), (500, 2))
    assert 0.09 < (points - corners).std() < 0.11


def test_drop_last_leaves_out_the_smaller_batch(random_images: Callable[[int, int], None]) -> None:
    random_images(70, 20)
    settings = ("model=mlp", "model.net.hidden_sizes=[8]", "data.val_size=0", "data.batch_size=32", *TINY)
    settings += ("data.mean=[0.0]", "data.std=[1.0]")
    settings += ("trainer.max_epochs=1",)
    steps = [run(drop, *settings, f"data.drop_last={drop}")["steps"] for drop in ("false", "true")]
    assert steps == [3, 2]


def test_best_weights_are_tested_where_asked_for() -> None:
    """At a rate that diverges the first epoch is best."""
    settings = ("data=xor", "model=xor_mlp", "optimizer=sgd", "optimizer.lr=1e4", "scheduler=none", *TINY)
    settings += ("data.size=200", "data.test_size=100", "trainer.max_epochs=4", "data.validate_on=test")
    losses = {}
    for tested in ("last", "best"):
        metrics = run(tested, f"checkpoint.tested={tested}", *settings, "monitor=val/loss")["metrics"]
        losses[tested] = metrics["test/loss"]
        best = torch.load(Path(tested, "checkpoints", "best.ckpt"), weights_only=True)
        assert best["epoch"] < 3
        assert metrics["val/loss"] == pytest.approx(metrics["test/loss"])  # both are of the same weights and examples
    assert losses["best"] < losses["last"]


def test_schedule_may_be_longer_than_the_training_but_not_shorter() -> None:
    settings = ("data=xor", "model=xor_mlp", "optimizer=sgd", "data.size=256", "trainer.max_epochs=2", *TINY)
    run("longer", *settings, "+scheduler.total_steps=8")
    state = torch.load("longer/checkpoints/last.ckpt", weights_only=True)["lr_schedulers"][0]
    assert (state["total_steps"], state["last_epoch"]) == (8, 4)
    with pytest.raises(ValueError, match=r"scheduler.total_steps=3 is below the 4 steps of the training"):
        run("shorter", *settings, "+scheduler.total_steps=3")


def test_each_job_of_a_sweep_has_its_own_published_figure() -> None:
    for experiment, setting, figures in (
        ("fashion_activations", "model.net.activation", {"Sigmoid": 0.1, "SiLU": 0.8873, "LeakyReLU": 0.8892}),
        ("fashion_optimizers", "optimizer", {"by_hand": 0.8909, "momentum": 0.8883, "adam": 0.8946}),
    ):
        for value, published in figures.items():
            cfg = compose(f"experiment={experiment}", f"{setting}={value}")
            assert cfg.expect["test/acc"].published == published
            assert setting in cfg.ignore_overrides
        other = compose(f"experiment={experiment}", f"{setting}={'GELU' if 'net' in setting else 'sgd'}")
        assert other.expect["test/acc"].published is None
    rates = [compose("experiment=fashion_optimizers", f"optimizer={one}").optimizer.lr for one in figures]
    assert rates == [0.1, 0.1, 1e-3]
