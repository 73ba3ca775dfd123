"""Closed streams, small terminals, and warnings that are errors."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

import train
from callbacks.progress_bar import ProgressBar
from cli.build import build
from cli.compose import compose
from cli.output import _keep_warnings_of_libraries
from tests.conftest import PROJECT

TINY = ("data=blobs", "model=blobs_mlp", "model.steps_per_batch=2", "trainer.max_epochs=1", "logger=none")
Shell = Callable[..., subprocess.CompletedProcess[str]]
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such shell")


def redirected(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'exec "$@" {redirections}', "bash", sys.executable, str(PROJECT / "train.py")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


@posix
def test_error_with_a_closed_stdout_is_one_line() -> None:
    answer = redirected(">&- <&-", "seed=abc")
    assert answer.returncode == 1
    assert answer.stderr == "error: seed=abc must be a whole number of at least 0, such as 1\n"


@posix
@pytest.mark.slow
@pytest.mark.parametrize("redirections", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_training_with_closed_streams(redirections: str) -> None:
    answer = redirected(redirections, *TINY, "hydra.run.dir=run")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert ("train loss" in answer.stdout) == (" >&-" not in f" {redirections}")
    assert "epoch 1/1" in Path("run/train.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_first_picture_prints_nothing_about_fonts(shell: Shell, tmp_path: Path) -> None:
    answer = shell(*TINY, MPLCONFIGDIR=str(tmp_path / "fonts"))
    assert list(tmp_path.glob("fonts/fontlist-*"))
    assert "font" not in answer.stdout + answer.stderr


@posix
@pytest.mark.parametrize(("columns", "width"), [(20, 19), (200, 78), (0, 78)])
def test_live_line_fits_into_the_terminal(columns: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import struct
    import termios

    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(end, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        bar = ProgressBar()
        bar._write("x" * 78)
        written = os.read(terminal, 1000).decode()
    os.close(terminal)
    assert written == f"\r{'x' * width}\x1b[K"


def test_warnings_of_libraries_stay_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``PYTHONWARNINGS=error``."""
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("error")
        _keep_warnings_of_libraries()
        for module in ("torch.utils._pytree", "lightning.pytorch", "runstats", "__main__"):
            warnings.warn_explicit("old", FutureWarning, "file.py", 1, module)
        assert len(shown) == 4
        for module in ("runs.files", "cli.main", "callbacks"):
            with pytest.raises(FutureWarning):
                warnings.warn_explicit("old", FutureWarning, "file.py", 1, module)


@pytest.mark.parametrize(
    ("overrides", "bar"),
    [
        ([], ProgressBar),
        (["callbacks.progress=null"], None),
        (["+trainer.enable_progress_bar=false"], None),
        (["+callbacks.bar._target_=lightning.pytorch.callbacks.TQDMProgressBar"], TQDMProgressBar),
        (["callbacks.progress=null", "+trainer.enable_progress_bar=true"], TQDMProgressBar),
    ],
)
def test_run_has_the_progress_bar_that_was_chosen(overrides: list[str], bar: type | None) -> None:
    cfg = compose(*TINY, "trainer.accelerator=cpu", *overrides)
    datamodule, model = build(cfg)
    config = train.resolve_config(cfg, datamodule)
    trainer = train.make_trainer(cfg, config, Path("run"), datamodule, model).trainer
    chosen = trainer.progress_bar_callback
    assert (None if chosen is None else type(chosen)) is bar
