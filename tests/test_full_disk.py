"""Failed writes: a run continues where it can, prints one error line, and its exit code is not 0."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import evaluate
import train
from cli import output
from cli.compose import compose
from loggers.tensorboard import _ignore_failed_writer_threads
from tests.conftest import PROJECT, TINY_RUN, run

BLOBS = (
    *("model=blobs_mlp", "data=blobs", "model.steps_per_batch=20", "trainer.max_epochs=2", "trainer.accelerator=cpu"),
)


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mount a file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(folder: Path, leave: int) -> None:
    """Fill a file system except for ``leave`` bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(b"x" * (free - leave))


class BlockPath(pl.Callback):
    """Put a directory in the place of a file of the run, or a file in the place of a directory."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.path.suffix:
            (self.path / "in_the_way").mkdir(parents=True)
        else:
            self.path.write_text("in the way")


class FillDisk(pl.Callback):
    """Fill a file system when the training starts."""

    measures = ()

    def __init__(self, folder: str, leave: int) -> None:
        self.folder, self.leave = Path(folder), leave

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fill_disk(self.folder, self.leave)


@pytest.mark.parametrize("name", ["result.json", "pictures"])
def test_training_ends_and_fails_if_result_or_plots_cannot_be_written(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cfg = compose(*BLOBS, "logger=none")
    cfg.callbacks.block = {"_target_": f"{__name__}.BlockPath", "path": f"run/{name}"}
    with pytest.raises(OSError, match=rf"^the training has ended, but not everything could be written: .*{name}"):
        train.train_config(cfg, Path("run"))
    assert "test accuracy" in caplog.text  # the table
    if name != "result.json":
        result = json.loads(Path("run/result.json").read_text())
        assert (result["status"], result["epochs"]) == ("failed", 2)


def test_training_ends_and_fails_if_event_files_cannot_be_written(
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("outputs").symlink_to(small_disk)
    fill_disk(small_disk, 8192)  # enough for the directory and run.txt only
    uncaught: list[object] = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    _ignore_failed_writer_threads.cache_clear()  # the error arises in a thread of TensorBoard
    with pytest.raises(OSError, match=r"not everything could be written: .*No space left"):
        train.train_config(compose(*BLOBS), Path("run"))
    assert not uncaught
    assert json.loads(Path("run/result.json").read_text())["epochs"] == 2
    assert caplog.text.count("no more event files") == 1


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints"])
def test_training_stops_if_metrics_or_checkpoints_cannot_be_written(name: str) -> None:
    cfg = compose(*BLOBS, "logger=none")
    cfg.callbacks.block = {"_target_": f"{__name__}.BlockPath", "path": f"run/{name}"}
    with pytest.raises(OSError, match=name):
        train.train_config(cfg, Path("run"))
    assert json.loads(Path("run/result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("leave", [0, 8192])
def test_result_is_kept_until_another_checkpoint_is_there(leave: int, small_disk: Path) -> None:
    """A finished run is resumed: while its checkpoint is the last one, so is its result."""
    settings = (*BLOBS, "logger=none", "callbacks.pictures=null")
    train.train_config(compose(*settings), small_disk)
    before = (small_disk / "result.json").read_bytes()
    more = (*settings, f"resume={small_disk}", "trainer.max_epochs=3")
    cfg = compose(*more)
    cfg.callbacks.fill = {"_target_": f"{__name__}.FillDisk", "folder": str(small_disk), "leave": leave}
    with pytest.raises(OSError, match=r"No space left on device|is the disk full\?"):
        train.train_config(cfg, small_disk)
    assert (small_disk / "result.json").read_bytes() == before
    (small_disk / "filler").unlink()
    train.train_config(compose(*more), small_disk)
    assert json.loads((small_disk / "result.json").read_text())["epochs"] == 3


def test_result_of_a_run_that_died_early_is_replaced() -> None:
    Path("run").mkdir()
    Path("run/result.json").write_text('{"overrides": [], "metrics": {}, "status": "interrupted"}')
    cfg = compose(*BLOBS, "logger=none")
    cfg.callbacks.block = {"_target_": f"{__name__}.BlockPath", "path": "run/checkpoints"}
    with pytest.raises(OSError, match="checkpoints"):
        train.train_config(cfg, Path("run"))
    assert json.loads(Path("run/result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("name", ["config.yaml", "dashboard.txt"])
def test_run_does_not_start_if_its_first_files_cannot_be_written(name: str) -> None:
    Path("run", name).mkdir(parents=True)
    with pytest.raises(OSError, match=name):
        train.train_config(compose(*BLOBS), Path("run"))
    assert not Path("run/metrics.csv").exists()


def test_evaluation_prints_metrics_that_cannot_be_written(caplog: pytest.LogCaptureFixture) -> None:
    train.train_config(compose(*BLOBS, "logger=none"), Path("run"))
    Path("run/evaluations").write_text("in the way")
    caplog.clear()
    caplog.set_level("INFO")
    asked = {"run": "run", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu"}}
    with pytest.raises(OSError, match="evaluations"):
        evaluate.evaluate_config(OmegaConf.create(asked), Path("run"))
    assert "test/acc" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("leave", [30_000, 48_000, 70_000, 100_000, 150_000, 250_000])
def test_full_disk_gives_one_line_and_exit_code_1(leave: int, small_disk: Path) -> None:
    fill_disk(small_disk, leave)
    command = [sys.executable, str(PROJECT / "train.py"), *BLOBS]
    answer = subprocess.run(command, cwd=small_disk, capture_output=True, text=True)
    assert answer.returncode == 1, answer
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith("error: ")
    assert "could not be written" in answer.stderr or "No space left on device" in answer.stderr


# --- standard output and the log ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_class_names_are_escaped_on_an_ascii_terminal(shell, tmp_path: Path) -> None:
    for name in ("图片", "b"):
        for number in range(10):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(path)
    settings = ("model=mlp", "data=image_folder", "data.root=images", "data.image=[3,8,8]", "data.num_workers=0")
    more = ("trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks.pictures=null", "hydra.run.dir=run")
    answer = shell(*settings, *more, PYTHONIOENCODING="ascii")
    assert answer.returncode == 0, answer.stderr
    assert "of each class" in answer.stdout
    assert r"\u56fe\u7247" in answer.stdout
    assert "图片" in Path("run/train.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_expected_figures_are_printed_on_an_ascii_terminal(shell) -> None:
    answer = shell("experiment=line_slow", "logger=none", "callbacks.pictures=null", PYTHONIOENCODING="ascii")
    assert answer.returncode == 0, answer.stderr
    assert "as expected" in answer.stdout


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
def test_incomplete_stdout_gives_exit_code_1(tmp_path: Path) -> None:
    settings = ("logger=none", "callbacks.pictures=null", "hydra.run.dir=run")
    command = [sys.executable, str(PROJECT / "train.py"), *BLOBS, *settings]
    with open("/dev/full", "w") as full:
        answer = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: standard output is incomplete: [Errno 28]")
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "finished"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
def test_incomplete_log_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "_incomplete", set())
    monkeypatch.setattr(logging.Handler, "handleError", output._report_lost_line)
    log = output.LogFile("/dev/full")
    log.handle(record := logging.LogRecord("train", logging.INFO, "", 0, "a line", None, None))
    assert output.flush_output()  # the line is held back
    log.begin()
    assert not output.flush_output()
    log.handle(record)
    assert capsys.readouterr().err.count("/dev/full is incomplete: [Errno 28]") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
def test_incomplete_help_gives_exit_code_1() -> None:
    command = [sys.executable, str(PROJECT / "train.py"), "--help"]
    with open("/dev/full", "w") as full:
        answer = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ") and "No space left on device" in answer.stderr


def test_full_disk_keeps_the_previous_checkpoint(small_disk: Path, tiny_images: None) -> None:
    run(str(small_disk / "run"), *TINY_RUN, "trainer.max_epochs=1", "logger=none")
    before = (small_disk / "run/checkpoints/last.ckpt").read_bytes()
    fill_disk(small_disk, 100_000)  # half a checkpoint
    with pytest.raises(OSError, match="is the disk full") as error:
        run(str(small_disk / "run"), f"resume={small_disk / 'run'}", "trainer.max_epochs=2", "logger=none")
    assert "last.ckpt could not be written" in str(error.value)
    assert (small_disk / "run/checkpoints/last.ckpt").read_bytes() == before
    assert not list(small_disk.rglob("*.tmp"))
    (small_disk / "filler").unlink()
    result = run(str(small_disk / "run"), f"resume={small_disk / 'run'}", "trainer.max_epochs=2", "logger=none")
    assert (result["status"], result["epochs"]) == ("finished", 2)


def test_full_tmpdir_does_not_matter(small_disk: Path, tiny_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(small_disk, 0)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")["status"] == "finished"


def test_event_files_on_a_full_disk_warn_once(
    small_disk: Path, tiny_images: None, caplog: pytest.LogCaptureFixture
) -> None:
    from loggers.tensorboard import TensorBoard

    fill_disk(small_disk, 0)
    Path("outputs").symlink_to(small_disk)
    logger = TensorBoard("run", title="events")
    for step in range(3000):
        logger.log_metrics({"train/loss": 1.0}, step)
        if step % 100 == 0:
            logger.save()
    logger.finalize("success")
    warnings = [record.message for record in caplog.records if "TensorBoard" in record.message]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
