"""The commands from Python: the results, the errors, and a session that is given back as it was."""

import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import train as train_module
from callbacks.metrics_history import MetricsHistory
from callbacks.plots import Plots
from cli.compose import compose
from cli.session import CommandError
from evaluate import evaluate
from predict import predict
from runs.checkpoint import load_checkpoint
from runs.run import Rows
from tests.kill_and_resume import differences
from train import train

POINTS = ("model=blobs_mlp", "data=blobs", "data.val_size=40", "logger=none", "trainer.max_epochs=2")
LOGGERS = (None, "py.warnings", "lightning", "lightning.pytorch", "lightning.fabric", "callbacks.metrics_history")
TRAINING_FIGURES = Plots._training_figures


def session() -> dict[str, Any]:
    """Return what belongs to the caller."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    return {
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "threads": torch.get_num_threads(),
        "torch": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.is_grad_enabled(),
        ),
        "environment": dict(os.environ),
        "arguments": list(sys.argv),
        "directory": Path.cwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "loggers": [(list(one.handlers), one.level, one.propagate) for one in loggers],
        "warnings": (warnings.showwarning, list(warnings.filters)),
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
        "pyplot": "matplotlib.pyplot" in sys.modules,
    }


def test_a_run_is_returned_as_plain_objects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Plots, "_training_figures", TRAINING_FIGURES)
    run = train(*POINTS, "hydra.run.dir=my run")
    assert run.directory == Path("my run").resolve()
    assert run.result == json.loads(Path("my run/result.json").read_text())
    assert [row["epoch"] for row in run.metrics] == [1, 2] and type(run.metrics[0]["val/loss"]) is float
    assert {"accuracy", "loss"} <= set(run.figures) and run.figures["loss"].size == (704, 440)
    assert run.metrics._repr_html_().count("<tr>") == 3
    assert "epoch 2/2" in capsys.readouterr().out
    longer = train("resume=last", "trainer.max_epochs=3")
    assert longer.directory == run.directory and len(longer.metrics) == 3
    measured = evaluate("run=my run", "split=val")
    assert measured["val/loss"] == longer.result["metrics"]["val/loss"]
    predicted = predict("run=last", "split=test", "limit=3")
    assert [row["truth"] for row in predicted.rows] == ["blob at (2, 2)"] * 3 and predicted.figure is None
    assert "test[2]" in capsys.readouterr().out
    elsewhere = predict("run=last", "split=test", f"output={Path('elsewhere').resolve()}")
    assert elsewhere.table == Path("elsewhere/predictions.csv").resolve()


@pytest.mark.slow
def test_composed_resume_leaves_nothing_to_the_next_command() -> None:
    train(*POINTS, "hydra.run.dir=run")
    compose("resume=run")
    assert evaluate("run=run", "split=val")["val/loss"] > 0


@pytest.mark.slow
def test_predictions_that_are_not_kept_are_not_those_of_an_earlier_command(monkeypatch: pytest.MonkeyPatch) -> None:
    train(*POINTS, "hydra.run.dir=run")
    assert len(predict("run=run", "split=test", "limit=2").rows) == 2
    monkeypatch.setattr("predict.is_writable", lambda _: False)
    with pytest.raises(CommandError, match="run cannot be written; output= names another directory"):
        predict("run=run", "split=test", "limit=1")


def test_rows_show_names_as_text() -> None:
    shown = Rows([{"<b>": 1}, {"a": 0.123456789, "<b>": "<i>"}])._repr_html_()
    assert "&lt;b&gt;" in shown and "<td>&lt;i&gt;</td><td>0.123457</td>" in shown and "<td>1</td><td></td>" in shown


@pytest.mark.slow
def test_bits_are_those_of_the_command_line(shell, tmp_path: Path) -> None:
    torch.rand(3)
    random.seed(7)
    run = train(*POINTS, "threads=1", "hydra.run.dir=here")
    assert shell(*POINTS, "threads=1", "hydra.run.dir=there").returncode == 0
    here, there = (load_checkpoint(Path(name, "checkpoints", "last.ckpt")) for name in ("here", "there"))
    assert all(torch.equal(here["state_dict"][name], there["state_dict"][name]) for name in there["state_dict"])
    assert differences(run.result["metrics"], json.loads(Path("there/result.json").read_text())["metrics"]) == []


@pytest.mark.slow
def test_session_is_given_back_after_a_run_and_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger().addHandler(mine := logging.NullHandler())
    before = session()
    check = train_module.check_run
    try:
        for _ in range(2):
            train(*POINTS, "trainer.deterministic=true")
            assert session() == before
        for wrong in (["optimizer.lrr=1"], ["data=csv", "data.path=no.csv", "data.target=a"], ["trainer.max_epochs=x"]):
            with pytest.raises(CommandError):
                train(*POINTS, *wrong)
            assert session() == before

        def fail(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(train_module, "check_run", fail)
        with pytest.raises(KeyboardInterrupt):
            train(*POINTS)
        assert session() == before
        monkeypatch.setattr(train_module, "check_run", check)
        train(*POINTS)
        assert len(list(Path("outputs/blobs_mlp_on_blobs").iterdir())) == 3  # nothing is left of the others
    finally:
        logging.getLogger().removeHandler(mine)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["experiment=blob"], "there is no experiment=blob (did you mean blobs?)"),
        (["optimizer.lrr=1"], "there is no optimizer.lrr (did you mean optimizer.lr?)"),
        (["trainer.max_epochs=x"], "trainer.max_epochs=x must be a whole number"),
        (["resume=nowhere"], "nowhere is neither a run directory nor a checkpoint"),
        (["optimizer.lr=0.1,1"], "optimizer.lr=0.1,1 is more than one value"),
        (["hydra.mode=MULTIRUN"], "hydra.mode=MULTIRUN: a sweep is for the command line"),
        (["experiment=line_scan"], "experiment=line_scan: a sweep is for the command line"),
        (["sweep=mnist_lr"], "sweep=mnist_lr: a sweep is for the command line"),
        (["hydra.job.name=a/b"], "hydra.job.name=a/b is refused: it names the log, train.log"),
        (["hydra.run.dir="], "hydra.run.dir= names no directory; hydra.run.dir=. is this one"),
        (["hydra.output_subdir=x"], "hydra.output_subdir=x is refused"),
        (["-m"], "-m is an option of the command line"),
        ([3], "3 is not an override"),
    ],
)
def test_error_has_the_line_of_the_command_line_and_leaves_nothing(overrides: list[Any], line: str) -> None:
    with pytest.raises(CommandError) as raised:
        train(*overrides)
    assert str(raised.value).startswith(line) and "\n" not in str(raised.value)
    assert raised.value.exit_code == 1
    assert list(Path().iterdir()) == []


def test_refused_command_adds_no_line_to_the_log_of_the_run_that_is_there(caplog: pytest.LogCaptureFixture) -> None:
    """Filelock logs, in detail with hydra.verbose=true, that it has not got the lock."""
    Path("run").mkdir()
    (log := Path("run/train.log")).write_text(line := "2026-01-01 00:00:00,000 INFO train: epoch 1\n")
    with caplog.at_level(logging.DEBUG, "filelock"):
        with FileLock("run/.lock"), pytest.raises(CommandError, match="another process is training in"):
            train(*POINTS, "hydra.run.dir=run")
        assert log.read_text() == line
        train(*POINTS, "hydra.run.dir=run")
    assert " DEBUG filelock: " in log.read_text() and log.read_text().startswith(line)


@pytest.mark.slow
def test_used_directory_is_refused_and_last_is_the_newest_run() -> None:
    first = train(*POINTS, "hydra.run.dir=first")
    with pytest.raises(CommandError, match="which this run would overwrite"):
        train(*POINTS, "hydra.run.dir=first")
    train(*POINTS, "seed=2", "hydra.run.dir=second")
    assert evaluate("run=last") != evaluate("run=first")
    assert first.result["status"] == "finished"


def test_missed_expectation_has_its_exit_code() -> None:
    with pytest.raises(CommandError, match="was not compared with what it expects") as raised:
        train(*POINTS, "check=true", "+expect={test/acc:{at_least:1.1}}", "hydra.run.dir=run")
    assert raised.value.exit_code == json.loads(Path("run/result.json").read_text())["exit_code"] == 3


def test_ended_run_is_returned_by_resume_auto() -> None:
    command = (*POINTS, "hydra.run.dir=run", "resume=auto")
    first, second = train(*command), train(*command)
    assert second.result == first.result and len(second.metrics) == 2


@pytest.mark.parametrize("table", [b"epoch\n1,2,3\n", b"epoch\n\xff\n", b"epoch\n" + b"1" * 200_000 + b"\n"])
def test_damaged_metrics_of_an_ended_run_are_one_line(table: bytes) -> None:
    command = (*POINTS, "hydra.run.dir=run", "resume=auto")
    train(*command)
    Path("run/metrics.csv").write_bytes(table)
    with pytest.raises(CommandError, match=r"^run/metrics.csv is damaged: .*$"):
        train(*command)


@pytest.mark.slow
def test_interrupted_cell_says_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = MetricsHistory.on_train_batch_end
    epochs: list[int] = []

    def interrupt(self: Any, trainer: Any, *more: Any) -> None:
        ended(self, trainer, *more)
        if trainer.current_epoch == 1 and not epochs:
            epochs.append(1)
            signal.raise_signal(signal.SIGINT)

    whole = train(*POINTS, "hydra.run.dir=whole")
    before = session()
    monkeypatch.setattr(MetricsHistory, "on_train_batch_end", interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=r"interrupted by SIGINT; saved in .*; train\('resume=.*run'\) resumes it"
    ):
        train(*POINTS, "hydra.run.dir=run")
    assert session() == before
    resumed = train("resume=run")
    rows = [
        [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics]
        for run in (whole, resumed)
    ]
    assert rows[0] == rows[1]


def test_one_training_at_a_time_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    check = train_module.check_run

    def train_too(*arguments: Any) -> None:
        with pytest.raises(CommandError, match="another command runs in this process") as raised:
            train(*POINTS)
        found.append(raised.value)
        check(*arguments)

    monkeypatch.setattr(train_module, "check_run", train_too)
    thread = threading.Thread(target=lambda: found.append(train(*POINTS)))
    thread.start()
    thread.join()
    assert found[1].result["status"] == "finished"


def test_setting_without_effect_is_refused() -> None:
    train(*POINTS, "hydra.run.dir=run")
    Path("rows.csv").write_text("1,2\n")
    with pytest.raises(CommandError, match="limit= has an effect with split=test only"):
        predict("run=run", "csv=rows.csv", "limit=3")
    assert len(predict("run=run", "split=test", "limit=3").rows) == 3
    with pytest.raises(CommandError, match="epsilons= has an effect with attack=fgsm only"):
        evaluate("run=run", "epsilons=[7]")


def test_compose_takes_names_of_files_as_they_are_typed() -> None:
    cfg = compose("data=csv", "data.path=rows (1).csv", "data.target=price")
    assert cfg.data.path == "rows (1).csv"
