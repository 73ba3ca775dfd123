"""A sweep is resumed in its own directory, with its own metric, and what is damaged in it is named."""

import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import lightning.pytorch as pl
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cli.errors import format_error, is_of_launcher
from cli.run_dir import new_or_resumed_sweep_dir
from sweeps.jobs import check_kind
from sweeps.study import check_metric, check_space, open_study
from tests.test_sweep import kill_when

DAMAGE = {
    "UPDATE alembic_version SET version_num = 'v9'": "RuntimeError: The runtime optuna version",
    "UPDATE trial_params SET distribution_json = '{'": "JSONDecodeError",
    "DELETE FROM study_directions": "IndexError",
    "UPDATE trials SET state = 'FOO'": "LookupError",
}


@pytest.mark.parametrize("name", ["run", "outputs", ".", 5, "notes.txt"])
def test_directory_without_a_sweep_is_not_filled_with_jobs(name: object) -> None:
    for folder in ("run/checkpoints", "outputs/blobs_mlp/2026-01-01_00-00-00", "5/mine"):
        Path(folder).mkdir(parents=True)
    Path("run/config.yaml").write_text("seed: 1\n")
    Path("notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=f"^{name} is not a sweep directory; python train.py -m "):
        new_or_resumed_sweep_dir(name, "new")  # type: ignore[arg-type]
    assert not Path("new").exists()


def test_directory_of_a_sweep_is_resumed() -> None:
    for folder in ("jobs/0-14e564fe", "grid", "search", "7", "empty"):
        Path(folder).mkdir(parents=True)
    for folder in ("grid", "7"):
        Path(folder, "multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
    open_study(Path("search"))
    for name in ("jobs", "grid", "search", 7, "empty"):
        assert new_or_resumed_sweep_dir(name, "new") == str(name)  # type: ignore[arg-type]


def test_grid_and_search_are_not_mixed() -> None:
    for folder in ("grid", "search", "new"):
        Path(folder).mkdir()
    Path("grid/multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
    open_study(Path("search"))
    for folder in ("grid", "new"):
        check_kind(Path(folder), is_search=False)
    for folder in ("search", "new"):
        check_kind(Path(folder), is_search=True)
    with pytest.raises(ValueError, match=r"^search is that of a search, which hydra/sweeper=optuna"):
        check_kind(Path("search"), is_search=False)
    with pytest.raises(ValueError, match=r"^grid is that of a grid, which a search cannot continue"):
        check_kind(Path("grid"), is_search=True)


def test_search_does_not_continue_with_another_metric(tmp_path: Path) -> None:
    study = open_study(tmp_path, direction="minimize")
    check_metric(study, tmp_path, "loss")
    check_metric(open_study(tmp_path), tmp_path, "val/loss")
    with pytest.raises(ValueError, match=r"has begun with monitor=val/loss: monitor=val/error cannot continue it"):
        check_metric(open_study(tmp_path), tmp_path, "val/error")
    study.set_user_attr("metric", "\x1b[31m" + "x" * 500)
    with pytest.raises(ValueError, match=r"monitor=\\x1b\[31mx{75}: monitor=val/loss cannot"):
        check_metric(study, tmp_path, "loss")


def test_search_does_not_continue_with_other_ranges(tmp_path: Path) -> None:
    """Its trials would be continued by neither command, if both were interrupted."""
    spaces = [
        {"lr": FloatDistribution(1e-4, 0.1, log=True), "size": CategoricalDistribution(["9", "[5,5]"])},
        {"lr": FloatDistribution(1e-4, 0.2, log=True), "size": CategoricalDistribution(["9", "[5,5]"])},
        {"lr": FloatDistribution(1e-4, 0.1, log=True)},
        {"lr": CategoricalDistribution(["0.1"]), "size": CategoricalDistribution(["9", "[5,5]"])},
    ]
    study = open_study(tmp_path, direction="minimize")
    check_space(study, tmp_path, spaces[0])
    check_space(open_study(tmp_path), tmp_path, dict(reversed(spaces[0].items())))
    for space in spaces[1:]:
        with pytest.raises(
            ValueError, match=r"begun with lr=tag\(log, interval\(0.0001, 0.1\)\) size=choice\(9, \[5,5"
        ):
            check_space(open_study(tmp_path), tmp_path, space)
    study.set_user_attr("ranges", "\x1b[31m" + "x" * 500)
    with pytest.raises(ValueError, match=r"begun with \\x1b\[31mx{295}: other ranges"):
        check_space(study, tmp_path, spaces[0])


def test_ranges_of_a_search_of_an_earlier_version_are_those_of_its_trials(tmp_path: Path) -> None:
    study = open_study(tmp_path, direction="minimize")
    study.tell(study.ask({"n": IntDistribution(2, 8, step=2)}), 0.5)
    with pytest.raises(ValueError, match=r"begun with n=range\(2, 9, 2\): other ranges cannot continue it"):
        check_space(study, tmp_path, {"n": IntDistribution(2, 8)})
    check_space(study, tmp_path, {"n": IntDistribution(2, 8, step=2)})
    assert study.user_attrs["ranges"] == "n=range(2, 9, 2)"


@pytest.mark.parametrize("statement", DAMAGE)
def test_damaged_study_is_named(statement: str, tmp_path: Path) -> None:
    study = open_study(tmp_path, direction="minimize")
    study.tell(study.ask({"x": FloatDistribution(0, 1)}), 0.5)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute(statement)
        database.commit()
    with pytest.raises(OSError, match=f"study.db is damaged or of another version of Optuna .{DAMAGE[statement]}"):
        open_study(tmp_path)


JOBS = (
    "-m",
    "data=blobs",
    "data.val_size=60",
    "model=blobs_mlp",
    "model.steps_per_batch=2",
    "callbacks.pictures=null",
    "threads=1",
)
MISTYPED = "logger=[tensorboard,none]"  # which composes the config that the right command has


@pytest.mark.slow
def test_mistyped_command_leaves_the_jobs_that_are_done(shell: Callable, tmp_path: Path) -> None:
    jobs = (*JOBS, "trainer.max_epochs=1", "seed=1,2")
    assert shell(*jobs, "hydra.sweep.dir=s").returncode == 0
    written = [Path("s/multirun.yaml"), *Path("s").glob("*-*/result.json")]
    before = {path: path.read_text() for path in written}
    mistyped = shell(*jobs, "sweep_resume=s", MISTYPED)
    assert mistyped.returncode == 1
    assert mistyped.stderr.count("none is no logger") == 2, mistyped.stderr
    assert {path: path.read_text() for path in written} == before
    assert len(written) == 3
    again = shell(*jobs, "sweep_resume=s")
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.slow
def test_search_goes_on_after_commands_that_were_mistyped(shell: Callable, tmp_path: Path) -> None:
    """They end before a trial, and the trial whose process has died is that of the right command."""
    search = (*JOBS, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=5", "trainer.max_epochs=3", "hydra.sweep.dir=s")
    right = "optimizer.lr=interval(0.01,0.1)"
    kill_when("[1] epoch 2/", tmp_path, *search, right)
    other_ranges = "has begun with optimizer.lr=interval(0.01, 0.1): other ranges cannot continue it"
    for mistyped, line in (
        ([right, "optimizer.weight_decay=interval(0,0.1)"], other_ranges),
        (["optimizer.lr=choice(0.1,0.2)"], other_ranges),
        ([right, MISTYPED], "the search has ended: an interrupted trial could not be continued"),
    ):
        answer = shell(*search, *mistyped)
        assert answer.returncode == 1 and line in answer.stderr, answer.stderr
        assert [trial.state.name for trial in open_study(Path("s")).trials] == ["COMPLETE", "RUNNING"]
    answer = shell(*search, right)
    assert answer.returncode == 0, answer.stderr
    assert [trial.state.name for trial in open_study(Path("s")).trials] == ["COMPLETE"] * 5
    assert json.loads(next(Path("s").glob("1-*/result.json")).read_text())["resumed"]


@pytest.mark.slow
def test_search_with_another_metric_starts_no_job(shell: Callable, tmp_path: Path) -> None:
    search = ("-m", "data=blobs", "model=blobs_mlp", "model.steps_per_batch=2", "trainer.max_epochs=1", "logger=none")
    search += ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "optimizer.lr=interval(0.1,0.2)")
    assert shell(*search, "hydra.sweep.dir=mine", "monitor=train/loss").returncode == 0
    jobs = sorted(os.listdir("mine"))
    answer = shell(*search, "sweep_resume=mine", "hydra.sweeper.n_trials=2", "monitor=train/error")
    assert answer.returncode == 1
    assert "has begun with monitor=train/loss: monitor=train/error cannot continue it" in answer.stderr
    assert sorted(set(os.listdir("mine")) - {"summary.png"}) == sorted(set(jobs) - {"summary.png"})  # drawn anew
    assert json.loads(next(Path("mine").glob("0-*/result.json")).read_text())["status"] == "finished"


class Killed(pl.Callback):
    """Ends the process as the system does where memory runs out."""

    measures = ()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_killed_process_of_jobs_says_how_to_go_on(shell: Callable) -> None:
    words = ("-m", "data=blobs", "model=blobs_mlp", "trainer.max_epochs=1", "seed=1,2", "hydra/launcher=joblib")
    answer = shell(*words, "hydra.launcher.n_jobs=2", f"+callbacks.end._target_={__name__}.Killed")
    assert answer.returncode == 1
    error, resume = (line for line in answer.stderr.splitlines() if line.startswith(("error: ", "resume with: ")))
    assert error.startswith("error: a process that ran jobs was killed, perhaps because memory ran out; ")
    assert re.search(r"^resume with: python train.py -m data=blobs .* sweep_resume=outputs/sweep/\S+$", resume)


def test_killed_worker_of_ray_is_one_line_and_the_sweep_can_be_resumed() -> None:
    error = type("WorkerCrashedError", (Exception,), {"__module__": "ray.exceptions"})("The worker died unexpectedly.")
    line = "a process that ran jobs was killed, perhaps because memory ran out (The worker died unexpectedly.)"
    assert format_error(error) == line
    assert is_of_launcher(error)
