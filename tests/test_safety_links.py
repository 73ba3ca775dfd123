"""Links, hard links and special files in runs and sweeps from untrusted sources."""

import logging
import logging.config
import os
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution

from cli.job_dir import job_dir
from cli.overwrite import check_unused
from cli.run_dir import new_or_resumed_run_dir, new_or_resumed_sweep_dir
from hydra_plugins.optuna_sweeper import OptunaSweeper
from loggers.tensorboard import TensorBoard
from runs.checkpoint import find_checkpoint
from runs.files import atomic_write
from runs.result import write_result
from sweeps.jobs import check_sweep_dir, read_jobs
from sweeps.study import open_study
from tests.conftest import PROJECT
from tests.untrusted import TINY, relative_paths


@pytest.mark.parametrize("name", ["train.log", "evaluate.log", "checkpoints", "evaluations", "predictions", "pictures"])
def test_link_out_of_a_run_is_refused(name: str, untrusted: Path) -> None:
    """A command would write into a file of the user's, such as one that a shell reads when it starts."""
    (target := untrusted.parent / "home").mkdir()
    link = Path("outputs/untrusted", name)
    if name == "checkpoints":
        link.rename(target / name)
    elif name.endswith(".log"):
        (target / name).write_text("mine\n")
    else:
        (target / name).mkdir()
    link.symlink_to(target / name)
    with pytest.raises(ValueError, match=r"is refused: it is a link to .*, outside of "):
        find_checkpoint("outputs/untrusted")
    if name != "checkpoints":  # the path of a checkpoint file is used as it is
        with pytest.raises(ValueError, match=r"is refused: it is a link to .*, outside of "):
            find_checkpoint("outputs/untrusted/checkpoints/last.ckpt")


@pytest.mark.parametrize("begin", [lambda folder: check_unused(folder, None), check_sweep_dir])
def test_link_of_the_user_is_refused_where_a_run_or_a_sweep_begins(begin: Callable, tmp_path: Path) -> None:
    """Every command that asks the run later refuses it."""
    (folder := tmp_path / "mine").mkdir()
    (folder / "data").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=r"mine/data is refused: it is a link to \.\./elsewhere, outside of "):
        begin(folder)


def test_link_that_wandb_makes_in_outputs_is_none_out_of_a_run(untrusted: Path) -> None:
    """A run may have the working directory, and so outputs/ in it."""
    logs = Path("outputs/untrusted/outputs/wandb/offline-run-20261128_084900-1abc2def/logs")
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to("../../../../../../cache/core-debug-20261128.log")
    find_checkpoint("outputs/untrusted")
    (logs / "debug.log").symlink_to("../../../../../../cache/core-debug-20261128.log")
    with pytest.raises(ValueError, match=r"debug\.log is refused: it is a link to .*, outside of "):
        find_checkpoint("outputs/untrusted")


def test_link_within_a_run_is_followed(untrusted: Path) -> None:
    Path("outputs/untrusted/checkpoints/last.ckpt").rename("outputs/untrusted/old.ckpt")
    Path("outputs/untrusted/checkpoints/last.ckpt").symlink_to("../old.ckpt")
    assert find_checkpoint("outputs/untrusted")[1].is_file()


@pytest.mark.parametrize("name", ["checkpoints", "pictures", "evaluations", "train.log", ".lock"])
def test_what_is_written_into_is_no_link_into_a_run_within_the_run(name: str, untrusted: Path) -> None:
    """Two runs, each with its own lock, would write the checkpoints of one."""
    inner = Path(shutil.copytree("outputs/untrusted", "outputs/untrusted/inner"))
    (inner / name).mkdir(exist_ok=True) if "." not in name else (inner / name).touch()
    shutil.rmtree(link := Path("outputs/untrusted", name), ignore_errors=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"inner/{name}")
    with pytest.raises(ValueError, match=f"untrusted/{name} is refused: it is a link, and commands write into it"):
        find_checkpoint("outputs/untrusted")
    assert find_checkpoint("outputs/untrusted/inner")[1].is_file()


@pytest.mark.parametrize(
    "name", ["ev/projector_config.pbtxt", "ev/2/a/metadata.tsv", "metrics.csv", ".lock", "pictures/loss.png", "x"]
)
@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a directory", "fifo"])
def test_link_or_special_file_anywhere_in_a_run_is_refused(name: str, kind: str, untrusted: Path) -> None:
    """The run's dashboard.txt may name a directory in it, whose files TensorBoard's projector overwrites."""
    path = Path("outputs/untrusted", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    (target := untrusted.parent / "thesis").mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": __file__, "dangling link": target / "new"}.get(kind, target))
    reason = "neither a file nor a directory" if kind == "fifo" else f"a link to {os.readlink(path)}, outside of "
    for run in ("outputs/untrusted", "outputs/untrusted/checkpoints/last.ckpt"):
        with pytest.raises(ValueError, match=f"{path.name} is refused: it is {reason}"):
            find_checkpoint(run)


@pytest.mark.parametrize("name", ["evaluations/a/link", ".lock", "evaluate.log", "checkpoints/link", "wandb.txt"])
def test_what_is_used_beside_a_checkpoint_alone_is_checked(name: str, untrusted: Path) -> None:
    (folder := Path("alone")).mkdir()
    shutil.copy("outputs/untrusted/checkpoints/last.ckpt", folder / "mine.ckpt")
    (folder / "elsewhere").symlink_to(untrusted.parent)  # of the user's, as any other file
    (folder / "data").mkdir()
    (folder / "data" / "set").symlink_to("/")
    assert find_checkpoint("alone/mine.ckpt")[0].name == "alone"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(untrusted.parent / "home")
    with pytest.raises(ValueError, match=r"is refused: it is a link to .*home, outside of "):
        find_checkpoint("alone/mine.ckpt")


def test_link_to_a_run_of_the_user_is_no_job_of_a_sweep(tmp_path: Path) -> None:
    """A sweep may be given without the files by which it is known as one."""
    write_result(tmp_path / "mine", {"status": "finished", "overrides": [], "metrics": {"val/acc": 1.0}})
    write_result(tmp_path / "sweep/0-01234567", {"status": "finished", "overrides": [], "metrics": {"val/acc": 0.5}})
    for name in ("1-89abcdef", "named"):
        (tmp_path / "sweep" / name).symlink_to("../mine")
    assert [job.run_dir.name for job in read_jobs(tmp_path / "sweep")] == ["0-01234567"]
    for name in ("1-89abcdef", "named"):
        with pytest.raises(ValueError, match=r" is refused: it is a link to \.\./mine, outside of "):
            check_sweep_dir(tmp_path / "sweep")
        (tmp_path / "sweep" / name).unlink()
    check_sweep_dir(tmp_path / "sweep")
    (tmp_path / "sweep/2-01234567").mkdir()
    (tmp_path / "sweep/2-01234567/result.json").symlink_to("../../mine/result.json")
    with pytest.raises(ValueError, match=r"result\.json is refused: it is a link"):
        check_sweep_dir(tmp_path / "sweep")


@pytest.mark.parametrize("name", ["mlflow.txt", "wandb.txt", "result.json", "config.yaml"])
def test_link_in_a_job_of_a_sweep_is_refused(name: str, tmp_path: Path) -> None:
    """The second line of mlflow.txt is shown where it is another address than expected."""
    cfg = OmegaConf.create({"seed": 1})
    (job := tmp_path / "sweep" / job_dir(str(tmp_path / "sweep"), 0, _root_=cfg)).is_dir()
    (job / name).symlink_to("../../netrc")
    with pytest.raises(ValueError, match=f"{name} is refused: it is a link to ../../netrc, outside of "):
        job_dir(str(tmp_path / "sweep"), 0, _root_=cfg)


@pytest.mark.parametrize("name", [".study.lock", ".worker-0123456789ab.lock", "study.db"])
def test_lock_of_a_sweep_that_is_a_link_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).symlink_to("../home")
    with pytest.raises(ValueError, match=r"it is a link to \.\./home, outside of "):
        new_or_resumed_sweep_dir("sweep", "unused")


def test_run_in_the_working_directory_holds_outputs_last(untrusted: Path) -> None:
    """With hydra.run.dir=. the link outputs/last is in the run that it points at."""
    shutil.rmtree("outputs/untrusted/pictures", ignore_errors=True)
    os.chdir("outputs/untrusted")
    Path("outputs").mkdir()
    Path("outputs/last").symlink_to("..")
    assert find_checkpoint("last") == find_checkpoint(".")


@pytest.mark.parametrize("given", ["gift/model.ckpt", "gift/checkpoints/last.ckpt", "linked/checkpoints/last.ckpt"])
def test_checkpoint_that_is_a_link_into_another_run_is_refused(given: str, untrusted: Path) -> None:
    """To resume it would continue that run."""
    file = Path("outputs/untrusted/checkpoints/last.ckpt").resolve()
    Path("gift/checkpoints").mkdir(parents=True)
    for link in ("gift/model.ckpt", "gift/checkpoints/last.ckpt"):
        Path(link).symlink_to(os.path.relpath(file, Path(link).parent))
    Path("linked").mkdir()
    Path("linked/checkpoints").symlink_to("../outputs/untrusted/checkpoints")
    with pytest.raises(ValueError, match=f"{given} is refused: it is a link to {file}; name that file itself"):
        find_checkpoint(given)


def test_link_to_a_checkpoint_beside_it_or_to_its_run_is_followed(untrusted: Path) -> None:
    shutil.copy("outputs/untrusted/checkpoints/last.ckpt", "mine.ckpt")
    Path("newest.ckpt").symlink_to("mine.ckpt")
    Path("run").symlink_to("outputs/untrusted")
    assert find_checkpoint("newest.ckpt")[1].name == "mine.ckpt"
    assert find_checkpoint("run/checkpoints/last.ckpt") == find_checkpoint("outputs/untrusted")


def test_log_that_is_a_fifo_is_refused(untrusted: Path) -> None:
    os.mkfifo("outputs/untrusted/train.log")
    with pytest.raises(ValueError, match="it is neither a file nor a directory"):
        find_checkpoint("outputs/untrusted")


@pytest.mark.parametrize("made_by", ["multirun.yaml", "study.db"])
@pytest.mark.parametrize("name", ["outputs", "1-0123abcd/train.log", "notes/link"])
def test_link_out_of_a_sweep_is_refused(made_by: str, name: str, tmp_path: Path) -> None:
    """In a sweep that is the working directory, event files go to outputs/."""
    (link := tmp_path / "gift" / name).parent.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    if made_by == "study.db":
        open_study(tmp_path / "gift")
    else:
        (tmp_path / "gift/multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
    (tmp_path / "gift/outputs").mkdir(exist_ok=True)
    (tmp_path / "gift/outputs/last_sweep").symlink_to("..")
    os.chdir("gift")
    for use in (lambda: new_or_resumed_sweep_dir(".", "unused"), lambda: check_sweep_dir(Path())):
        use()
    if link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(tmp_path / "home")
    for use in (lambda: new_or_resumed_sweep_dir(".", "unused"), lambda: check_sweep_dir(Path())):
        with pytest.raises(ValueError, match=f"{name} is refused: it is a link to {tmp_path}/home, outside of "):
            use()


def test_log_with_another_name_is_replaced_by_a_copy(tmp_path: Path) -> None:
    """A tar file may hold hard links: the log of a run would be a file that a shell reads when it starts."""
    (home := tmp_path / ".bashrc").write_text("mine\n")
    home.chmod(0o600)
    (log := tmp_path / "evaluate.log").hardlink_to(home)
    settings = yaml.safe_load((PROJECT / "conf/hydra/job_logging/run.yaml").read_text())["handlers"]["file"]
    handler: Any = pkgutil.resolve_name(settings["class"])(log, delay=True)
    handler.begin()
    handler.emit(logging.makeLogRecord({"msg": "ours"}))
    handler.close()
    assert (home.read_text(), log.read_text()) == ("mine\n", "mine\nours\n")
    assert log.stat().st_mode == home.stat().st_mode
    assert relative_paths(tmp_path) == {".bashrc", "evaluate.log"}


def test_projector_writes_into_no_file_with_another_name(untrusted: Path) -> None:
    names = ["projector_config.pbtxt", "00001/points/metadata.tsv", "00001/points/tensors.tsv"]
    Path("outputs/untrusted/dashboard.txt").write_text("outputs/untrusted/events\n")
    for name in names:
        (path := Path("outputs/untrusted/events", name)).parent.mkdir(parents=True, exist_ok=True)
        (mine := untrusted.parent / path.name).write_text("mine\n")
        path.hardlink_to(mine)
    Path("outputs/untrusted/events/run.txt").write_text("..\n")
    logger = TensorBoard("outputs/untrusted", title="untrusted/events")
    logger.log_embedding("points", torch.zeros(3, 2), ["a", "b", "c"], None, 1)
    logger.finalize("success")
    for name in names:
        assert Path("outputs/untrusted/events", name).stat().st_nlink == 1
        assert (untrusted.parent / Path(name).name).read_text() == "mine\n"


@pytest.mark.parametrize("name", ["study.db", "study.db-journal"])
def test_study_with_another_name_is_refused(name: str, tmp_path: Path) -> None:
    """SQLite writes into these files, and the other one may be the study of another sweep."""
    (tmp_path / "gift").mkdir()
    open_study(mine := tmp_path)
    if name != "study.db":
        (mine / name).touch()
    (tmp_path / "gift" / name).hardlink_to(mine / name)
    for refuse in (open_study, check_sweep_dir):
        with pytest.raises(ValueError, match=f"gift/{name} is refused: it is a hard link to a file that has other nam"):
            refuse(tmp_path / "gift")
    shutil.copytree(tmp_path / "gift", tmp_path / "copy")
    check_sweep_dir(tmp_path / "copy")


def test_job_directory_that_is_a_link_out_of_the_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "sweep").mkdir()
    cfg = OmegaConf.create({"seed": 1})
    name = job_dir("sweep", 0, _root_=cfg)
    Path("sweep", name).rmdir()
    Path("sweep", name).symlink_to("../home")
    with pytest.raises(ValueError, match="outside of the sweep"):
        job_dir("sweep", 0, _root_=cfg)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study.db", "multirun.yaml"])
def test_link_out_of_a_sweep_is_not_written_through(name: str, shell, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).symlink_to("../mine")
    answer = shell("-m", *TINY, "seed=1", "trainer.max_epochs=1", "logger=none", "sweep_resume=sweep")
    assert answer.returncode == 1 and len(answer.stderr.splitlines()) == 1, answer.stderr
    assert (tmp_path / "mine").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["{home}", "../home", "home/../../home", 5, ["x"], ".worker-0123456789ab.lock/../x"])
def test_worker_name_of_a_trial_is_not_used_as_a_path(name: Any, tmp_path: Path) -> None:
    """A trial stores the name of its worker's lock file, which is removed when the worker is gone."""
    (tmp_path / "sweep").mkdir()
    home = tmp_path / "home"
    home.write_text("mine\n")
    study = open_study(tmp_path / "sweep", direction="maximize")
    space = {"optimizer.lr": FloatDistribution(0.1, 1)}
    study.ask(space).set_user_attr("worker", name.format(home=home) if isinstance(name, str) else name)
    sweeper = OptunaSweeper({}, "val/acc", "maximize", n_trials=1, startup_trials=1, seed=1)
    sweeper.space, sweeper.at_once = space, 1
    assert [trial.number for trial in sweeper._next_trials(study, tmp_path / "sweep", "me")] == [0]
    assert home.read_text() == "mine\n"


def test_directories_of_an_interrupted_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "mine/new/deep/file.csv", tmp_path / "mine/file.csv"):
        with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    assert relative_paths(tmp_path) == {"mine"}
    with atomic_write(tmp_path / "mine/new/file.csv") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "mine/new/file.csv").read_text() == "whole"


def test_atomic_write_does_not_follow_an_existing_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / f".result.json.{os.getpid()}.tmp").symlink_to("mine")
    with atomic_write(tmp_path / "result.json") as temporary:
        temporary.write_text("ours\n")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert (tmp_path / "result.json").read_text() == "ours\n"


@pytest.mark.parametrize("resume", ["last.ckpt", "sub", "."])
def test_outputs_that_came_with_a_run_is_no_link(resume: str, untrusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files would be written, and ``last`` replaced, in a directory that nobody has named."""
    gift = untrusted / "gift"
    shutil.copytree("outputs/untrusted", gift if resume == "." else gift / "sub")
    shutil.copy("outputs/untrusted/checkpoints/last.ckpt", gift)
    Path("home").mkdir()
    (gift / "outputs").symlink_to("../home")
    monkeypatch.chdir(gift)
    with pytest.raises(ValueError, match=r"outputs is refused: it is a link to ../home"):
        new_or_resumed_run_dir(resume, "x")


def test_outputs_may_be_a_link_of_the_user(untrusted: Path) -> None:
    shutil.move("outputs", "disk")
    Path("outputs").symlink_to("disk")
    assert new_or_resumed_run_dir("outputs/untrusted", "x") == str(untrusted / "disk/untrusted")
    shutil.move("disk/untrusted", untrusted.parent / "gift")
    assert new_or_resumed_run_dir("../gift", "x") == str(untrusted.parent / "gift")


def test_last_leads_out_of_the_directory_of_this_project_only(untrusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of somebody else it could lead to another run of the user's, and continue that."""
    (own := untrusted.parent / "own").mkdir()
    shutil.move("outputs/untrusted", own / "run")
    Path("outputs/last").unlink(missing_ok=True)
    Path("outputs/last").symlink_to("../../own/run")
    Path("outputs/last_sweep").symlink_to("../../own")
    with pytest.raises(ValueError, match=f"outputs/last is refused: it is a link to {own}/run, outside of this"):
        find_checkpoint("last")
    with pytest.raises(ValueError, match=f"outputs/last_sweep is refused: it is a link to {own}, outside of this"):
        new_or_resumed_sweep_dir("last", "unused")
    shutil.move("outputs", untrusted.parent / "disk")  # the user's outputs/ on another disk
    Path("outputs").symlink_to("../disk")
    shutil.move(own / "run", untrusted.parent / "disk/run")
    Path("outputs/last").unlink()
    Path("outputs/last").symlink_to("run")
    assert find_checkpoint("last")[0] == untrusted.parent / "disk/run"
