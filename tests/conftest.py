"""What the tests share: a folder of their own to run in, and the real data when it can be had."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is loaded: the threads of several processes on the same cores wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from tensorboard.summary.writer import event_file_writer

# The names of TensorBoard's files are a second and a number, and are read in the order of the alphabet: of a run that
# was resumed within one second the file with number 10 would come before that with 9.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)

PROJECT = Path(__file__).parent.parent
DATA_ROOT = Path(os.environ.get("DATA_ROOT") or PROJECT / "data")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to ``outputs`` in the working directory: here the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw takes longer than the tiny trainings of the tests; tests/test_dashboard.py looks at the pictures."""
    if not request.module.__name__.endswith(("test_dashboard", "test_full_disk", "test_generative")):
        for part in ("_training_figures", "_test_figures", "_epoch_figures", "_code_figures"):
            monkeypatch.setattr(f"callbacks.plots.Plots.{part}", lambda *_: {})


def put_random_images(train: int, test: int, replace: Callable[[object, str, object], None] = setattr) -> None:
    """Puts so many for training, and of them for test, in place of the image data sets."""
    from datamodules.images import ImageDataModule

    def load(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (train, *self.shape), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (train,), generator=generator)
        return (images, labels), (images[:test], labels[:test])

    replace(ImageDataModule, "load", load)


@pytest.fixture
def random_images(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``random_images(200, 50)`` puts random images in place of the image data sets, for one test."""
    return functools.partial(put_random_images, replace=monkeypatch.setattr)


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python train.py ARGUMENTS`` as a user would, in the test's folder."""

    def run(
        *arguments: str, script: str = "train.py", cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROJECT / script), *arguments]
        env = {**os.environ, "DATA_ROOT": str(DATA_ROOT), **environment}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def real_root() -> Path:
    """A data root with MNIST in it; skips where neither it nor a source can be had."""
    from datamodules import sources

    try:
        sources.load("mnist", DATA_ROOT)
    except sources.DataUnavailable as error:
        pytest.skip(str(error))
    return DATA_ROOT
