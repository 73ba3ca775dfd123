"""A refactoring changes no figure: the losses of every experiment after two batches equal the recorded ones.

python -m tests.test_golden NAME…  records those of new experiments, or after a change that is meant to change them
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from cli.compose import compose
from tests.conftest import PROJECT, SMALLER, replace_images

FILE = Path(__file__).with_suffix(".json")
EXPERIMENTS = sorted(path.stem for path in (PROJECT / "conf/experiment").glob("*.yaml"))
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", "callbacks.pictures=null")
# Half precision rounds differently on each processor, and several threads add in another order.
SHORT += ("trainer.precision=32-true", "threads=1")
# Steps that make a difference of one part in a million some hundred times larger, as batch normalization does at a high
# learning rate. The losses before the second step, or after a small one, are as exact as all others.
CHAOTIC = {"cifar10_resnet18": ("trainer.limit_train_batches=1",), "resnet18_one_step": ("optimizer.lr=1e-5",)}
# AdaDelta and Adam begin with steps that have the size of the learning rate, however small the gradient is.
CHAOTIC |= {"mnist_siamese": ("optimizer.lr=1e-5",), "mnist_forward_forward": ("model.steps_per_batch=1",)}
CHAOTIC |= {"cifar10_94": ("optimizer.lr=1e-3", "optimizer.bias_lr=1", "optimizer.head_lr=0.01")}
TEACHERS = {"cifar10_distillation": "cifar10_teacher"}  # experiment -> the one whose run it learns from
CHAOTIC |= {"sines_lstm": ("optimizer.max_iter=3", "trainer.precision=64-true")}
NAMES = [f"{stage}/{loss}" for stage in ("train", "test") for loss in ("loss", "g_loss", "d_loss")]


def losses(experiment: str, folder: Path) -> dict[str, float]:
    """Return the losses of an experiment on 300 random images, or on the data that it generates."""
    composed = compose(f"experiment={experiment}")
    sizes = ["data.batch_size=32"] if "root" in composed.data else []
    sizes += ["data.val_size=20"] if composed.data.val_size else []
    sizes += SMALLER.get(experiment, [])
    overrides = [*SHORT, *CHAOTIC.get(experiment, ()), *sizes, "logger=none"]
    if experiment in TEACHERS:
        teacher = folder.with_name("teacher")
        losses(TEACHERS[experiment], teacher)
        overrides.append(f"model.teacher={teacher}")
    result = train.train_config(compose(f"experiment={experiment}", *overrides), folder)
    return {name: value for name, value in result["metrics"].items() if name in NAMES}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_losses_equal_the_recorded_ones(
    experiment: str, tmp_path: Path, random_images: Callable[[int, int], None]
) -> None:
    random_images(300, 60)
    expected = json.loads(FILE.read_text())[experiment]
    # Processors differ in the last bits: losses by up to 6e-5 between SSE4.1, AVX2 and AVX-512.
    assert losses(experiment, tmp_path / "run") == pytest.approx(expected, rel=2e-4)


if __name__ == "__main__":
    replace_images(300, 60)
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(FILE.read_text()) | {name: losses(name, Path(folder) / name) for name in sys.argv[1:]}
    FILE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
