"""Locks: one process trains in a directory, and the others leave it as it is."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import hydra
import lightning.pytorch as pl
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from cli import CONF, job_dir, run_dir
from cli.compose import register_resolvers
from cli.errors import format_error
from hydra_plugins.grid_sweeper import GridSweeper, _multirun_yaml
from loggers.csv import CSV
from runs.checkpoint import load_checkpoint
from runs.files import hold_lock
from sweeps.study import open_study
from tests.conftest import PROJECT, make_paths, tree
from tests.test_run_dir import BLOBS, EARLY_ERROR, ENDLESS

Shell = Callable[..., subprocess.CompletedProcess[str]]


@contextlib.contextmanager
def training(folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """Start a run, wait for its second epoch, and kill it at the end of the block."""
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout:
            if "epoch 2/" in line:
                break
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("existing", [[], ["r/.lock"]])
def test_refused_process_leaves_the_running_one_undisturbed(existing: list[str], shell: Shell, tmp_path: Path) -> None:
    make_paths(tmp_path, *existing)
    with training(tmp_path, *ENDLESS, "hydra.run.dir=r"):
        lock, log = (os.stat(tmp_path / "r" / name) for name in (".lock", "train.log"))
        assert shell(*EARLY_ERROR, "hydra.run.dir=r").returncode == 1
        for _ in range(2):
            refused = shell(*ENDLESS, "hydra.run.dir=r")
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr == f"error: another process is training in {tmp_path / 'r'}\n"
        assert os.stat(tmp_path / "r/.lock").st_ino == lock.st_ino
        assert os.stat(tmp_path / "r/train.log").st_ino == log.st_ino
        # A running run cannot be resumed, but it can be evaluated.
        assert "another process is training" in shell("resume=r").stderr
        assert shell("run=r", "trainer.accelerator=cpu", script="evaluate.py").returncode == 0
        log_lines = (tmp_path / "r/train.log").read_text()
        assert "error" not in log_lines and "another process" not in log_lines
    with filelock.FileLock(tmp_path / "r/.lock", timeout=0):
        pass  # the killed process does not hold the lock any more


def test_waiting_process_makes_a_removed_directory_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that had the lock was interrupted before its run had begun."""
    make_paths(tmp_path, "s/job/.lock")
    acquire, times = filelock.FileLock.acquire, []

    def acquire_late(lock: filelock.FileLock, **settings: object) -> object:
        times.append(lock)
        if len(times) < 3:
            shutil.rmtree(tmp_path / ("s" if len(times) == 1 else "s/job"))
            raise FileNotFoundError(tmp_path / "s/job/.lock")
        return acquire(lock, **settings)

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire_late)
    with run_dir.lock_run_dir(tmp_path / "s/job", wait=True):
        assert len(times) == 3 and (tmp_path / "s/job/.lock").exists()
    (tmp_path / "s/job/.lock").unlink()
    (tmp_path / "s/job/.lock").symlink_to("nowhere/x")
    with (
        pytest.raises(OSError, match=r"symbolic link|No such file"),
        run_dir.lock_run_dir(tmp_path / "s/job", wait=True),
    ):
        pass


class FakeLoader:
    """Fails for a job, as Hydra's loader does for a mistyped one."""

    def __init__(self, seen: Callable[[], object]) -> None:
        self.seen = seen

    def load_sweep_config(self, config: object, job: list[str]) -> None:
        self.seen()
        raise LookupError(job)


def test_mistyped_sweep_leaves_the_config_of_a_running_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs are composed before it writes anything, so there is nothing to remove."""
    file, texts = tmp_path / "s/multirun.yaml", []

    def begin_another() -> None:
        texts.append(file.exists())
        file.write_text("hydra: {}\nsweep_resume: null\n")

    monkeypatch.setattr("hydra_plugins.grid_sweeper.parse_overrides", lambda *_: {})
    sweeper = GridSweeper(None, None)
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "s")}}, "sweep_fail_fast": False})
    sweeper.loader = FakeLoader(begin_another)
    with pytest.raises(LookupError):
        sweeper.sweep([])
    assert texts == [False]
    assert file.read_text() == "hydra: {}\nsweep_resume: null\n"


SEARCH = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "monitor=train/loss", "sweep_fail_fast=true")


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.nope=1,2", "sweep_fail_fast=true"], "there is no model.nope"),
        (["seed=1,2", "hydra.sweep.subdir=a/b"], "s/a/b does not lie directly in s, the directory of the sweep"),
        (["optimizer.lr=0.1,0.2", "hydra.sweep.subdir='a/${optimizer.lr}_${hydra.job.num}'"], "s/a/0.1_0 does not"),
        ([*SEARCH, "model.nope=choice(1,2)"], "there is no model.nope"),
        ([*SEARCH, "optimizer=choice(adamw,nope)"], "there is no optimizer=nope"),
        ([*SEARCH, "model.nope=interval(1,2)"], "there is no model.nope"),
        ([*SEARCH, "optimizer.lr=choice(0.1,0.2)", "hydra.sweep.subdir=a/b"], "s/a/b does not lie directly in s"),
        ([*SEARCH, "optimizer.lr=choice(0.1,0.2)", "hydra.sweep.subdir=mine"], "config.yaml in it, which this job"),
    ],
)
def test_refused_sweep_leaves_its_directory_as_it_was(
    overrides: list[str], line: str, resumed: bool, tmp_path: Path
) -> None:
    """Also where a sweep is."""
    register_resolvers()
    make_paths(tmp_path, "s/mine/notes", "s/mine/config.yaml")
    if resumed:
        (tmp_path / "s/.study.lock").touch()
        if "hydra/sweeper=optuna" in overrides:
            open_study(tmp_path / "s", direction="minimize")
        else:
            (tmp_path / "s/multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
    before = tree(tmp_path / "s")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as refused:
        GlobalHydra.instance().hydra.multirun(
            "config", lambda _: job_dir.check_job_dir(Path(HydraConfig.get().runtime.output_dir)),
            [*BLOBS, "hydra.sweep.dir=s", *overrides], with_log_configuration=False,
        )  # fmt: skip
    run_dir.remove_empty_dirs()
    run_dir.forget_dirs()
    assert line in format_error(refused.value)
    if resumed and "hydra.sweep.subdir=mine" in overrides:  # its trial waits in the study
        return
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize("other", ["nothing", "a job", "another sweep", "an earlier sweep"])
def test_multirun_yaml_is_removed_only_by_the_process_that_made_it(other: str, tmp_path: Path) -> None:
    cfg, file = OmegaConf.create({"seed": 1}), tmp_path / "multirun.yaml"
    make_paths(tmp_path, "mine/", *(["multirun.yaml"] if other == "an earlier sweep" else []))
    with contextlib.suppress(KeyboardInterrupt), _multirun_yaml(cfg, tmp_path):
        assert file.read_text() == ("multirun.yaml of the user\n" if other == "an earlier sweep" else "seed: 1\n")
        make_paths(tmp_path, *(["0-0123abcd/"] if other == "a job" else []))
        if other == "another sweep":
            with contextlib.suppress(LookupError), _multirun_yaml(cfg, tmp_path):
                raise LookupError
        raise KeyboardInterrupt
    assert file.exists() == (other != "nothing")
    assert (tmp_path / "mine").is_dir()
    if other == "an earlier sweep":
        assert file.read_text() == "multirun.yaml of the user\n"


@pytest.mark.slow
def test_read_only_lock_file_still_locks(shell: Shell, tmp_path: Path) -> None:
    make_paths(tmp_path, "r/.lock")
    with filelock.FileLock(lock := tmp_path / "r/.lock"):
        lock.write_text("of the holder\n")
        lock.chmod(0o444)
        assert "another process is training" in shell(*BLOBS, "hydra.run.dir=r").stderr
        assert lock.read_text() == "of the holder\n"


@pytest.mark.slow
def test_file_that_is_there_as_the_lock_is_kept(shell: Shell, tmp_path: Path) -> None:
    """The user's, or through a hard link one elsewhere on the disk. filelock 4.2.0 and earlier empty it."""
    make_paths(tmp_path, "mine", "r/")
    os.link("mine", "r/.lock")
    assert shell(*BLOBS, "hydra.run.dir=r", "trainer.max_epochs=1").returncode == 0
    assert Path("mine").read_text() == "mine of the user\n"


@pytest.mark.slow
def test_running_sweep_job_is_not_trained_twice(tmp_path: Path) -> None:
    """The second process waits until the first has finished its job, and takes the result."""
    grid = ("-m", *BLOBS, "model.steps_per_batch=300", "trainer.max_epochs=5", "seed=1,2")
    with training(tmp_path, *grid) as first:
        command = [sys.executable, str(PROJECT / "train.py"), *grid, "sweep_resume=last"]
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        first.stdout.read()
        assert first.wait() == second.returncode == 0
    assert second.stdout.count(": done before") + second.stdout.count("epoch 5/5") == 2
    assert second.stdout.count(": done before") >= 1
    assert len(list(tmp_path.glob("outputs/sweep/*/*/result.json"))) == 2


class RemovesRun(pl.Callback):
    """Does in an epoch what a user, or another run, may do to the directory ``r`` of a run or a sweep."""

    def __init__(self, keep: bool, replace: bool, epoch: int = 1) -> None:
        self.keep, self.replace, self.epoch = keep, replace, epoch

    def setup(self, *_: Any, **__: Any) -> None:
        if self.epoch < 0:  # before anything else of the training
            self._remove()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self._remove()

    def _remove(self) -> None:
        Path("r/.lock").unlink() if self.keep else shutil.rmtree("r")
        if self.replace:
            Path("r").mkdir(exist_ok=True)
            for name in (".lock", "result.json", ".config.yaml.1.tmp"):
                Path("r", name).touch()


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["true", "false"])
@pytest.mark.parametrize("replace", ["true", "false"])
def test_run_whose_directory_was_removed_writes_nothing_there(keep: str, replace: str, shell, tmp_path: Path) -> None:
    """Another run may have made it anew, and train there."""
    removes = f"+callbacks.removes={{_target_:tests.test_locks.RemovesRun,keep:{keep},replace:{replace}}}"
    answer = shell("model=blobs_mlp", "data=blobs", "trainer.max_epochs=3", "logger=none", "hydra.run.dir=r", removes)
    assert answer.returncode == 1
    assert re.fullmatch(r"error: \S+/r/\.lock was removed while this run trained; .*\n", answer.stderr)
    kept = {".lock", "result.json", ".config.yaml.1.tmp"} if replace == "true" else set()
    if keep == "true":
        kept |= {"checkpoints", "config.yaml", "metrics.csv", "train.log"}
        assert load_checkpoint(tmp_path / "r/checkpoints/last.ckpt")["epoch"] == 0
    assert {path.name for path in tmp_path.glob("r/*")} == kept


@pytest.mark.slow
def test_run_whose_directory_was_removed_while_it_began_removes_nothing_there(shell: Shell, tmp_path: Path) -> None:
    removes = "+callbacks.removes={_target_:tests.test_locks.RemovesRun,keep:false,replace:true,epoch:-1}"
    answer = shell("model=blobs_mlp", "data=blobs", "trainer.max_epochs=3", "logger=none", "hydra.run.dir=r", removes)
    assert answer.returncode == 1
    assert re.fullmatch(r"error: \S+/r/\.lock was removed while this run trained; .*\n", answer.stderr)
    assert {path.name for path in tmp_path.glob("r/*")} == {".lock", "result.json", ".config.yaml.1.tmp"}


@pytest.mark.slow
def test_job_whose_directory_was_removed_records_no_failure_there(shell: Shell, tmp_path: Path) -> None:
    """Another sweep may have made it anew, and another process would end at the first failure that is marked."""
    removes = "+callbacks.removes={_target_:tests.test_locks.RemovesRun,keep:false,replace:true}"
    settings = ("model=blobs_mlp", "data=blobs", "trainer.max_epochs=3", "logger=none", "sweep_fail_fast=true", removes)
    answer = shell("-m", *settings, "hydra.sweep.dir=.", "hydra.sweep.subdir=r")
    assert answer.returncode == 1
    assert r"r/.lock was removed while this run trained" in answer.stderr
    assert sorted(os.listdir(tmp_path / "r")) == [".config.yaml.1.tmp", ".lock", "result.json"]
    assert list(tmp_path.glob(".first*")) == []


@pytest.mark.slow
def test_sweep_whose_directory_was_removed_ends(shell: Shell, tmp_path: Path) -> None:
    """Its next jobs, and its summary, would be among those of another sweep there."""
    removes = "+callbacks.removes={_target_:tests.test_locks.RemovesRun,keep:false,replace:true}"
    settings = ("model=blobs_mlp", "data=blobs", "trainer.max_epochs=3", "logger=none", "seed=1,2", removes)
    answer = shell("-m", *settings, "hydra.sweep.dir=r")
    assert answer.returncode == 1
    assert answer.stderr.endswith("\n[1] error: r was removed while this sweep ran; no other job begins\n")
    assert sorted(os.listdir(tmp_path / "r")) == [".config.yaml.1.tmp", ".lock", "result.json"]


def test_csv_logger_writes_no_rows_into_the_file_of_another_run(caplog: pytest.LogCaptureFixture) -> None:
    Path("r").mkdir()
    with filelock.FileLock("r/.lock"), hold_lock(Path("r/.lock")):
        logger = CSV("r", name="csv")
        logger.log_metrics({"loss": 1.0}, step=1)
        logger.save()
        rows = Path("r/csv/version_0/metrics.csv")
        assert rows.read_text() == "loss,step\n1.0,1\n"
        shutil.rmtree("r")
        rows.parent.mkdir(parents=True)
        rows.touch()
        Path("r/.lock").touch()
        logger.log_metrics({"loss": 2.0}, step=2)
        logger.save()
        logger.finalize("success")
        assert rows.read_text() == ""
    assert [line.partition(":")[0] for line in caplog.messages] == ["no more is written to the files of CSVLogger"]
