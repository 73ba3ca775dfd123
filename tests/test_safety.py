"""Runs from untrusted sources: their files cannot run code, and nothing outside of the run is read or written."""

import contextlib
import copy
import dataclasses
import hashlib
import logging
import logging.config
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from PIL import Image

import train
from cli.build import build, load_run, stored_config
from cli.compose import compose
from cli.errors import format_error
from cli.resume import compose_group, merge_resume_config
from cli.resumed_run import stored_choices
from datamodules import sources
from export import _exported_program
from hydra_plugins.optuna_sweeper import OptunaSweeper
from loggers.tensorboard import TensorBoard
from runs.checkpoint import _rebuild, load_checkpoint, read_checkpoint
from runs.files import read_yaml
from runs.migrate import upgrade_checkpoint
from runs.result import read_result
from runs.run import read_image, read_rows
from runs.safety import check_safe
from runs.training_state import check_training_state, forget_files_elsewhere
from sweeps.study import open_study
from tests.conftest import PROJECT, make_paths
from tests.untrusted import SECRET, TINY, edit_checkpoint, relative_paths, resume_config


def string_paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every string in a config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, str):
            yield (*path, key)
        elif isinstance(value, dict | list):
            yield from string_paths(value, (*path, key))


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
        (("trainer",), "~/x"),
        (("model",), None),
        (("data",), 1.5),
        (("metrics",), True),
        (("record",), "every epoch"),
        (("optimizer", "_partial_"), "yes"),
        (("trainer", "_target_"), "lit_models.Classifier"),
        (("trainer", "model_registry"), "user/models"),
        (("trainer", "strategy"), "../../evil"),
        (("trainer", "strategy"), "fsdp"),
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
        (("callbacks", "X"), {"best_model_path": "~/x.ckpt"}, "the state of X holds '~/x.ckpt', a path elsewhere"),
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


# Lightning deletes the stored path of an earlier checkpoint, with all in it, below the directory that is typed.
MODEL_CHECKPOINT = (
    "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint",
    "+callbacks.mine.dirpath=mine",
)


def train_with_model_checkpoint() -> tuple[Path, str]:
    """Return the checkpoint of a run, and the key of its ModelCheckpoint."""
    (run_dir := Path("run")).mkdir()
    train.train_config(compose(*TINY, *MODEL_CHECKPOINT, "trainer.max_epochs=1", "logger=none"), run_dir)
    file = run_dir / "checkpoints/last.ckpt"
    return file, next(name for name in torch.load(file, weights_only=True)["callbacks"] if "ModelCheckpoint" in name)


def test_model_checkpoint_deletes_no_directory_that_an_untrusted_checkpoint_names(tmp_path: Path) -> None:
    file, callback = train_with_model_checkpoint()
    (kept := Path("mine/others/kept.txt")).parent.mkdir()
    kept.touch()
    for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
        edit_checkpoint(file, "callbacks", callback, name, value=str(tmp_path / "mine/others"))
    edit_checkpoint(file, "callbacks", callback, "best_k_models", value={"mine/others": torch.tensor(1.0)})
    train.train_config(compose("resume=run", *MODEL_CHECKPOINT, "trainer.max_epochs=3", "logger=none"), Path("run"))
    assert kept.exists()
    assert len(list(Path("mine").glob("*.ckpt"))) == 2  # that of the first part is kept too


def test_model_checkpoint_deletes_nothing_that_a_checkpoint_among_files_of_the_user_names() -> None:
    file, callback = train_with_model_checkpoint()
    (kept := Path("mine/thesis.ckpt/kept.txt")).parent.mkdir()
    kept.touch()
    shutil.copy(file, "sent.ckpt")
    edit_checkpoint(Path("sent.ckpt"), "callbacks", callback, "best_model_path", value="mine/thesis.ckpt")
    (new := Path("new")).mkdir()
    train.train_config(compose("resume=sent.ckpt", *MODEL_CHECKPOINT, "trainer.max_epochs=3", "logger=none"), new)
    assert kept.exists()


@pytest.mark.parametrize("name", ["~/thesis.ckpt", "checkpoints/thesis.ckpt"])
def test_model_checkpoint_deletes_neither_a_home_nor_a_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the working directory is the run's, "~" may be a directory of it. For fsspec it is a home."""
    file, callback = train_with_model_checkpoint()
    monkeypatch.chdir("run")
    monkeypatch.setenv("HOME", str(tmp_path))
    (kept := Path(name.replace("~", str(tmp_path))) / "kept.txt").parent.mkdir()
    kept.touch()
    checkpoint = torch.load(file.relative_to("run"), weights_only=True)
    checkpoint["callbacks"][callback]["best_model_path"] = name
    forget_files_elsewhere(checkpoint, Path("checkpoints/last.ckpt"))
    assert checkpoint["callbacks"][callback]["best_model_path"] != name
    edit_checkpoint(Path("checkpoints/last.ckpt"), "callbacks", callback, "best_model_path", value=name)
    overrides = (MODEL_CHECKPOINT[0], "+callbacks.mine.dirpath=.", "trainer.max_epochs=3", "logger=none")
    with contextlib.suppress(ValueError):
        train.train_config(compose("resume=.", *overrides), Path())
    assert kept.exists()


def test_model_checkpoint_of_the_run_goes_on_with_its_best() -> None:
    settings = ("+callbacks.mine.monitor=train/loss", "+callbacks.mine.save_top_k=2")
    (run_dir := Path("run")).mkdir()
    mine = (MODEL_CHECKPOINT[0], "+callbacks.mine.dirpath=run/mine", *settings)
    train.train_config(compose(*TINY, *mine, "trainer.max_epochs=2", "logger=none"), run_dir)
    train.train_config(compose("resume=run", *mine, "trainer.max_epochs=4", "logger=none"), run_dir)
    assert len(list(run_dir.glob("mine/*.ckpt"))) == 2


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


@pytest.mark.slow
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


PART = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {"_target_": "torch.nn.ModuleDict", "modules": {'a"),exec("1"),getattr(self,"b': PART}},
        {"_target_": "torch.nn.ModuleDict", "modules": [["a", PART], ['a"),exec("1"),getattr(self,"b', PART]]},
        {"_target_": "torch.nn.ReLU", "inplace": {"_target_": "torch.nn.ModuleDict", "modules": [["a'b", PART]]}},
        {"_target_": "torch.nn.ModuleList", "modules": [{"_target_": "torch.nn.ModuleDict", "modules": {"a(b": PART}}]},
    ],
)
def test_name_of_a_part_that_an_exported_program_would_run_is_refused(settings: Any, untrusted: Path) -> None:
    """torch.export writes the names of parts into code, as they are."""
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", "model", "loss", value=settings)
    with pytest.raises(ValueError, match=r"the model has a part .*: a name has letters, digits, _ and -"):
        load_run("outputs/untrusted", "last")
    with pytest.raises(ValueError, match=r"the model has a part .*: a name has letters, digits, _ and -"):
        build(resume_config("trainer.max_epochs=2"))


def test_parameter_dict_which_sets_any_attribute_of_itself_is_refused(untrusted: Path) -> None:
    """The names of parts in its ``_buffers`` are seen by none of torch's lists of names."""
    parts = {"_target_": "torch.nn.ParameterDict", "parameters": {"_buffers": {"encoder": PART}}}
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", "model", "loss", value=parts)
    with pytest.raises(ValueError, match=r"torch\.nn\.ParameterDict is not taken from a checkpoint"):
        load_run("outputs/untrusted", "last")


def test_names_are_checked_of_the_part_that_is_exported(untrusted: Path) -> None:
    _, datamodule, model = load_run("outputs/untrusted", "last")
    linear = torch.nn.Linear(1, 1)
    parts = torch.nn.ModuleDict({"a": linear, 'a"),exec("1"),getattr(self,"b': linear})  # the second is a duplicate
    vars(model)["export_module"] = lambda: parts
    with pytest.raises(ValueError, match=r"the model has a part .*: a name has letters, digits, _ and -"):
        _exported_program(datamodule, model)


def test_value_that_holds_itself_is_refused_with_the_name_of_the_file(untrusted: Path) -> None:
    endless: dict[int, Any] = {}
    endless[7] = endless
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "callbacks", "Plots", value=endless)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: its values have no end"):
        resume_config("trainer.max_epochs=2")


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


@pytest.mark.parametrize("left", [".lock", "config.yaml", "multirun.yaml", "run.txt"])
def test_event_files_are_in_the_directory_of_no_other_run(left: str, tmp_path: Path) -> None:
    """The stored title of an untrusted run could take the name of a file that the other one will write."""
    make_paths(Path(), "run/", f"outputs/other/{left}", "outputs/own/config.yaml", "outputs/own/0-1/")
    assert TensorBoard("run", title="other/seed=1").log_dir == "outputs/other seed=1"
    assert os.listdir("outputs/other") == [left]
    assert TensorBoard("outputs/own/0-1", title="own/seed=1").log_dir == "outputs/own/seed=1"
    assert TensorBoard("run", title="new/seed=1").log_dir == "outputs/new/seed=1"


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


@pytest.mark.parametrize(
    ("title", "log_dir"),
    [
        *(("mlflow.db/seed=1", "mlflow.db seed=1"), ("WANDB/seed=1", "WANDB seed=1")),
        *(("mlflow.db-journal", "mlflow.db-journal (run)"), (".mlflow.db.lock/seed=1", ".mlflow.db.lock seed=1 (run)")),
        *(("lab/mlflow.db-journal", "lab mlflow.db-journal (run)"), ("a/result.json", "a result.json (run)")),
        ("lab/runs-journal", "lab runs-journal (run)"),
        *(("7-deadbeef/x", "7-deadbeef x"), ("checkpoints", "checkpoints (run)"), ("a/csv/b", "a csv b")),
        *((".last.77", ".last.77 (run)"), ("v1.2/lr=0.1 seed=1", "v1.2/lr=0.1 seed=1"), ("2024-12/x", "2024-12/x")),
    ],
)
def test_event_files_do_not_take_the_place_of_anything_else(title: str, log_dir: str) -> None:
    """A run, a sweep or a database may be in outputs/, and the title of an untrusted run may be that of its file."""
    Path("run").mkdir()
    assert TensorBoard("run", title=title).log_dir == f"outputs/{log_dir}"


@pytest.mark.parametrize(
    ("file", "is_own"),
    [
        *(("00100/points/tensors.tsv", True), ("00100/points/sprite.png", True), ("00100/points/notes.txt", False)),
        *(("8/config.yaml", False), ("8/a/b/tensors.tsv", False), ("2024", False), ("a/b/tensors.tsv", False)),
    ],
)
def test_event_files_move_with_nothing_of_others(file: str, is_own: bool) -> None:
    Path("run").mkdir()
    folder = TensorBoard("run", title="a").log_dir
    Path(folder, file).parent.mkdir(parents=True, exist_ok=True)
    Path(folder, file).touch()
    assert TensorBoard("run", title="b").log_dir == "outputs/b"
    assert Path("outputs/b" if is_own else "outputs/a", file).exists()
    assert Path("outputs/a").exists() != is_own


@pytest.mark.parametrize("text", [None, "../../theirs"])
def test_event_files_of_another_run_are_left_alone(text: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """The directory was removed in training, and another run may have made it anew."""
    Path("run").mkdir()
    logger = TensorBoard("run", title="a")
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.save()  # else a thread of the writer makes its file while the directory is removed
    shutil.rmtree("outputs/a")
    Path("outputs/a").mkdir()
    if text:
        Path("outputs/a/run.txt").write_text(text)
        Path("outputs/a/events.out.tfevents.1.hparams").touch()
    before = os.listdir("outputs/a")
    logger.finalize("success")
    logger.log_metrics({"loss": 2.0}, step=2)
    logger.log_end({"status": "finished", "metrics": {"loss": 2.0}, "steps": 2}, {})
    assert os.listdir("outputs/a") == before
    assert caplog.messages == [
        "no more event files for TensorBoard: outputs/a was removed, or is another run's; the training continues"
    ]


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


@pytest.mark.parametrize("events", ["mydocs", "outputs/mine/seed=1"])
def test_dashboard_txt_names_no_directory_of_the_users_in_the_run(
    events: str, untrusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user works in the directory of a run that somebody gave him. Files of this name would be replaced."""
    monkeypatch.chdir("outputs/untrusted")
    (parameters := Path(events, "best.hparams")).parent.mkdir(parents=True)
    parameters.touch()
    Path("dashboard.txt").write_text(f"{events}\n")
    assert TensorBoard(".", title="mine/seed=1").log_dir in ("outputs/mine/seed=1", "outputs/mine/seed=1 (2)")
    assert Path("dashboard.txt").read_text().strip() != events


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


@pytest.mark.parametrize("value", ["!!bool maybe", '!!int ""', '!!float ""', "!!timestamp x", "!!binary ä", "[" * 9999])
def test_yaml_with_a_wrong_value_is_not_read(value: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"a: {value}\n", encoding="utf-8")
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
