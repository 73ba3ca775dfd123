"""A run that one may read and not write answers all the same."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, run

# Root may write everywhere, unless it gives up the capability.
UNPRIVILEGED = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override")
AS_ROOT = sys.platform != "win32" and os.geteuid() == 0
pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or (AS_ROOT and not shutil.which("setpriv")), reason="the user may write everywhere"
)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return a function that runs a command beside a run in the directory ``run``, which cannot be written."""
    run("run", "data=blobs", "model=blobs_mlp", "model.steps_per_batch=2", "trainer.max_epochs=1", "logger=none")
    folders = [Path("run"), Path("run/checkpoints"), Path("run/pictures")]
    before = sorted(Path("run").rglob("*"))

    def command(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        words = [*(UNPRIVILEGED if AS_ROOT else ()), sys.executable, str(PROJECT / script), "run=run", *arguments]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

    for folder in folders:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o555)
    yield command
    for folder in folders:
        folder.chmod(0o755)
    assert sorted(Path("run").rglob("*")) in (before, sorted([*before, Path("run/pictures")]))


@pytest.mark.slow
def test_evaluation_of_a_run_that_cannot_be_written(ask: Callable) -> None:
    answer = ask("evaluate.py")
    assert answer.returncode == 0, answer.stderr
    assert "test/acc" in answer.stdout
    assert answer.stdout.endswith("run/evaluations cannot be written, so the result is not kept\n")
    assert answer.stderr == "note: run/evaluate.log cannot be written, so no log is kept\n"


@pytest.mark.slow
def test_predictions_of_a_run_that_cannot_be_written(ask: Callable, tmp_path: Path) -> None:
    answer = ask("predict.py", "split=test")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("  test[0]  ")
    last = "run/predictions cannot be written, so the predictions are not kept; output= names another directory"
    assert answer.stdout.splitlines()[-1] == last
    assert answer.stderr == "note: run/predict.log cannot be written, so no log is kept\n"
    answer = ask("predict.py", "split=test", f"output={tmp_path / 'mine'}")
    assert answer.returncode == 0, answer.stderr
    assert os.listdir("mine") == ["predictions.csv"]


@pytest.mark.slow
def test_export_of_a_run_that_cannot_be_written(ask: Callable) -> None:
    answer = ask("export.py", "output=net.pt")
    assert (answer.returncode, answer.stdout[:10]) == (0, "written to")
    assert answer.stderr == "note: run/export.log cannot be written, so no log is kept\n"
    answer = ask("export.py", "output=run/net.pt")
    assert answer.returncode == 1
    assert "error: [Errno 13] Permission denied: 'run/net.pt'" in answer.stderr
