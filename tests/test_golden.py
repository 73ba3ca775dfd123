"""A refactoring changes no figure: the losses of every experiment after two batches equal the recorded ones.

python -m tests.test_golden        records them again, after a change that is meant to change them
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from cli.compose import compose
from tests.conftest import PROJECT, replace_images

FILE = Path(__file__).with_suffix(".json")
EXPERIMENTS = sorted(path.stem for path in (PROJECT / "conf/experiment").glob("*.yaml"))
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", "callbacks.pictures=null")
# Half precision rounds differently on each processor, and several threads add in another order.
SHORT += ("trainer.precision=32-true", "threads=1")
NAMES = [f"{stage}/{loss}" for stage in ("train", "test") for loss in ("loss", "g_loss", "d_loss")]


def losses(experiment: str, folder: Path) -> dict[str, float]:
    """Return the losses of an experiment on 300 random images, or on the data that it generates."""
    composed = compose(f"experiment={experiment}")
    sizes = ["data.batch_size=32"] if "root" in composed.data else []
    sizes += ["data.val_size=20"] if composed.data.val_size else []
    result = train.train(compose(f"experiment={experiment}", *SHORT, *sizes, "logger=none"), folder)
    return {name: value for name, value in result["metrics"].items() if name in NAMES}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_losses_equal_the_recorded_ones(
    experiment: str, tmp_path: Path, random_images: Callable[[int, int], None]
) -> None:
    random_images(300, 60)
    expected = json.loads(FILE.read_text())[experiment]
    # Processors differ in the last bits. Batch normalization at a high learning rate amplifies the difference.
    assert losses(experiment, tmp_path / "run") == pytest.approx(expected, rel=1e-3)


if __name__ == "__main__":
    replace_images(300, 60)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: losses(name, Path(folder) / name) for name in EXPERIMENTS}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
