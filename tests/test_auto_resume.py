"""``resume=auto``: the same command starts a run, continues it after a kill, and answers with the result at its end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.resumed_run import resolve_auto
from tests.conftest import PROJECT
from tests.kill_and_resume import differences, final_state

COMMAND = ["model=blobs_mlp", "data=blobs", "seed=2", "hydra.run.dir=run", "resume=auto"]
STARTED = [text for text in COMMAND if text != "resume=auto"]


def write_run(status: str | None, overrides: list[str], **more: Any) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.ckpt").touch()
    if status:
        result = {"overrides": overrides, "metrics": {"test/acc": 0.75}, "status": status, "seconds": {"total": 2.0}}
        Path("run/result.json").write_text(json.dumps(result | more))


def test_directory_without_a_checkpoint_starts_a_run() -> None:
    assert resolve_auto(COMMAND) == STARTED
    Path("run").mkdir()
    assert resolve_auto(COMMAND) == STARTED
    assert resolve_auto(STARTED) == STARTED


@pytest.mark.parametrize("has_config", [True, False])
def test_run_whose_files_are_links_out_of_it_is_refused(has_config: bool, tmp_path: Path) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.ckpt").touch()
    Path("mine.csv").write_text("card\n4000\n")
    Path("run/metrics.csv").symlink_to("../mine.csv")
    if has_config:
        Path("run/config.yaml").touch()
    with pytest.raises(ValueError, match=r"run/metrics.csv is refused: it is a link to ../mine.csv"):
        resolve_auto(COMMAND)


@pytest.mark.parametrize("status", [None, "interrupted", "failed"])
def test_run_that_has_not_ended_is_resumed(status: str | None) -> None:
    write_run(status, ["model=blobs_mlp", "data=blobs", "seed=2"])
    assert resolve_auto(COMMAND) == [*STARTED, "resume=run"]


@pytest.mark.parametrize("name", ["last", "auto", '"last"'])
def test_directory_is_one_whatever_its_name_is(name: str) -> None:
    """``resume=last`` would be another run."""
    write_run(None, [])
    plain = name.strip('"')
    Path("run").rename(plain)
    assert resolve_auto(["resume=auto", f"hydra.run.dir={name}"])[-1] == f"resume=./{plain}"


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_run_that_has_ended_answers_with_its_result(status: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(status, ["seed=2", "model=blobs_mlp", "data=blobs", "resume=run"])
    with pytest.raises(SystemExit) as ended:
        resolve_auto(COMMAND)
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"the run in run is {status}: test acc 75.00 %  2.0 s\n"
    longer = [*COMMAND, "trainer.max_epochs=9"]
    assert resolve_auto(longer)[-1] == "resume=run"


@pytest.mark.parametrize(
    ("status", "more", "config", "code"),
    [
        ("diverged", {"exit_code": 0}, {}, 0),
        ("diverged", {"exit_code": 4}, {"check": True}, 4),
        ("finished", {"exit_code": 3, "as_expected": False}, {"check": True}, 3),
        ("diverged", {"exit_code": "4; touch pwned"}, {}, 0),
        ("finished", {"as_expected": True}, {"check": True}, 0),
        ("finished", {"as_expected": False}, {"check": True}, 3),
        ("finished", {}, {"check": True}, 3),  # nothing was compared
        ("finished", {"as_expected": False}, {"check": False}, 0),
    ],
)
def test_run_that_has_ended_answers_with_its_exit_code(status: str, more: dict, config: dict, code: int) -> None:
    write_run(status, STARTED, **more)
    Path("run/config.yaml").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        resolve_auto(COMMAND)
    assert ended.value.code == code


@pytest.mark.parametrize(
    "more", [{"seconds": None}, {"seconds": {}}, {"monitor": ["x"]}, {"seconds": {"total": 10**400}}]
)
def test_strange_result_is_refused_with_one_line(more: dict) -> None:
    write_run("finished", STARTED, **more)
    with pytest.raises(ValueError, match=r"run/result.json is not the result of a run: "):
        resolve_auto(COMMAND)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=auto"], "resume=auto needs hydra.run.dir=…"),
        (["-m", *COMMAND], "resume=auto is for a run; sweep_resume= resumes a sweep"),
    ],
)
def test_auto_without_a_directory_or_in_a_sweep_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_auto(arguments)


@pytest.mark.slow
def test_the_same_command_again_ends_with_the_bits_of_an_undisturbed_run(
    shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    short = ["trainer.max_epochs=6", "checkpoint.every_n_steps=100", "model.steps_per_batch=100", "threads=1"]
    short += ["callbacks.pictures=null", "logger=none", "data.batch_size=20", *COMMAND]
    command = [sys.executable, str(PROJECT / "train.py"), *short]
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    for _ in range(2):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        limit = time.monotonic() + 120
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert shell(*short).returncode == 0
    again = shell(*short)
    assert again.stdout.startswith("the run in run is finished: ")
    assert shell(*(text for text in short if text not in COMMAND[-2:]), "hydra.run.dir=whole").returncode == 0
    assert not differences(final_state(tmp_path / "whole"), final_state(tmp_path / "run"))
