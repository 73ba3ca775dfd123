"""Stale rank variables in the environment give one line and a non-zero exit code instead of silence."""

import os
import sys
import tempfile
import threading
from pathlib import Path

import hydra
import pytest
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from cli import CONF
from cli.main import _prepare_other_rank
from runs import rank
from runs.rank import SIZES, check_group, check_rank_variables, global_rank, warn_when_waiting
from tests.conftest import run

BLOBS = ("model=blobs_mlp", "data=blobs", "trainer.accelerator=cpu", "logger=none", "trainer.max_epochs=1")


def compose(*overrides: str) -> DictConfig:
    """Return Hydra's own settings."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(overrides), return_hydra_config=True).hydra


@pytest.fixture(autouse=True)
def clear_rank_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SIZES, *SIZES.values()):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", SIZES)
def test_stale_rank_without_a_matching_world_size_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=f"{name}=1 in the environment: this command runs as one process"):
        check_rank_variables(alone=True)
    if name != "NODE_RANK":  # set by hand for several machines without a launcher
        with pytest.raises(ValueError, match=f"{name}=1 in the environment, and no {SIZES[name]}"):
            check_rank_variables(alone=False)
    monkeypatch.setenv(SIZES[name], "1")
    with pytest.raises(ValueError, match=f"{name}=1 in the environment must be less than {SIZES[name]}=1"):
        check_rank_variables(alone=False)
    monkeypatch.setenv(SIZES[name], "2")
    check_rank_variables(alone=False)
    with pytest.raises(ValueError, match=f"{name}=1 in the environment, and this run has one process; unset it"):
        check_group(rank=0, size=1)
    check_group(rank=1, size=2)


def test_local_rank_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it for all that this process does later
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"number 1 of its machine \(LOCAL_RANK\), and trainer.devices=1 there; unset"):
        run("run", *BLOBS, "trainer=ddp", "trainer.devices=1")
    check_group(rank=1, size=2, local_rank=1, devices=2)


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "0x1", "²", "1 2", "\x1b[2J"])
@pytest.mark.parametrize("name", [*SIZES, *SIZES.values()])
def test_rank_variable_that_is_not_a_number_is_refused(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"{name}=.* in the environment must be a whole number"):
        check_rank_variables(alone=False)
    global_rank()


@pytest.mark.parametrize("name", [*SIZES, *SIZES.values()])
def test_blank_rank_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, " ")
    check_rank_variables(alone=True)
    assert global_rank() == 0


def test_rank_of_the_trainer_without_variables_is_refused() -> None:
    with pytest.raises(ValueError, match="no rank in the environment, and this run has 4 processes, of which this one"):
        check_group(rank=2, size=4)
    check_group(rank=0, size=4)


@pytest.mark.parametrize(("variables", "named"), [({}, "no WORLD_SIZE"), ({"WORLD_SIZE": "1"}, "WORLD_SIZE=1")])
def test_stale_local_rank_zero_does_not_wait_for_ranks_that_nobody_starts(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning starts the other ranks of a run only where there is no LOCAL_RANK."""
    for name, value in {"LOCAL_RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    check_group(rank=0, size=1)
    with pytest.raises(ValueError, match=f"LOCAL_RANK=0 and {named} in the environment, and this run has 2 processes"):
        check_group(rank=0, size=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_group(rank=0, size=2)


def test_directory_of_the_other_ranks_is_checked_by_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that ends before it has connected would leave rank zero waiting."""
    (evil := tmp_path / "${oc.env:SECRET}").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(evil))
    check_group(rank=0, size=1)
    with pytest.raises(ValueError, match="SECRET} cannot be used: Hydra would evaluate the name of the directory"):
        check_group(rank=0, size=2)


def test_waiting_rank_prints_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ImmediateTimer:
        def __init__(self, seconds, function):
            self.start, self.cancel = function, lambda: None

    monkeypatch.setattr(rank.threading, "Timer", ImmediateTimer)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with warn_when_waiting(1):
        assert capsys.readouterr().err == ""
    with warn_when_waiting(2):
        assert capsys.readouterr().err == "rank 1 waits for the other 1 at host:29500\n"


def test_rank_whose_run_has_ended_waits_for_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process may run another job of its sweep by then."""
    monkeypatch.setattr(rank, "WARN_AFTER", 1.0)
    with warn_when_waiting(2):
        (timer,) = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    timer.join()
    assert capsys.readouterr().err == ""


def test_callback_that_needs_a_logger_has_one_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.is_rank_zero", lambda: False)
    settings = ("model=blobs_mlp", "data=blobs", "trainer.accelerator=cpu", "trainer.max_epochs=1")
    monitor = "+callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor"
    assert run("run", *settings, "model.steps_per_batch=1", monitor)["status"] == "finished"
    assert not Path("outputs").exists()  # rank zero alone writes event files


@pytest.mark.parametrize("name", ["a,b", "it's", 'a "quoted" one', "back\\slash", "{x}", "a=b c"])
def test_name_of_the_temporary_directory_reaches_hydra_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    _prepare_other_rank()
    own_dir = compose(*sys.argv[1:2]).run.dir
    assert Path(own_dir).is_dir() and Path(own_dir).parent == tmp_path / name


def test_name_of_the_temporary_directory_is_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would put the values of environment variables into the name of a directory, which the log shows."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "${oc.env:SECRET}"))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    Path(tempfile.gettempdir()).mkdir()
    with pytest.raises(ValueError, match="Hydra would evaluate the name"):
        _prepare_other_rank()
    assert sys.argv == ["train.py"]
    assert not list(Path(tempfile.gettempdir()).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "environment"),
    [
        ("train.py", BLOBS, {"RANK": "1"}),
        ("train.py", BLOBS, {"LOCAL_RANK": "1", "WORLD_SIZE": "2"}),
        ("train.py", BLOBS, {"NODE_RANK": "1"}),
        ("train.py", BLOBS, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}),
        ("train.py", ("-m", *BLOBS), {"WORLD_SIZE": "abc"}),
        ("train.py", ("--help",), {"RANK": "abc"}),
        ("evaluate.py", (), {"RANK": "1", "WORLD_SIZE": "2"}),
        ("predict.py", (), {"NODE_RANK": "1"}),
        ("export.py", ("output=x.pt",), {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}),
    ],
)
def test_stale_rank_variables_give_one_line_for_every_command(
    script: str, arguments: tuple[str, ...], environment: dict[str, str], shell, tmp_path
):
    answer = shell(*arguments, script=script, **environment)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert "error: " in line
    assert f"{next(iter(environment))}=" in line or "You set `--ntasks=2`" in line  # Lightning's own
    assert os.listdir(tmp_path) == []
