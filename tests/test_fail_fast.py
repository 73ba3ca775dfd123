"""``sweep_fail_fast=true``: a sweep ends at its first failure, says how many jobs are left, and can be resumed."""

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sweeps.jobs import ends_at_failure, failure_forgotten, has_failed, record_first_failure
from sweeps.study import open_study
from sweeps.summary import Summary

Shell = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("model=blobs_mlp", "data=blobs", "trainer.max_epochs=1", "callbacks.pictures=null", "logger=none")
SWEEP = ("-m", *SHORT, "seed=1,2", "data.batch_size=50,0,25", "sweep_fail_fast=true")
SEARCH = (
    "-m", *SHORT, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "data.val_size=40",
    "data.batch_size=choice(50,0)", "sweep_fail_fast=true",
)  # fmt: skip


def test_each_command_forgets_the_failure_of_the_one_before(tmp_path: Path) -> None:
    asked = OmegaConf.create({"sweep_fail_fast": True})
    assert ends_at_failure(asked, tmp_path)
    assert not has_failed(tmp_path)
    record_first_failure(tmp_path)
    record_first_failure(tmp_path)
    assert has_failed(tmp_path)
    assert ends_at_failure(asked, tmp_path)
    assert has_failed(tmp_path)  # the command may still be refused
    with contextlib.suppress(KeyboardInterrupt), failure_forgotten(tmp_path):
        assert not has_failed(tmp_path)
        raise KeyboardInterrupt
    assert has_failed(tmp_path)
    with failure_forgotten(tmp_path):
        pass
    assert not has_failed(tmp_path)


def test_file_of_the_user_with_the_name_of_the_mark_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".first_failure").write_text("mine\n")
    with pytest.raises(ValueError, match=r"\.first_failure is not ours"):
        ends_at_failure(OmegaConf.create({"sweep_fail_fast": True}), tmp_path)
    assert (tmp_path / ".first_failure").read_text() == "mine\n"


@pytest.mark.parametrize("value", ["maybe", "true", "null", "1", [True], {"a": 1}, 1, 0, 1.5, None])
def test_other_values_are_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sweep_fail_fast=.* must be true or false"):
        ends_at_failure(OmegaConf.create({"sweep_fail_fast": value}), tmp_path)


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
