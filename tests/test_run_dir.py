"""Run directories: a process removes only what it has made, and only one process trains in each."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cli import job_dir, overwrite, run_dir
from cli.errors import format_error
from cli.job import JobDirError
from cli.main import check_hydra_settings
from cli.run_dir import new_or_resumed_run_dir
from loggers.tensorboard import TensorBoard
from runs.checkpoint import LAST_RUN, find_checkpoint, keep_last_run
from runs.files import NAMES_IN_OUTPUTS, is_within, make_dirs, make_unique_dir, remove_leftovers, update_symlink
from runs.result import write_result
from sweeps.jobs import check_sweep_dir
from tests.conftest import make_paths, tree

Shell = Callable[..., subprocess.CompletedProcess[str]]
BLOBS = ("model=blobs_mlp", "data=blobs", "trainer.accelerator=cpu", "logger=none", "callbacks.pictures=null")
EARLY_ERROR = (*BLOBS, "trainer.max_epochs=abc")
# This error arises after torch is loaded and the directory is locked.
LATE_ERROR = (*BLOBS, "data.val_size=70000")
ENDLESS = (*BLOBS, "model.steps_per_batch=1", "trainer.max_epochs=100000")


@pytest.mark.parametrize(
    "overrides", [EARLY_ERROR, pytest.param(LATE_ERROR, marks=pytest.mark.slow)], ids=["early", "late"]
)
@pytest.mark.parametrize(
    ("existing", "dir_overrides"),
    [
        (["a/b/c/"], ["hydra.run.dir=run"]),
        (["a/b/c/run/"], ["hydra.run.dir=run"]),
        (["a/b/c/"], ["hydra.run.dir=x/y/z"]),
        (["a/b/c/x/"], ["hydra.run.dir=x/y/z"]),
        (["a/b/c/"], ["hydra.run.dir=."]),
        (["a/b/c/"], ["hydra.run.dir=../new"]),
        (["a/b/c/logs/train.log"], ["hydra.run.dir=logs"]),
        (["a/b/c/logs/.lock"], ["hydra.run.dir=logs"]),
        (["a/b/c/logs/.lock", "a/b/c/logs/train.log", "a/b/c/logs/other"], ["hydra.run.dir=logs"]),
        (["a/b/c/outputs/"], []),
        (["a/b/c/"], []),
        (["a/b/c/"], ["--cfg", "hydra", "--resolve"]),
    ],
)
def test_failed_command_leaves_all_files_unchanged(
    overrides: tuple[str, ...], existing: list[str], dir_overrides: list[str], shell: Shell, tmp_path: Path
) -> None:
    make_paths(tmp_path, *existing)
    before = tree(tmp_path)
    answer = shell(*overrides, *dir_overrides, cwd=tmp_path / "a/b/c")
    assert answer.returncode == 1
    assert tree(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "jobs", [("seed=1,2",), ("hydra/sweeper=optuna", "optimizer.lr=interval(0.1,0.2)", "data.val_size=40")]
)
def test_sweep_that_slurm_refuses_leaves_nothing(jobs: tuple[str, ...], shell: Shell, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun"):
        (program := tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\necho sbatch: error: invalid partition >&2\nexit 1\n")
        program.chmod(0o755)
    before = tree(tmp_path)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    answer = shell("-m", *BLOBS, *jobs, "hydra/launcher=submitit_slurm", "hydra.sweep.dir=a/b", PATH=path)
    assert answer.returncode == 1 and "error: sbatch: error: invalid partition" in answer.stderr
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_empty_log_of_the_user_is_kept(shell: Shell, tmp_path: Path) -> None:
    make_paths(tmp_path, "logs/")
    (tmp_path / "logs/train.log").touch()
    for overrides in (EARLY_ERROR, LATE_ERROR):
        assert shell(*overrides, "hydra.run.dir=logs").returncode == 1
        assert tree(tmp_path) == {"logs": None, "logs/train.log": b""}


@pytest.mark.slow
def test_link_to_a_directory_is_kept(shell: Shell, tmp_path: Path) -> None:
    make_paths(tmp_path, "target/")
    (tmp_path / "link").symlink_to("target")
    for overrides in (EARLY_ERROR, LATE_ERROR):
        assert shell(*overrides, "hydra.run.dir=link").returncode == 1
        assert sorted(tree(tmp_path)) == ["link", "target"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["evaluate.py", "predict.py", "export.py"])
def test_failed_command_leaves_its_run_unchanged(script: str, shell: Shell, tmp_path: Path) -> None:
    make_paths(tmp_path, "run/config.yaml", "run/checkpoints/last.ckpt", "run/.lock", "run/evaluate.log")
    before = tree(tmp_path)
    answer = shell("run=run", *(["output=x.pt"] if script == "export.py" else []), script=script)
    assert answer.returncode == 1
    assert tree(tmp_path) == before
    assert shell("run=run", "nonsense=1", "hydra.run.dir=new/er", script=script).returncode == 1
    assert tree(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("existing", "dir_overrides"),
    [
        (["a/b/c/"], ["hydra.sweep.dir=sweep"]),
        (["a/b/c/"], ["hydra.sweep.dir=."]),
        (["a/b/c/multirun.yaml"], ["hydra.sweep.dir=../new"]),
        (["a/b/c/sweep/"], ["hydra.sweep.dir=sweep"]),
        (["a/b/c/sweep/mine"], ["hydra.sweep.dir=sweep"]),
        (["a/b/c/sweep/.study.lock"], ["hydra.sweep.dir=sweep"]),
        (["a/b/c/outputs/"], []),
        (["a/b/c/"], []),
    ],
)
@pytest.mark.parametrize("wrong", [["optimizer.lr=interval(1,2)"], ["model=mlp,lenett"]])
def test_failed_sweep_leaves_all_files_unchanged(
    existing: list[str], dir_overrides: list[str], wrong: list[str], shell: Shell, tmp_path: Path
) -> None:
    make_paths(tmp_path, *existing)
    before = tree(tmp_path)
    answer = shell("-m", *wrong, *dir_overrides, cwd=tmp_path / "a/b/c")
    assert answer.returncode == 1, answer.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("name", NAMES_IN_OUTPUTS)
def test_run_takes_no_name_that_something_else_has_in_outputs(name: str, exists: bool, tmp_path: Path) -> None:
    if exists:
        make_paths(tmp_path, "run/", "outputs/")
        update_symlink(tmp_path / "outputs" / name, tmp_path / "run")
        for directory in (f"{name}/x", f"{tmp_path}/outputs/{name}"):
            with pytest.raises(ValueError, match=f"is refused: .*{name} has another use"), contextlib.chdir("outputs"):
                check_hydra_settings([f"hydra.run.dir={directory}"], "train")
    with pytest.raises(ValueError, match=f"^name={name}/pictures is refused: outputs/{name} has another use"):
        new_or_resumed_run_dir(None, f"outputs/{name}/pictures/2026")
    with pytest.raises(ValueError, match=f"^hydra.sweep.dir=outputs/{name}/s is refused: outputs/{name} has another"):
        check_hydra_settings([f"hydra.sweep.dir=outputs/{name}/s"], "train")
    with pytest.raises(ValueError, match=f"^name={name} is refused: outputs/{name} has another use; choose another"):
        new_or_resumed_run_dir(None, f"outputs/x/../{name}/2026")
    with pytest.raises(ValueError, match=f"^hydra.run.dir=outputs/{name} is refused: outputs/{name} has another use"):
        check_hydra_settings([f"hydra.run.dir=outputs/{name}"], "train")
    logger = TensorBoard(str(tmp_path), name)
    assert logger.log_dir == f"outputs/{name} (run)"
    assert TensorBoard(str(tmp_path / "other"), f"{name}/seed=1").log_dir == f"outputs/{name} seed=1"


@pytest.mark.parametrize(
    "existing", ["config.yaml", "result.json", "metrics.csv", "checkpoints/last.ckpt", "pictures/"]
)
def test_run_refuses_a_directory_with_files_of_a_run(existing: str, shell: Shell, tmp_path: Path) -> None:
    make_paths(tmp_path, f"r/{existing}", "r/other")
    before = tree(tmp_path)
    answer = shell(*BLOBS, "trainer.max_epochs=1", "hydra.run.dir=r")
    assert answer.returncode == 1
    assert "which this run would overwrite" in answer.stderr and len(answer.stderr.splitlines()) == 1
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_resume_writes_into_its_own_or_a_new_directory_only(shell: Shell, tmp_path: Path) -> None:
    for name in ("r", "s"):
        assert shell(*BLOBS, "trainer.max_epochs=1", f"hydra.run.dir={name}").returncode == 0
    before = tree(tmp_path / "s")
    assert shell("resume=r", "trainer.max_epochs=2", "hydra.run.dir=r").returncode == 0
    assert shell("resume=r", "trainer.max_epochs=3", "hydra.run.dir=t").returncode == 0
    assert shell("resume=r", "trainer.max_epochs=4", "hydra.run.dir=s").returncode == 1
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize("given", ["r", "r/checkpoints/last.ckpt", "r/checkpoints/mine.ckpt"])
@pytest.mark.parametrize(
    "config",
    [
        "mine",
        None,
        {"seed": 2},
        {"model": {"_target_": "lit_models.Other"}},
        {"optimizer": {"lr": 0.5}},
        {"data": {"_target_": "datamodules.MNIST"}},
        {"scheduler": None, "seed": None},
    ],
)
def test_resume_overwrites_no_directory_of_anything_else(
    config: dict[str, object] | str | None, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint was copied into a directory that is called checkpoints."""
    own = {"model": {"_target_": "lit_models.Classifier", "weights": "DEFAULT"}, "optimizer": {"lr": 0.1}, "seed": 1}
    own |= {"data": {"_target_": "datamodules.Blobs", "path": "a"}, "scheduler": None, "trainer": {"max_epochs": 1}}
    own |= {"choices": {"overrides": []}}
    monkeypatch.setattr(overwrite, "load_checkpoint", lambda file: {"config": own})
    (folder := tmp_path / "r/checkpoints").mkdir(parents=True)
    for name in ("last.ckpt", "mine.ckpt"):
        zipfile.ZipFile(folder / name, "w").close()
    if config is not None or given == "r":
        text = config if isinstance(config, str) or config is None else yaml.safe_dump(own | config)
        (tmp_path / "r/config.yaml").write_text(text or "")
    reason = "hydra.run.dir=… names another directory; they are damaged, or not those of (last|mine).ckpt"
    with pytest.raises(ValueError, match=f"checkpoints in it, which this run would overwrite: {reason}"):
        overwrite.check_unused(tmp_path / "r", given)
    # A resumed run may have other limits, and data elsewhere. Weights in a file are read by a new run only.
    changed = {"trainer": {"max_epochs": 2}, "data": {"_target_": "datamodules.Blobs", "path": "b"}}
    changed["model"] = {"_target_": "lit_models.Classifier", "weights": None}
    (tmp_path / "r/config.yaml").write_text(yaml.safe_dump(own | changed))
    overwrite.check_unused(tmp_path / "r", given)


@pytest.mark.slow
def test_run_without_a_checkpoint_may_start_again_in_its_directory(shell: Shell, tmp_path: Path) -> None:
    command = (*BLOBS, "trainer.max_epochs=1", "hydra.run.dir=r")
    for _ in range(2):
        assert shell(*command, "optimizer.lr=1e30").returncode == 4  # the loss is not finite
    assert not list((tmp_path / "r" / "checkpoints").glob("*.ckpt"))
    before = tree(tmp_path)
    assert shell(*command).returncode == 1  # another command
    assert tree(tmp_path) == before


@pytest.mark.parametrize("beside", ["other", "20261125-0a1b2c3d/notes", "run/result.json"])
@pytest.mark.parametrize("name", ["summary.csv", "summary.md", "summary.png", "multirun.yaml"])
def test_only_a_directory_that_a_sweep_has_made_is_used(name: str, beside: str, tmp_path: Path) -> None:
    make_paths(tmp_path, f"s/{name}", f"s/{beside}")
    if beside == "run/result.json":
        write_result(tmp_path / "s/run", {"overrides": [], "metrics": {}, "status": "finished"})
    with pytest.raises(ValueError, match=rf"s has {name} in it, which this sweep would overwrite"):
        check_sweep_dir(tmp_path / "s")
    if name != "multirun.yaml":
        (tmp_path / "s/multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
        check_sweep_dir(tmp_path / "s")


@pytest.mark.parametrize("content", ["hydra: {}\n", "[hydra, sweep_resume]", "", "a: [", "[" * 100_000])
def test_multirun_yaml_of_another_program_is_kept(content: str, tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"has multirun\.yaml in it, which this sweep would overwrite"):
        check_sweep_dir(tmp_path)
    (tmp_path / "multirun.yaml").unlink()
    os.mkfifo(tmp_path / "multirun.yaml")
    with pytest.raises(ValueError, match=r"has multirun\.yaml in it, which this sweep would overwrite"):
        check_sweep_dir(tmp_path)


CONFIG: dict[str, object] = {"model": {}, "data": {}, "optimizer": {}, "scheduler": {}, "trainer": {}, "seed": 1}
CONFIG |= {"choices": {"overrides": ["model=mlp", "seed=1"]}}
OTHER = CONFIG | {"choices": {"overrides": ["model=mlp", "seed=2"]}}
LOG = "2026-11-26 04:50:19,183 WARNING py.warnings: text\n"
RESULT = '{"overrides": ["model=mlp", "seed=1"], "metrics": {}, "status": "%s", "epochs": %d}'


def as_yaml(config: dict[str, object]) -> str:
    return yaml.safe_dump(config, sort_keys=False)


@pytest.mark.parametrize(
    ("files", "early"),
    [
        ({}, True),
        ({"metrics.csv": "epoch,step,val/loss,train/loss_step,seconds\n0,0,1.5,,0.1\n1,20,,2.5,\n"}, True),
        ({"result.json": RESULT % ("diverged", 0)}, True),
        ({"result.json": RESULT % ("failed", 0)}, True),
        ({"train.log": LOG, "notes": "mine"}, True),
        ({"checkpoints/.last.ckpt.12.tmp": ""}, True),
        ({"dashboard.txt": "outputs/blobs/seed=1\n"}, True),
        ({"result.json": RESULT % ("finished", 5)}, False),
        ({"result.json": RESULT % ("finished", 0)}, False),
        ({"result.json": RESULT % ("interrupted", 1)}, False),
        ({"result.json": (RESULT % ("failed", 0)).replace("seed=1", "seed=2")}, False),
        ({"result.json": '{"acc": 0.9}'}, False),
        ({"metrics.csv": "epoch,step,train/loss,seconds\n1,20,0.5,0.1\n"}, False),
        ({"metrics.csv": "epoch,loss\n1,0.5\n2,0.4\n"}, False),
        ({"metrics.csv": ""}, False),
        ({"metrics.csv": "epoch,step,seconds\n1\n"}, False),
        ({"dashboard.txt": "mine\n"}, False),
        ({"train.log": "mine\n"}, False),
        ({"checkpoints/last.ckpt": ""}, False),
        ({"checkpoints/model.pt": ""}, False),
        ({"pictures/loss.png": ""}, False),
        ({"evaluations/test_last.json": ""}, False),
        ({"predictions/predictions.csv": ""}, False),
        ({"config.yaml": "choices: [tea]\n", "metrics.csv": "mine\n"}, False),
        ({"config.yaml": "choices: {overrides: []}\n"}, False),
        ({"config.yaml": as_yaml(OTHER)}, False),
        ({"config.yaml": f"{as_yaml(CONFIG)}# my notes\n"}, False),
        ({"config.yaml": as_yaml(CONFIG | {"resume": "a"})}, False),
        ({"config.yaml": "[" * 100_000}, False),
        ({"config.yaml": "\0"}, False),
    ],
)
def test_only_a_run_of_this_command_that_ended_before_its_first_epoch_may_begin_anew(
    files: dict[str, str], early: bool, job: list[str], tmp_path: Path
) -> None:
    """Checkpoints are large and may have been removed from a finished run."""
    for folder in ("r", "s/job"):
        for name, text in ({"config.yaml": as_yaml(CONFIG)} | files).items():
            make_paths(tmp_path, f"{folder}/{name}")
            (tmp_path / folder / name).write_text(text)
    before = tree(tmp_path)
    if early:
        overwrite.check_unused(tmp_path / "r", None)
        job_dir.check_job_dir(tmp_path / "s/job")
        (tmp_path / "r/train.log").unlink(missing_ok=True)
        (tmp_path / "r/train.log").symlink_to("/dev/null")
    with pytest.raises(ValueError, match="which this run would overwrite"):
        overwrite.check_unused(tmp_path / "r", None)
    if not early and "finished" not in files.get("result.json", ""):  # a job that is done is not run again
        with pytest.raises(JobDirError, match=r"hydra\.sweep\.subdir must name a directory for each job|train\.log"):
            job_dir.check_job_dir(tmp_path / "s/job")
    if not early:
        assert tree(tmp_path) == before


@pytest.mark.parametrize(("resume", "lr", "early"), [("a", "0.1", True), ("b", "0.1", False), ("a", "0.2", False)])
def test_resumed_run_that_ended_before_its_first_epoch_may_begin_anew(
    resume: str, lr: str, early: bool, job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its overrides are those of the checkpoint, with those of the command on top."""
    job[:] = ["resume=a", "optimizer.lr=0.1"]
    stored = {"choices": {"overrides": ["model=mlp", "optimizer.lr=0.5"]}}
    monkeypatch.setattr(
        overwrite, "find_checkpoint", lambda run: (tmp_path / "a", tmp_path / "a/checkpoints/last.ckpt")
    )
    monkeypatch.setattr(overwrite, "load_checkpoint", lambda file: {"config": stored})
    config = CONFIG | {"choices": {"overrides": ["model=mlp", f"optimizer.lr={lr}"]}, "resume": resume}
    (folder := tmp_path / "r").mkdir()
    (folder / "config.yaml").write_text(as_yaml(config))
    with contextlib.nullcontext() if early else pytest.raises(ValueError, match="which this run would overwrite"):
        overwrite.check_unused(folder, "a")


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "export"])
def test_log_of_the_user_gets_no_lines(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.log"
    overwrite.check_log(file)
    for text in ("", LOG):
        file.write_text(text)
        overwrite.check_log(file)
    for text in ("mine\n", "epoch 1\n" + LOG, "2026-11-26 04:50:19 INFO mine\n", "\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"{name}\.log is not the log of a run"):
            overwrite.check_log(file)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "export.py"])
def test_command_keeps_a_log_of_the_user(script: str, shell: Shell, tmp_path: Path) -> None:
    """It lies beside a checkpoint that was copied there."""
    assert shell(*BLOBS, "trainer.max_epochs=1", "hydra.run.dir=run").returncode == 0
    make_paths(tmp_path, "mine/")
    shutil.copy(tmp_path / "run/checkpoints/last.ckpt", tmp_path / "mine/a.ckpt")
    (tmp_path / f"mine/{script[:-3]}.log").write_text("mine\n")
    before = tree(tmp_path)
    arguments = {"train.py": [*BLOBS, "hydra.run.dir=mine"], "evaluate.py": ["run=mine/a.ckpt"]}
    arguments["export.py"] = ["run=mine/a.ckpt", "output=a.pt"]
    answer = shell(*arguments[script], script=script)
    assert (answer.returncode, len(answer.stderr.splitlines())) == (1, 1), answer.stderr
    assert "is not the log of a run" in answer.stderr
    assert tree(tmp_path) == before


ROWS = [{"epoch": 1, "step": 5, "train/loss": 0.5, "seconds": 0.1}, {"epoch": 2, "step": 10, "train/loss": 0.25}]


@pytest.mark.parametrize(
    ("rows", "same"),
    [
        ("epoch,step,train/loss,seconds\n1,5,0.5,0.1\n", True),
        ("epoch,step,train/loss,val/loss,seconds\n1,5,0.5,0.4,0.1\n2,10,0.3,0.4,0.1\n", True),  # written after it
        ("epoch,step,train/loss,seconds\n", True),
        (None, True),
        ("epoch,step,train/loss,seconds\n1,5,0.5,0.2\n", False),  # the same settings, another run
        ("epoch,step,train/loss,seconds\n1,6,0.5,0.1\n", False),
        ("epoch,loss\n1,0.5\n", False),
    ],
)
@pytest.mark.parametrize("data", [{}, {"val_size": 0.2}, {"fitted_state": {"md5": "b"}}, {"columns": ["b"]}])
def test_checkpoint_of_another_run_is_not_resumed_in_its_place(
    rows: str | None, same: bool, data: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was copied into the directory of a run on other data, or of a run with the same settings."""
    own = CONFIG | {"data": {"path": "a.csv", "val_size": 0.1, "columns": ["a"], "fitted_state": {"md5": "a"}}}
    checkpoint = {"config": own, "callbacks": {"MetricsHistory": {"rows": ROWS}}}
    monkeypatch.setattr(overwrite, "load_checkpoint", lambda file: checkpoint)
    (folder := tmp_path / "r/checkpoints").mkdir(parents=True)
    zipfile.ZipFile(folder / "b.ckpt", "w").close()
    (tmp_path / "r/config.yaml").write_text(as_yaml(own | {"data": own["data"] | {"path": "b.csv"} | data}))
    if rows is not None:
        (tmp_path / "r/metrics.csv").write_text(rows)
    if same and not data:
        overwrite.check_unused(tmp_path / "r", str(folder / "b.ckpt"))
    else:
        with pytest.raises(ValueError, match="which this run would overwrite"):
            overwrite.check_unused(tmp_path / "r", str(folder / "b.ckpt"))


def test_log_that_is_a_link_to_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.log").symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"train\.log is refused: it is a link to /dev/null"):
        overwrite.check_unused(tmp_path, None)


def test_config_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "metrics.csv")
    with pytest.raises(ValueError, match="which this run would overwrite"):
        overwrite.check_unused(tmp_path, None)


@pytest.mark.slow
def test_sweep_refuses_a_directory_with_files_of_a_sweep(shell: Shell, tmp_path: Path) -> None:
    make_paths(tmp_path, "s/summary.csv", "s/other")
    before = tree(tmp_path)
    for search in ([], ["hydra/sweeper=optuna", "optimizer.lr=interval(0.1,0.2)"]):
        answer = shell("-m", *BLOBS, "trainer.max_epochs=1", *search, "hydra.sweep.dir=s")
        assert answer.returncode == 1
        assert "which this sweep would overwrite" in answer.stderr and len(answer.stderr.splitlines()) == 1
        assert tree(tmp_path) == before


@pytest.mark.slow
def test_sweep_refuses_two_jobs_in_one_directory(shell: Shell, tmp_path: Path) -> None:
    answer = shell("-m", *BLOBS, "trainer.max_epochs=1", "seed=1,2", "hydra.sweep.dir=s", "hydra.sweep.subdir=same")
    assert answer.returncode == 1
    assert "has the result of another job, python train.py model=blobs_mlp" in answer.stderr
    assert json.loads((tmp_path / "s/same/result.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("file", ["predictions/predictions.csv", "evaluations/test_last.json"])
def test_directory_with_what_a_later_command_would_replace_is_refused(file: str, tmp_path: Path) -> None:
    make_paths(tmp_path, f"contest/{file}")
    with pytest.raises(ValueError, match=f"contest has {file.split('/')[0]} in it, which this run would overwrite"):
        overwrite.check_unused(tmp_path / "contest", None)


def test_unique_directory_outlives_the_removal_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes the parent, which it had made, when it is refused."""
    mkdir, removed = Path.mkdir, []

    def remove_parent_first(path: Path, *arguments: object, **options: object) -> None:
        if path.name == "run" and not removed:
            path.parent.rmdir()
            removed.append(path.parent)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", remove_parent_first)
    assert make_unique_dir(str(tmp_path / "a/run"))[0] == tmp_path / "a/run"
    assert (tmp_path / "a/run").is_dir()
    assert removed


def test_remove_leftovers_keeps_files_of_the_user(tmp_path: Path) -> None:
    make_paths(tmp_path, ".x.tmp", ".result.json.x.tmp", ".x.1.tmp", ".result.json.1.tmp", ".result.json.2.tmp/")
    before = tree(tmp_path)
    remove_leftovers(tmp_path, "result.json")
    assert before.keys() - tree(tmp_path).keys() == {".result.json.1.tmp"}


def test_update_symlink_refuses_to_replace_a_file(tmp_path: Path) -> None:
    make_paths(tmp_path, "outputs/last", "run/")
    with pytest.raises(FileExistsError):
        update_symlink(tmp_path / "outputs/last", tmp_path / "run")
    assert sorted(tree(tmp_path)) == ["outputs", "outputs/last", "run"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["outputs/last", "outputs/last/kept"])
def test_run_finishes_if_outputs_last_cannot_be_a_link(shell: Shell, tmp_path: Path, kind: str) -> None:
    """A file or directory of the user's is in the place of the link. So it is if a file system has no links."""
    make_paths(tmp_path, kind)
    before = tree(tmp_path)
    answer = shell(*BLOBS, "trainer.max_epochs=1", "hydra.run.dir=r")
    assert answer.returncode == 0, answer.stderr
    assert "outputs/last does not point at this run, r: " in answer.stdout + answer.stderr
    assert json.loads((tmp_path / "r/result.json").read_text())["status"] == "finished"
    assert before.items() <= tree(tmp_path).items()


@pytest.mark.parametrize("is_ours", [True, False])
def test_logging_at_exit_does_not_recreate_a_removed_log(
    is_ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user may have made a file of that name since the command began."""
    monkeypatch.setattr(run_dir.HydraConfig, "get", lambda: SimpleNamespace(job=SimpleNamespace(name="train")))
    monkeypatch.setattr(run_dir.HydraConfig, "initialized", lambda: False)
    (folder := tmp_path / "r").mkdir()
    monkeypatch.setitem(run_dir._names_before, str(folder), set())
    handler = logging.FileHandler(folder / "train.log", delay=True)
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt), run_dir.lock_run_dir(folder, wait=False):
            if is_ours:
                logging.getLogger().warning("before")
            else:
                (folder / "train.log").touch()
            raise KeyboardInterrupt
        logging.getLogger().warning("at exit")
    finally:
        logging.getLogger().removeHandler(handler)
    assert sorted(os.listdir(folder)) == ([] if is_ours else [".lock", "train.log"])


def test_last_is_the_same_run_for_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """outputs/last moves when another training starts: one run would be evaluated, and another get the result."""
    monkeypatch.setenv(LAST_RUN, "")
    del os.environ[LAST_RUN]
    for name in ("a", "b"):
        make_paths(tmp_path, f"{name}/config.yaml", f"{name}/checkpoints/")
        zipfile.ZipFile(tmp_path / name / "checkpoints/last.ckpt", "w").close()
    keep_last_run()  # in a directory without runs
    with pytest.raises(FileNotFoundError, match="there is no run yet in outputs/"):
        find_checkpoint("last")
    del os.environ[LAST_RUN]
    update_symlink(Path("outputs/last"), tmp_path / "a")
    for name in ("a", "b"):
        update_symlink(Path("outputs/last"), tmp_path / name)
        keep_last_run()
        for run in ("last", "outputs/last", "./outputs/last/checkpoints/last.ckpt"):
            assert find_checkpoint(run)[0] == tmp_path / "a"
    del os.environ[LAST_RUN]
    assert find_checkpoint("last")[0] == tmp_path / "b"


@pytest.mark.slow
def test_each_job_of_a_sweep_resumes_the_run_that_was_last_at_its_start(shell: Shell) -> None:
    assert shell(*BLOBS, "trainer.max_epochs=1").returncode == 0
    answer = shell("-m", "resume=last", "trainer.max_epochs=3,2")  # the second would find the three epochs of the first
    assert answer.returncode == 0, answer.stderr


@pytest.mark.slow
def test_jobs_of_a_sweep_over_runs_have_directories_of_their_own(shell: Shell, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        settings = (*BLOBS, "model.steps_per_batch=2", "trainer.max_epochs=1")
        assert shell(*settings, f"seed={seed}", f"hydra.run.dir=run{seed}").returncode == 0
    for _ in ("trains", "finds both"):
        answer = shell("-m", "resume=run1,run2", "trainer.max_epochs=2", "hydra.sweep.dir=sweep")
        assert answer.returncode == 0, answer.stderr
        results = [json.loads(file.read_text()) for file in tmp_path.glob("sweep/*-*/result.json")]
        assert {(result["seed"], result["epochs"]) for result in results} == {(1, 2), (2, 2)}
    assert "resume=run2 trainer.max_epochs=2: done before" in answer.stdout


# --- runs/files.py -----------------------------------------------------------------------------------------------


def test_make_dirs_returns_only_the_directories_it_made(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert make_dirs(tmp_path / "a/b/c") == [tmp_path / "a/b/c", tmp_path / "a/b"]
    assert make_dirs(tmp_path / "a/b/c") == []
    assert make_unique_dir(f"{tmp_path}/x/run") == [tmp_path / "x/run", tmp_path / "x"]
    assert make_unique_dir(f"{tmp_path}/x/run") == [tmp_path / "x/run-2"]


def test_directory_behind_a_link_that_leads_nowhere_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/mlp_on_mnist").symlink_to("/disk/that/is/not/mounted")
    with pytest.raises(FileExistsError) as error:
        make_unique_dir("outputs/mlp_on_mnist/2026-11-27")
    assert "is a link to /disk/that/is/not/mounted, which is not there: remove it" in format_error(error.value)


def test_is_within_resolves_links_and_parents(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    assert is_within(tmp_path / "a", tmp_path)
    for path in (tmp_path, tmp_path / "../x", tmp_path / "link/x", Path("/")):
        assert not is_within(path, tmp_path)


@pytest.mark.parametrize("begun", ["lock", "config"])
def test_run_and_sweep_do_not_share_a_directory(begun: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    if begun == "lock":
        (tmp_path / "run/.lock").touch()
    else:
        (tmp_path / "run/config.yaml").write_text("choices: {}\nmodel: {}\n")
    with pytest.raises(ValueError, match=r"run is the directory of a run: hydra\.sweep\.dir="):
        check_sweep_dir(tmp_path / "run")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
    check_sweep_dir(tmp_path / "sweep")
    with pytest.raises(ValueError, match=r"sweep is the directory of a sweep: hydra\.run\.dir="):
        overwrite.check_unused(tmp_path / "sweep", None)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.yaml").write_text("of: another program\n")
    check_sweep_dir(tmp_path / "own")
