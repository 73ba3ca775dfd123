"""Fixtures of all tests: a working directory for each test, random images, the command line, and the real data."""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Set before torch is loaded. The threads of several processes on the same cores mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from hydra.core.hydra_config import HydraConfig
from tensorboard.summary.writer import event_file_writer

from cli.run_dir import forget_dirs

# An event file is named after the second and a counter, and TensorBoard reads event files in alphabetical order. If a
# run is resumed within one second, file 10 would be read before file 9.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)

PROJECT = Path(__file__).parent.parent
DATA_ROOT = Path(os.environ.get("DATA_ROOT") or PROJECT / "data")


# A run on the images of ``tiny_images``.
TINY_RUN = ("model=dropout_cnn", "data.batch_size=16", "data.val_size=40", "trainer.accelerator=cpu", "threads=1")
# What makes an experiment on generated data small enough for a test.
SMALLER = {"sines_lstm": ("data.size=10", "data.length=50")}


@pytest.fixture(autouse=True)
def _working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own directory, where ``outputs/`` goes."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _sigint() -> Iterator[None]:
    """Give SIGINT back its handler: a command that ends ignores it, and later processes would inherit that."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Restore the environment: Lightning sets variables for ranks, which later processes would inherit."""
    environment, before = os.environ, dict(os.environ)
    yield
    for name in set(environment) - set(before):
        del environment[name]
    environment.update(before)


@pytest.fixture(autouse=True)
def _hydra_config() -> Iterator[None]:
    """Forget the config and the directories of a test: after one of a sweep, the next would run as a job of it."""
    config = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = config
    forget_dirs()


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def make_paths(folder: Path, *names: str) -> None:
    """Make files, and directories for names that end in a slash."""
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of the user\n")


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no plots: that takes longer than training the tiny nets. tests/test_dashboard.py tests the plots."""
    if not request.module.__name__.endswith(("test_classics", "test_dashboard", "test_full_disk", "test_generative")):
        for part in ("_training_figures", "_test_figures", "_epoch_figures", "_code_figures"):
            monkeypatch.setattr(f"callbacks.plots.Plots.{part}", lambda *_: {})


def replace_images(train: int, test: int, replace: Callable[[object, str, object], None] = setattr) -> None:
    """Replace the image data sets by ``train`` random images, the first ``test`` of which are also the test set."""
    from datamodules import MNIST
    from datamodules.images import ImageDataModule

    def load(self):
        generator = torch.Generator().manual_seed(0)
        shape = MNIST.shape if isinstance(self, MNIST) else self.shape  # also of the images of pairs
        images = torch.randint(256, (train, *shape), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (train,), generator=generator)
        return (images, labels), (images[:test], labels[:test])

    replace(ImageDataModule, "load", load)


@pytest.fixture
def random_images(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return a function: ``random_images(200, 50)`` replaces the image data sets during one test."""
    return functools.partial(replace_images, replace=monkeypatch.setattr)


@pytest.fixture
def tiny_images(random_images: Callable[[int, int], None]) -> None:
    random_images(200, 50)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let this process be a job of the sweep in ``s``. Return its overrides."""
    from cli import job_dir, overwrite, run_dir

    overrides = ["model=mlp", "seed=1"]
    for module in (job_dir, overwrite):
        monkeypatch.setattr(module, "task_overrides", lambda: overrides)
    monkeypatch.setattr("cli.job.is_multirun", lambda: True)
    cfg = SimpleNamespace(sweep=SimpleNamespace(dir="s"), job=SimpleNamespace(name="train"))
    monkeypatch.setattr(run_dir.HydraConfig, "get", lambda: cfg)
    return overrides


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs ``python train.py ARGUMENTS`` as a user would, in the test's directory."""

    def run(
        *arguments: str, script: str = "train.py", cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROJECT / script), *arguments]
        env = {**os.environ, "DATA_ROOT": str(DATA_ROOT), **environment}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def real_root() -> Path:
    """Return a data root that holds MNIST. Skip the test if MNIST is neither there nor can be fetched."""
    from datamodules import sources

    try:
        sources.load("mnist", DATA_ROOT)
    except sources.DataUnavailable as error:
        pytest.skip(str(error))
    return DATA_ROOT


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> Iterator:
    """Start Debian's Chromium without a window. Save a screenshot if the test fails."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1600,1400"):
        options.add_argument(f"--{argument}")
    options.add_argument("--enable-unsafe-swiftshader")  # the charts are drawn with WebGL
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    failed = request.session.testsfailed
    try:
        yield window
    finally:
        if request.session.testsfailed > failed:
            kept = PROJECT / "outputs" / "failed_tests" / f"{request.node.name}.png"
            kept.parent.mkdir(parents=True, exist_ok=True)
            window.save_screenshot(str(kept))
        window.quit()


@pytest.fixture(scope="session")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one epoch with options and overrides of several kinds. Return the working directory."""
    import train
    from cli.compose import compose
    from tests.untrusted import TINY

    folder = tmp_path_factory.mktemp("good")
    monitored = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=train/loss")
    overrides = [*TINY, "trainer.max_epochs=1", *monitored]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train, "task_overrides", lambda: overrides)
        (folder / "run").mkdir()
        train.train_config(compose(*overrides), folder / "run")
    return folder


@pytest.fixture
def untrusted(trained_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a copy of the run in ``outputs/untrusted`` and files that must not be used."""
    from tests.untrusted import EVIL, SECRET

    monkeypatch.setenv("SECRET", SECRET)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    shutil.copytree(trained_dir / "run", "outputs/untrusted")
    shutil.copytree(trained_dir / "outputs", "outputs", dirs_exist_ok=True, symlinks=True)
    for file in (Path("outputs/untrusted/evil.yaml"), Path("evil.yaml")):
        file.write_text(EVIL.format(marker=tmp_path / "marker"))
    return work


def read_predictions(table: Path) -> list[dict[str, Any]]:
    """Return the rows of a predictions.csv, with its numbers as numbers."""
    with open(table, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    numbers = ("prediction", "truth") if "prediction" in rows[0] else ("probability",)
    return [{name: json.loads(cell) if name in numbers else cell for name, cell in row.items()} for row in rows]


def run(folder: str, *overrides: str) -> dict[str, Any]:
    """Train in this process, in a directory of this name. Return the result."""
    import train
    from cli.compose import compose

    path = Path(folder)
    path.mkdir(exist_ok=True)
    return train.train_config(compose(*overrides), path)


def call_at_step(patch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Call ``action`` when ``step`` steps have been taken and the next one is about to begin."""
    from lit_models import Supervised

    training_step = Supervised.training_step

    def patched(self, batch, batch_idx):
        if self.global_step == step:
            action()
        return training_step(self, batch, batch_idx)

    patch.setattr(Supervised, "training_step", patched)


class Killed(BaseException):
    """Ends a run in this process as abruptly as possible."""


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    def kill() -> None:
        raise Killed

    call_at_step(patch, step, kill)


def count_parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
