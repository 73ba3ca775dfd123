"""The directories of the jobs of a sweep: a job changes nothing that is not of it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cli import job_dir, overwrite, run_dir
from cli.job import JobDirError
from runs.result import read_result, write_result
from tests.conftest import make_paths, tree
from tests.test_run_dir import BLOBS, CONFIG, LOG, as_yaml

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "mine", "metrics.csv": "mine"},
        {"config.yaml": "choices: [tea]", "checkpoints/last.ckpt": "mine"},
        {"config.yaml": "choices: {overrides: [model=mlp, seed=2]}"},
        {"config.yaml": "choices: {overrides: [[1]]}"},
        {"result.json": '{"acc": 0.9}'},
        {"result.json": '{"acc": 0.9}', "config.yaml": "choices: {overrides: [model=mlp, seed=1]}"},
        {"config.yaml": "choices: {overrides: [model=mlp, seed=1]}", "pictures/loss.png": "mine"},
        {"result.json": '{"overrides": ["seed=1"], "metrics": {}, "status": "finished"}'},
        {"result.json/mine": "mine"},
        {"pictures/loss.png": "mine"},
        {"dashboard.txt": "mine"},
    ],
)
def test_job_refuses_a_directory_with_other_files(files: dict[str, str], job: list[str], tmp_path: Path) -> None:
    for name, text in files.items():
        make_paths(tmp_path, f"s/job/{name}")
        (tmp_path / "s/job" / name).write_text(text)
    before = tree(tmp_path)
    for use in (job_dir.check_job_dir, lambda folder: job_dir.load_result_or_resume(folder, OmegaConf.create())):
        with pytest.raises(JobDirError, match=r"hydra\.sweep\.subdir must name a directory for each job"):
            use(tmp_path / "s/job")
    if "result.json" in files:
        assert job_dir.record_failure(tmp_path / "s/job", "why")["reason"] == "why"
    assert tree(tmp_path) == before


def test_job_uses_its_own_directory(job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_paths(tmp_path, "s/job/notes", "s/job/.lock")
    (tmp_path / "s/job/train.log").write_text(LOG)
    job_dir.check_job_dir(tmp_path / "s/job")
    make_paths(tmp_path, "s/job/config.yaml", "s/job/checkpoints/last.ckpt")
    (tmp_path / "s/job/metrics.csv").write_text("epoch,step,seconds\n1,5,0.1\n")
    (tmp_path / "s/job/config.yaml").write_text(as_yaml(CONFIG))  # of a killed run
    monkeypatch.setattr(overwrite, "load_checkpoint", lambda file: {"config": CONFIG})
    assert job_dir.load_result_or_resume(tmp_path / "s/job", cfg := OmegaConf.create()) is None
    assert cfg.resume == str(tmp_path / "s/job")
    job_dir.record_failure(tmp_path / "s/job", "why")
    result = read_result(tmp_path / "s/job")
    assert (result["overrides"], result["status"], result["reason"]) == (job, "failed", "why")
    job_dir.check_job_dir(tmp_path / "s/job")


def test_directory_named_by_the_settings_is_used_whatever_was_typed(job: list[str], tmp_path: Path) -> None:
    name = job_dir.job_dir("s", 0, _root_=OmegaConf.create({"seed": 1}))
    result = {"overrides": ["seed=1"], "metrics": {}, "status": "finished"}
    write_result(Path("s", name), result)
    write_result(Path("s/5-0123abcd"), result)  # such a name alone does not make it the directory of this job
    assert job_dir.load_result_or_resume(tmp_path / "s" / name, OmegaConf.create())["status"] == "finished"
    with pytest.raises(JobDirError, match=r"has the result of another job, python train\.py seed=1: "):
        job_dir.check_job_dir(tmp_path / "s/5-0123abcd")


@pytest.mark.parametrize("file", ["result.json", "config.yaml"])
def test_stored_command_of_another_job_is_checked(file: str, job: list[str], tmp_path: Path) -> None:
    make_paths(tmp_path, "s/job/")
    overrides = ["+callbacks.x._target_=os.mkdir", "+callbacks.x.path=x"]
    if file == "result.json":
        write_result(tmp_path / "s/job", {"overrides": overrides, "metrics": {}, "status": "finished"})
    else:
        (tmp_path / "s/job/config.yaml").write_text(f"choices: {{overrides: {overrides}}}")
    with pytest.raises(JobDirError, match=r"of another job, its command is not shown: .* could run anything: "):
        job_dir.check_job_dir(tmp_path / "s/job")


def test_typed_command_of_a_failed_job_is_kept(job: list[str], tmp_path: Path) -> None:
    """That of a stored result says that it is not shown where it could run anything, as a callback of the user's."""
    job += ["+callbacks.mine._target_=mine.Mine"]
    folder = tmp_path / "s" / job_dir.job_dir("s", 0, _root_=OmegaConf.create({"seed": 1}))
    write_result(folder, {"overrides": job, "metrics": {"val/acc": 0.5}, "status": "failed"})
    assert read_result(folder)["command"].startswith("its command is not shown")
    assert job_dir.load_result_or_resume(folder, OmegaConf.create()) is None
    job_dir.record_failure(folder, "why")
    result = json.loads((folder / "result.json").read_text())
    assert result["command"] == "python train.py model=mlp seed=1 +callbacks.mine._target_=mine.Mine"
    assert (result["metrics"], result["reason"]) == ({"val/acc": 0.5}, "why")


@pytest.mark.parametrize("left", ["result.json", "checkpoints/last.ckpt", "config.yaml"])
def test_job_that_has_not_begun_changes_nothing_of_an_earlier_command(
    left: str, job: list[str], tmp_path: Path
) -> None:
    """It fails because of what was mistyped, and the earlier command may have ended it or still train there."""
    folder = tmp_path / "s" / job_dir.job_dir("s", 0, _root_=OmegaConf.create({"seed": 1}))
    make_paths(tmp_path, str((folder / left).relative_to(tmp_path)))
    if left == "result.json":
        write_result(folder, {"overrides": ["seed=1"], "metrics": {"val/acc": 0.5}, "status": "finished"})
    before = tree(tmp_path)
    assert job_dir.record_failure(folder, "why")["status"] == "refused"
    assert tree(tmp_path) == before


def test_failure_is_not_recorded_where_another_process_begins(job: list[str], tmp_path: Path) -> None:
    (tmp_path / "s/job").mkdir(parents=True)
    with run_dir.lock_run_dir(tmp_path / "s/job", wait=False):
        assert job_dir.record_failure(tmp_path / "s/job", "why")["status"] == "refused"
    assert not (tmp_path / "s/job/result.json").exists()
    job_dir.record_failure(tmp_path / "s/job", "why")
    assert read_result(tmp_path / "s/job")["reason"] == "why"


def test_directory_of_a_job_that_failed_before_it_began_is_used(job: list[str], tmp_path: Path) -> None:
    """A mistyped command has other overrides, and must not keep the right one from its directory."""
    result = {"overrides": ["model=mlp", "seed=1", "logger=[]"], "metrics": {}, "status": "failed", "reason": "why"}
    (tmp_path / "s/job").mkdir(parents=True)
    write_result(tmp_path / "s/job", result)
    assert job_dir.load_result_or_resume(tmp_path / "s/job", OmegaConf.create()) is None
    write_result(tmp_path / "s/job", result | {"epochs": 0})  # it has begun
    with pytest.raises(JobDirError, match="has the result of another job"):
        job_dir.check_job_dir(tmp_path / "s/job")


@pytest.mark.parametrize("name", [".", "..", "a/b", "link"])
def test_job_outside_of_its_sweep_is_refused(name: str, job: list[str], tmp_path: Path) -> None:
    make_paths(tmp_path, "s/a/b/", "home/")
    (tmp_path / "s/link").symlink_to("../home")
    with pytest.raises(JobDirError, match="does not lie directly in s, the directory of the sweep"):
        job_dir.check_job_dir(Path("s", name))


def test_link_out_of_a_job_is_refused(job: list[str], tmp_path: Path) -> None:
    make_paths(tmp_path, "s/job/", "home")
    (tmp_path / "s/job/train.log").symlink_to("../../home")
    with pytest.raises(JobDirError, match="is refused: it is a link to"):
        job_dir.check_job_dir(tmp_path / "s/job")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subdir", "overrides"),
    [
        ("job", []),
        ("job", ["trainer.max_epochs=abc"]),
        ("job", ["threads=???"]),
        ("run", ["trainer.max_epochs=abc"]),
        ("killed", ["data.batch_size=0"]),
        (".", ["data.batch_size=0"]),
        ("..", []),
    ],
)
def test_sweep_changes_no_file_that_is_not_of_its_job(
    subdir: str, overrides: list[str], shell: Shell, tmp_path: Path
) -> None:
    make_paths(tmp_path, "s/job/metrics.csv", "s/run/notes", "s/killed/metrics.csv", "pictures/loss.png")
    for folder in ("s/job", "."):
        (tmp_path / folder / "config.yaml").write_text("mine\n")
        (tmp_path / folder / "result.json").write_text('{"acc": 0.9}')
    (tmp_path / "s/killed/config.yaml").write_text("choices: {overrides: [seed=2]}\n")
    write_result(tmp_path / "s/run", {"overrides": ["seed=2"], "metrics": {}, "status": "finished"})
    before = tree(tmp_path)
    sweep = ("hydra.sweep.dir=s", f"hydra.sweep.subdir={subdir}")
    answer = shell("-m", *BLOBS, "trainer.max_epochs=1", *overrides, *sweep)
    assert answer.returncode == 1
    (error,) = answer.stderr.splitlines()
    assert error.startswith("error: " if "." in subdir else "[0] error: ") and error.endswith(
        "hydra.sweep.subdir must name a directory for each job"
    )
    after = tree(tmp_path)
    assert {name for name in after if not name.startswith("outputs")} == before.keys()
    assert before.items() <= after.items()
