"""logger=csv, mlflow, wandb, and several at once; debug=lr."""

import sqlite3
from pathlib import Path

import pytest

from cli.compose import compose, run_title
from tests.conftest import run

POINTS = ("model=blobs_mlp", "data=blobs", "trainer.accelerator=cpu", "model.steps_per_batch=1", "threads=1")


@pytest.mark.slow
def test_resumed_run_continues_its_mlflow_run_and_its_title(shell) -> None:
    given = ("hydra.run.dir=run", *POINTS, "logger=[tensorboard,csv,mlflow]", "tags=[a,b]", "trainer.max_epochs=1")
    assert shell(*given).returncode == 0
    before = Path("run/mlflow.txt").read_text()
    assert shell("resume=run", "trainer.max_epochs=2").returncode == 0
    assert Path("run/mlflow.txt").read_text() == before
    with sqlite3.connect("outputs/mlflow.db") as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        steps = database.execute("SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step").fetchall()
        tags = dict(database.execute("SELECT key, value FROM tags"))
    assert steps == [(1,), (2,)]
    assert (tags["tags"], tags["trainer.max_epochs"]) == ("a, b", "2")
    assert "max_epochs=2" in Path("run/dashboard.txt").read_text()
    assert Path("run/csv/version_1/metrics.csv").is_file()
    assert Path("run/metrics.csv").read_text().startswith("epoch,step,")


def test_mlflow_run_elsewhere_is_not_contacted() -> None:
    run("run", *POINTS, "logger=none", "trainer.max_epochs=1")
    Path("run/mlflow.txt").write_text(f"{'0' * 32}\nhttp://host\n")
    with pytest.raises(Exception, match="an address that is not taken from a run"):
        run("run", "resume=run", "trainer.max_epochs=2", "logger=mlflow")


def test_debug_run_has_no_logger_and_a_list_its_names() -> None:
    assert compose("debug=fast").choices.logger == "none"
    assert compose("logger=[csv,mlflow]").choices.logger == ["csv", "mlflow"]
    assert run_title("a", ["model.net.hidden_sizes=[]"], 1) == "a/hidden_sizes=[] seed=1"


def test_range_test_proposes_a_rate_and_keeps_no_run() -> None:
    assert run("run", *POINTS, "debug=lr")["suggested"] > 0
    assert [str(path) for path in Path("run").rglob("*.*")] == ["run/pictures/learning_rate.png"]
