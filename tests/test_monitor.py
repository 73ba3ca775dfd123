"""One monitor and mode: what is best for checkpoints, early stopping, sweeps, searches and pruning."""

import csv
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from optuna.trial import TrialState

import train
from cli.compose import compose
from cli.errors import format_error
from lit_models import Classifier
from runs.format import format_metric
from runs.monitor import Monitor, Monitors, known_mode, metric_name
from sweeps.objective import search_objective
from sweeps.study import open_study
from sweeps.summary import Summary

POINTS = ("model=blobs_mlp", "data=blobs", "data.val_size=60", "data.batch_size=35", "model.steps_per_batch=1")
POINTS += ("trainer.accelerator=cpu", "callbacks.pictures=null", "logger=none", "threads=1")
LIGHTNINGS = "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"
F1 = "+metrics.f1._target_=torchmetrics.classification.MulticlassF1Score"


def run(*overrides: str, folder: str = "run") -> dict:
    Path(folder).mkdir(exist_ok=True)
    return train.train_config(compose(*POINTS, *overrides), Path(folder))


def column(name: str, folder: str = "run") -> list[float]:
    with open(f"{folder}/metrics.csv", newline="") as lines:
        return [float(row[name]) for row in csv.DictReader(lines)]


@pytest.mark.parametrize(
    ("stage", "logged", "name"),
    [
        ("val", "val/loss", "val/loss"),
        ("val", "val_loss", "val/loss"),
        ("val", "valid_loss", "val/loss"),
        ("val", "loss", "val/loss"),
        ("val", "value", "val/value"),
        ("val", "train_loss", "val/train_loss"),
        ("train", "train_g_loss", "train/g_loss"),
        ("test", "test/acc/cat", "test/acc/cat"),
        ("test", "test_", "test/test_"),
    ],
)
def test_metric_names_are_stage_and_name(stage: str, logged: str, name: str) -> None:
    assert metric_name(stage, logged) == name


class Own:
    monitor, mode = "val/fid", "min"


def test_config_precedes_model_precedes_default_monitor() -> None:
    measured = ["train/loss", "val/loss", "val/acc", "val/fid", "val/f1"]
    assert Monitors(None, None).resolve(measured) == Monitor("val/acc", "max")
    assert Monitors(None, None).resolve(measured[:2]) == Monitor("val/loss", "min")
    assert Monitors(None, None).resolve(measured[:1]) == Monitor("train/loss", "min")
    assert Monitors(None, None).resolve(["val/f1"]) is None
    assert Monitors(None, None, Own()).resolve(measured) == Monitor("val/fid", "min")
    assert Monitors(None, None, Own()).resolve(measured[:3]) == Monitor("val/acc", "max")  # it is not measured
    assert Monitors("val/f1", "max", Own()).resolve(measured) == Monitor("val/f1", "max")
    assert Monitors("val/f1", "max").resolve(measured[:3]) is None
    assert Monitors("val_loss", None).resolve(measured) == Monitor("val/loss", "min")
    assert Monitors("loss", "max").resolve(measured[:1]) == Monitor("train/loss", "max")
    assert Monitors("val/fid", None, Own()).resolve(measured) == Monitor("val/fid", "min")


@pytest.mark.parametrize(
    ("name", "mode"),
    [("val/acc", "max"), ("val/g_loss", "min"), ("val_top5_acc", "max"), ("val/rmse", "min"), ("val/score", None)],
)
def test_mode_follows_from_known_metric_names(name: str, mode: str | None) -> None:
    assert known_mode(name, {}) == mode
    assert known_mode(name, {name.replace("val_", "val/").partition("/")[2]: "max"}) == "max"  # the metric says it


def test_number_is_better_than_none_and_nan_is_not() -> None:
    for mode, good, bad in (("max", 2.0, 1.0), ("min", 1.0, 2.0)):
        monitor = Monitor("val/x", mode)
        assert monitor.is_better(bad, None)
        assert monitor.is_better(good, bad)
        assert not monitor.is_better(bad, good)
        assert not monitor.is_better(good, good)
        assert not monitor.is_better(math.nan, bad)
        assert monitor.is_better(bad, math.nan)


def test_best_checkpoint_is_that_of_the_monitored_metric() -> None:
    """By accuracy in per cent and by a loss that is to be high: two different epochs."""
    high = run("trainer.max_epochs=4", "monitor=train/loss", "mode=max", folder="high")
    low = run("trainer.max_epochs=4", "monitor=train_loss", folder="low")
    losses = column("train/loss", "low")
    assert losses == column("train/loss", "high")
    assert max(losses) == losses[0] and min(losses) == losses[3]
    assert [torch.load(f"{name}/checkpoints/best.ckpt")["epoch"] for name in ("high", "low")] == [0, 3]
    assert (high["monitor"], high["mode"], low["monitor"], low["mode"]) == ("train/loss", "max", "train/loss", "min")


def test_f1_of_torchmetrics_chooses_the_best_epoch() -> None:
    result = run("trainer.max_epochs=6", "optimizer.lr=0.1", "monitor=val/f1", F1)
    scores = column("val/f1")
    assert (result["monitor"], result["mode"]) == ("val/f1", "max")
    assert scores[0] < max(scores) == scores[-1]
    assert torch.load("run/checkpoints/best.ckpt")["epoch"] == scores.index(max(scores)) < 5


def test_resumed_run_keeps_its_best_unless_the_monitor_changes() -> None:
    run("trainer.max_epochs=2")
    state = torch.load("run/checkpoints/last.ckpt")["callbacks"]["Checkpoints"]
    assert state == {"best": max(column("val/acc")), "by": ["val/acc", "max"]}
    run("resume=run", "trainer.max_epochs=3", "monitor=train/loss")
    assert torch.load("run/checkpoints/best.ckpt")["epoch"] == 2  # the first that was chosen by it
    state = torch.load("run/checkpoints/last.ckpt")["callbacks"]["Checkpoints"]
    assert state == {"best": pytest.approx(column("train/loss")[2]), "by": ["train/loss", "min"]}
    assert state["best"] > max(column("val/acc")[:2])  # a number that could not beat the accuracies before


def test_validation_before_the_training_chooses_no_epoch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(
        "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=2", "validate_before_training=true", "monitor=val/loss"
    )
    assert column("epoch") == [0, 1]
    assert "there is no best.ckpt: no epoch of the training was validated" in caplog.messages


def test_no_epoch_before_the_first_validation_is_best() -> None:
    run("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    assert torch.load("run/checkpoints/best.ckpt")["epoch"] == 1


@pytest.mark.parametrize(("mode", "epochs"), [("max", 3), ("min", 8)])
def test_early_stopping_follows_the_monitor(mode: str, epochs: int) -> None:
    """The loss falls all the time: a run that wants it high stops after two epochs without a higher one."""
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.max_epochs=8")
    assert run(*stop, "monitor=train/loss", f"mode={mode}")["epochs"] == epochs


def test_early_stopping_keeps_its_patience_after_resume() -> None:
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.patience=4", "monitor=train/loss", "mode=max")
    assert run(*stop, "trainer.max_epochs=3")["epochs"] == 3
    assert run("resume=run", "trainer.max_epochs=20")["epochs"] == 5


def test_early_stopping_may_follow_another_metric() -> None:
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=train/loss", "trainer.max_epochs=8")
    result = run(*stop, "+callbacks.early_stopping.mode=max", "callbacks.early_stopping.patience=2")
    assert (result["epochs"], result["monitor"]) == (3, "val/acc")
    with pytest.raises(ValueError, match=r"monitor=val/los is not measured \(did you mean val/loss\?\)"):
        run("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/los", folder="wrong")


@pytest.mark.parametrize("monitor", ["val/acc", "val/f1"])
def test_early_stopping_knows_the_mode_of_its_own_metric(monitor: str, caplog: pytest.LogCaptureFixture) -> None:
    """Both rise here. With the mode of a loss the run would stop after two epochs without a lower one."""
    caplog.set_level(logging.INFO)
    stop = ("callbacks=early_stopping", f"callbacks.early_stopping.monitor={monitor}", "metrics=classes")
    rises = ("optimizer.lr=0.05", "scheduler=none", "callbacks.early_stopping.patience=2", "trainer.max_epochs=4")
    assert run(*stop, *rises)["epochs"] == 4
    scores = column(monitor)
    assert scores[3] > max(scores[0], scores[1])
    assert "stopped early" not in caplog.text


@pytest.mark.parametrize(
    "stop", [("callbacks=early_stopping", "callbacks.early_stopping."), (LIGHTNINGS, "+callbacks.stop.")]
)
def test_early_stopping_says_that_it_stopped(stop: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    chosen, key = stop
    settings = (f"{key}monitor=train/loss", f"{key}mode=max", f"{key}patience=2")  # the loss falls
    assert run(chosen, *settings, "optimizer.lr=0.05", "trainer.max_epochs=8")["epochs"] == 3
    (line,) = [one for one in caplog.messages if one.startswith("stopped early")]
    first = column("train/loss")[0]
    best = format_metric("train/loss", first)
    assert line == f"stopped early, after epoch 3: train/loss was not better than {best} for 2 measurements"


def test_suggestion_is_a_metric_of_the_validation_and_not_one_of_several_losses() -> None:
    losses = ["train/d_loss", "train/g_loss", "val/d_loss"]
    assert "monitor=val/frechet mode=min" in Monitors(None, None).explain([*losses, "val/class_entropy", "val/frechet"])
    assert "monitor=val/d_loss mode=min" in Monitors(None, None).explain(losses)


# --- what is wrong ------------------------------------------------------------------------------------------------

WRONG = {
    "mode=up monitor=val/loss": "mode=up must be max (higher is better) or min",
    "mode=max": "mode=max goes with monitor=, the metric that it is about",
    "monitor=5": "monitor=5 must be the name of a metric, such as val/loss",
    "monitor=test/acc": "monitor=test/acc: what is chosen by the test set cannot be tested on it",
    "monitor=test_acc": "monitor=test_acc: what is chosen by the test set cannot be tested on it",
    "monitor=val/score": "monitor=val/score: is a higher or a lower one better? mode=max or mode=min says it, and",
    "monitor=f1 mode=max": "monitor=f1 is not measured (metrics=classes measures it); there are train/acc, train/loss,",
    "monitor=val/frechet": "monitor=val/frechet is not measured (callbacks=judge measures it); there are train/acc, tr",
    "monitor=val/f1/a mode=max": "monitor=val/f1/a is not measured",
    "monitor=val/rmse data=doubles data.val_size=1 model=line metrics=none optimizer=by_hand scheduler=none": (
        "monitor=val/rmse is not measured (metrics=numbers measures it); there are train/loss, val/loss"
    ),
    "metrics=classes model=autoencoder": "metrics.f1 compares classes, and Autoencoder predicts none: it reconstructs",
    "callbacks=early_stopping callbacks.early_stopping.monitor=val/lss": (
        "callbacks.early_stopping.monitor=val/lss is not measured (did you mean val/loss?); there are train/acc, train"
    ),
    "callbacks=early_stopping callbacks.early_stopping.monitor=val/loss data.val_size=0": (
        "callbacks.early_stopping.monitor=val/loss: this run has no validation; data.val_size= holds"
    ),
    "callbacks=early_stopping callbacks.early_stopping.mode=max": (
        "callbacks.early_stopping.mode=max goes with monitor=, the metric that it is about"
    ),
    f"{LIGHTNINGS} +callbacks.stop.monitor=val/loss data.val_size=0": "monitor=val/loss: this run has no validation",
    f"{LIGHTNINGS} +callbacks.stop.monitor=val/lss": "monitor=val/lss is not measured (did you mean val/loss?)",
    "monitor=val/lss mode=min": "monitor=val/lss is not measured (did you mean val/loss?); there are train/acc, train",
    "monitor=train/f1 mode=max": "monitor=train/f1 is not measured (did you mean train/",
    "monitor=val/loss data.val_size=0": "monitor=val/loss: this run has no validation; data.val_size= holds",
    "monitor=val/f2 +metrics.f1._target_=torchmetrics.classification.MulticlassF1Score mode=max": (
        "monitor=val/f2 is not measured (did you mean val/f1?)"
    ),
}
# Known from the command line alone.
AT_ONCE = [words for words in WRONG if words.startswith(("mode", "monitor=5", "monitor=test"))]


@pytest.mark.parametrize("words", WRONG)
def test_wrong_monitor_gives_one_line(words: str) -> None:
    with pytest.raises(ValueError) as error:
        run("trainer.max_epochs=2", *words.split())
    line = format_error(error.value)
    assert line.startswith(WRONG[words])
    assert "HYDRA_FULL_ERROR" not in line  # it needs no place in the code
    assert [*Path("run").iterdir()] == []


class OwnMetric(Classifier):
    """Does not say what it measures, as its base class does of itself."""

    def compute_metrics(self, predictions: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().compute_metrics(predictions, targets) | {"margin": predictions.sum()}


def test_what_a_class_does_not_say_is_refused_after_the_first_validation() -> None:
    own = f"model._target_={__name__}.OwnMetric"
    assert run(own, "trainer.max_epochs=1", "monitor=margin", "mode=max")["monitor"] == "val/margin"
    with pytest.raises(ValueError) as error:
        run(own, "trainer.max_epochs=1", "monitor=val/margins", "mode=max", folder="other")
    said = "monitor=val/margins is not measured (did you mean val/margin?); there are val/acc, val/loss, val/margin"
    assert str(error.value) == said


class Logging(pl.Callback):
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("val/own", 1.0)


def test_a_callback_that_does_not_say_what_it_logs_may_log_the_monitor() -> None:
    own = f"+callbacks.own._target_={__name__}.Logging"
    assert run(own, "trainer.max_epochs=1", "monitor=val/own", "mode=max")["monitor"] == "val/own"


@pytest.mark.parametrize("words", AT_ONCE)
def test_wrong_monitor_is_found_before_torch_is_loaded(words: str, shell: Callable, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is loaded')")
    answer = shell(*words.split(), PYTHONPATH=str(tmp_path))
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: {WRONG[words]}")
    assert len(answer.stderr.splitlines()) == 1


# --- sweeps -------------------------------------------------------------------------------------------------------


def job(number: int, metrics: dict[str, float], monitor: object, mode: object = None) -> None:
    folder = Path("sweep") / str(number)
    folder.mkdir(parents=True)
    overrides = [f"optimizer.lr={number}"]
    result = {"command": f"python train.py {overrides[0]}", "overrides": overrides, "metrics": metrics}
    result |= {"status": "finished", "monitor": monitor, "mode": mode}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 0)])
def test_sweep_is_ranked_by_the_monitor_of_its_runs(mode: str, best: int) -> None:
    for number in range(3):
        job(number, {"val/fid": float(number), "val/acc": 1 - number / 10}, "val/fid", mode)
    summary = Summary(Path("sweep"))
    assert (summary.monitor, summary.mode) == ("val/fid", mode)
    assert summary.best().settings == {"optimizer.lr": str(best)}
    summary.write()
    assert "Ranked by val/fid, the " in Path("sweep/summary.md").read_text()


def test_jobs_of_earlier_versions_are_ranked_as_before() -> None:
    job(0, {"val/loss": 0.2, "train/loss": 0.1}, None)
    job(1, {"val/loss": 0.1, "train/loss": 0.2}, None)
    assert Summary(Path("sweep")).best().settings == {"optimizer.lr": "1"}


@pytest.mark.parametrize(("monitor", "mode"), [(7, "max"), ("val/fid", "up"), ("val/fid", None), (["val/fid"], "max")])
def test_invalid_stored_monitor_makes_a_job_unreadable(monitor: object, mode: object) -> None:
    job(0, {"val/fid": 1.0}, "val/fid", "min")
    job(1, {"val/fid": 0.5}, monitor, mode)
    assert [job.status for job in Summary(Path("sweep")).jobs] == ["finished", "unreadable"]


@pytest.mark.parametrize(
    ("overrides", "monitor"),
    [
        ((), Monitor("val/acc", "max")),
        (("model=mlp_regression",), Monitor("val/loss", "min")),
        (("monitor=val/f1", F1), Monitor("val/f1", "max")),
        (("monitor=val/x", "mode=min"), Monitor("val/x", "min")),
        (("model._target_=tests.test_monitor.Own",), Monitor("val/fid", "min")),
    ],
)
def test_search_optimizes_the_monitor(overrides: tuple[str, ...], monitor: Monitor) -> None:
    objective = search_objective(compose(*overrides))
    assert objective.resolve([monitor.name]) == monitor
    assert len(objective.candidates) == 1


SWEEP = ("-m", *POINTS, "trainer.max_epochs=2", "monitor=val/f1", F1)


@pytest.mark.slow
def test_sweep_is_ranked_by_f1(shell: Callable, tmp_path: Path) -> None:
    answer = shell(*SWEEP, "optimizer.lr=0,0.05")
    assert answer.returncode == 0, answer.stderr
    summary = Summary(tmp_path / "outputs/last_sweep")
    assert (summary.monitor, summary.mode) == ("val/f1", "max")
    low, high = sorted(job.metrics["val/f1"] for job in summary.jobs)
    assert low < high == summary.best().metrics["val/f1"]


@pytest.mark.slow
def test_search_optimizes_f1(shell: Callable, tmp_path: Path) -> None:
    search = ("sweep=mnist_lr", "hydra.sweeper.n_trials=6", "hydra.sweeper.startup_trials=2")
    answer = shell(*SWEEP, *search, "callbacks.pruning.startup_trials=1")
    assert answer.returncode == 0, answer.stderr
    study, summary = open_study(tmp_path / "outputs/last_sweep"), Summary(tmp_path / "outputs/last_sweep")
    assert study.direction.name == "MAXIMIZE"
    values = {trial.number: trial.value for trial in study.trials if trial.state == TrialState.COMPLETE}
    ended = {int(job.run_dir.name.partition("-")[0]): job.metrics["val/f1"] for job in summary.jobs if job.ended}
    assert values == ended and ended
    # What the pruner sees is the same metric.
    assert all(trial.intermediate_values.get(2, trial.value) == trial.value for trial in study.trials if trial.value)
    assert summary.best().metrics["val/f1"] == study.best_value
    other = shell(*SWEEP, *search, "mode=min", "sweep_resume=last")
    assert other.returncode == 1
    assert other.stderr.startswith("error: the search in ") and "has begun to maximize its metric" in other.stderr
