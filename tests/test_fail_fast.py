"""``sweep_fail_fast=true``: a sweep ends at its first failure, says how many jobs are left, and can be resumed."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sweeps.jobs import ends_at_failure, has_failed, mark_of_failure, record_first_failure
from sweeps.study import open_study
from sweeps.summary import Summary

Shell = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("model=blobs_mlp", "data=blobs", "trainer.max_epochs=1", "callbacks.pictures=null", "logger=none")
SWEEP = ("-m", *SHORT, "seed=1,2", "data.batch_size=50,0,25", "sweep_fail_fast=true")
SEARCH = (
    "-m", *SHORT, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "data.val_size=40",
    "data.batch_size=choice(50,0)", "sweep_fail_fast=true",
)  # fmt: skip


def test_each_command_has_a_mark_of_its_own(tmp_path: Path) -> None:
    """Another command may run jobs in the same directory: neither ends it, nor lets it go on after a failure."""
    marks = []
    for _ in range(2):
        with mark_of_failure(tmp_path):
            assert not has_failed(tmp_path)
            record_first_failure(tmp_path)
            record_first_failure(tmp_path)
            assert has_failed(tmp_path)
            marks += os.listdir(tmp_path)
        assert not has_failed(tmp_path)
    assert len({*marks}) == 2
    assert os.listdir(tmp_path) == []


def test_mark_stays_for_the_jobs_that_an_interrupted_command_has_left(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), mark_of_failure(tmp_path):
        record_first_failure(tmp_path)
        raise KeyboardInterrupt
    assert has_failed(tmp_path)


@pytest.mark.parametrize("value", ["maybe", "true", "null", "1", [True], {"a": 1}, 1, 0, 1.5, None])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"sweep_fail_fast=.* must be true or false"):
        ends_at_failure(OmegaConf.create({"sweep_fail_fast": value}))


def test_wrong_commands_are_refused_with_one_line(shell: Shell, tmp_path: Path) -> None:
    for words in ((*SHORT, "sweep_fail_fast=true"), ("-m", *SHORT, "seed=1,2", "sweep_fail_fast=5")):
        answer = shell(*words)
        assert answer.returncode == 1
        assert answer.stderr.startswith("error: sweep_fail_fast=")
        assert len(answer.stderr.splitlines()) == 1
        assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "begun"),
    [("basic", {2}), ("joblib", {1, 2, 3}), ("submitit_local", {1, 2, 3, 4, 5, 6})],
)
def test_grid_ends_at_the_first_failure(launcher: str, begun: set[int], shell: Shell, tmp_path: Path) -> None:
    """Jobs that have begun beside the one that fails are finished; a worker that starts late may begin none."""
    more = ("hydra.launcher.n_jobs=2",) if launcher == "joblib" else ()
    answer = shell(*SWEEP, f"hydra/launcher={launcher}", *more)
    assert answer.returncode == 1
    jobs = Summary(tmp_path / "outputs/last_sweep").jobs
    assert len(jobs) in begun
    assert "killed" not in {job.status for job in jobs}
    assert launcher != "basic" or [job.failed for job in jobs] == [False, True]
    assert list(Path("outputs/last_sweep").glob(".first*")) == []
    if len(jobs) < 6:
        stopped, resume = answer.stderr.splitlines()[-2:]
        assert stopped == f"stopped at the first failure: {6 - len(jobs)} job{'s' * (len(jobs) < 5)} left"
        assert resume.startswith("resume with: python train.py -m ")
        assert resume.rpartition(" ")[2].startswith("sweep_resume=outputs/sweep/")
    rest = shell(*(word for word in SWEEP if "fail_fast" not in word), "sweep_resume=last")
    assert rest.returncode == 1
    jobs = Summary(tmp_path / "outputs/last_sweep").jobs
    assert [job.failed for job in jobs].count(False) == 4
    assert len(jobs) == 6


@pytest.mark.slow
def test_search_ends_at_the_first_failure(shell: Shell, tmp_path: Path) -> None:
    answer = shell(*SEARCH)
    assert answer.returncode == 1
    jobs = Summary(tmp_path / "outputs/last_sweep").jobs
    assert [job.failed for job in jobs].count(True) == 1
    begun = len(open_study(tmp_path / "outputs/last_sweep").get_trials())  # those of equal settings share a job
    assert answer.stderr.splitlines()[-2] == f"stopped at the first failure: {6 - begun} job{'s' * (begun < 5)} left"
