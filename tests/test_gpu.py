"""Tests that need a GPU. They are skipped without one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import train
from cli.compose import compose
from tests.test_exercises import EXPERIMENTS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

IMAGES = ("data=cifar10", "data.augment=flip_crop", "data.val_size=50", "data.batch_size=16", "logger=none")


def run(folder: str, *overrides: str) -> dict[str, Any]:
    Path(folder).mkdir()
    return train.train_config(compose(*overrides), Path(folder))


class ForbidSync(pl.Callback):
    """Let torch raise if the program waits for the GPU, from the third step of an epoch to the last but one."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        inputs = trainer.train_dataloader.inputs
        assert (inputs.device.type, inputs.dtype) == ("cuda", torch.uint8)
        torch.cuda.set_sync_debug_mode("error" if 2 <= index < trainer.num_training_batches - 1 else "default")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if args[-1] >= trainer.num_training_batches - 2:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", ["cnn", "dropout_cnn", "lenet", "resnet18", "speedrun"])
def test_training_steps_do_not_synchronize_with_the_gpu(
    model: str, precision: str, random_images: Callable[[int, int], None]
) -> None:
    random_images(400, 100)
    watched = "+callbacks.watch._target_=tests.test_gpu.ForbidSync"
    settings = ("trainer=gpu", f"trainer.precision={precision}", "trainer.log_every_n_steps=1000", watched)
    parts = ("optimizer=muon", "scheduler=linear", "data.augment=alternate") if model == "speedrun" else ()
    result = run("run", f"model={model}", *IMAGES, *settings, *parts, "trainer.max_epochs=2")
    assert result["status"] == "finished"
    assert result["device"] == torch.cuda.get_device_name()


def test_resume_on_the_gpu_is_exact(random_images: Callable[[int, int], None]) -> None:
    random_images(400, 100)
    settings = ("model=dropout_cnn", *IMAGES, "trainer.accelerator=gpu", "trainer.deterministic=true", "scheduler=none")
    run("whole", *settings, "trainer.max_epochs=3")
    run("parts", *settings, "trainer.max_epochs=2")
    train.train_config(compose("resume=parts", "trainer.max_epochs=3"), Path("parts"))
    ends = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "parts")]
    for name, weight in ends[0].items():
        assert torch.equal(weight, ends[1][name])


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS) - {"cifar10_distillation"}))  # that needs a teacher
def test_experiment_trains_on_the_gpu(experiment: str, random_images: Callable[[int, int], None]) -> None:
    random_images(12_000, 1000)
    limits = ("trainer.max_epochs=2", *(f"trainer.limit_{part}_batches=2" for part in ("train", "val", "test")))
    result = run("run", f"experiment={experiment}", "trainer.accelerator=gpu", "logger=none", "expect=null", *limits)
    assert result["status"] in ("finished", "diverged")
    assert result["device"] == torch.cuda.get_device_name()


@pytest.mark.slow
def test_compiled_net_trains_on_the_gpu(random_images: Callable[[int, int], None]) -> None:
    random_images(400, 100)
    settings = ("trainer=gpu", "compile=true", "trainer.max_epochs=2", "optimizer=muon", "scheduler=linear")
    assert run("run", "model=speedrun", *IMAGES, *settings)["status"] == "finished"


@pytest.mark.real
def test_cpu_and_gpu_reach_the_same_accuracy(real_root: Path) -> None:
    settings = ("experiment=mnist_99", f"data.root={real_root}", "logger=none", "callbacks.pictures=null")
    accuracies = [
        [run(f"{trainer} {seed}", *settings, trainer, f"seed={seed}")["metrics"]["test/acc"] for seed in (1, 2)]
        for trainer in ("trainer=gpu", "trainer.accelerator=cpu")
    ]
    assert sum(accuracies[0]) / 2 == pytest.approx(sum(accuracies[1]) / 2, abs=0.003)
