"""A run may come from anybody: whatever its files hold, nothing is executed, read or written beyond it."""

import copy
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from PIL import Image

import train
from cli.build import load_run
from cli.compose import compose
from cli.errors import format_error
from cli.main import PrintableFormatter
from cli.resume import compose_group, merge_resume_config
from cli.run_dir import job_dir
from hydra_plugins.optuna_sweeper import OptunaSweeper
from loggers.tensorboard import TensorBoard
from runs.checkpoint import find_checkpoint
from runs.files import atomic_write
from runs.format import printable
from runs.result import read_result
from sweeps.study import open_study

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
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that chose and typed a little of everything."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        typed = (
            *TINY,
            "trainer.max_epochs=1",
            "callbacks=early_stopping",
            "callbacks.early_stopping.monitor=train/loss",
        )
        cfg = compose(*typed)
        patch.setattr(train, "task_overrides", lambda: list(typed))
        (folder / "run").mkdir()
        train.train(cfg, folder / "run")
    return folder


@pytest.fixture
def gift(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the run in ``outputs/gift``, beside it files that must not be used."""
    monkeypatch.setenv("SECRET", SECRET)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    shutil.copytree(good / "run", "outputs/gift")
    shutil.copytree(good / "outputs", "outputs", dirs_exist_ok=True, symlinks=True)
    evil = EVIL.format(marker=tmp_path / "marker")
    Path("outputs/gift/evil.yaml").write_text(evil)
    Path("evil.yaml").write_text(evil)
    return work


def edit(file: Path, *path: Any, value: Any) -> None:
    checkpoint = torch.load(file, weights_only=True)
    node = checkpoint
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    torch.save(checkpoint, file)


def strings(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every string in a config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, str):
            yield (*path, key)
        elif isinstance(value, dict | list):
            yield from strings(value, (*path, key))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def use(run: str, *overrides: str) -> str:
    """Resume a run and ask it; the lines of what was refused."""
    lines = []
    for task in (
        lambda: train.train(compose(f"resume={run}", "trainer.max_epochs=2", *overrides), Path(run)),
        lambda: load_run(run, "last"),
    ):
        try:
            task()
        except Exception as error:
            lines.append(format_error(error))
    assert not any("\n" in line for line in lines)
    return "\n".join(lines)


def assert_harmless(work: Path, before: set[str]) -> None:
    """Nothing lies where it should not, and no file holds what the environment does."""
    assert all(name.startswith("work/outputs/") for name in files(work.parent) - before)
    for path in work.parent.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


PAYLOADS = {
    "path": "../../outputs/gift/evil",
    "list": "[../../outputs/gift/evil,default]",
    "environment": "${oc.env:SECRET}",
    "directory": "${new_or_resumed_run_dir:null,pwned}",
    "command": "x; touch pwned",
    "missing": "???",
    "control": "\x1b]0;pwned\x07\x1b[2J",
    "long": "x" * 5000,
}


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_any_string_of_a_stored_config_may_be_anything(payload: str, gift: Path) -> None:
    run = Path("outputs/gift")
    whole = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    places = list(strings(whole["config"]))
    assert len(places) > 30
    for place in places:
        before = files(gift.parent)
        changed = copy.deepcopy(whole)
        node = changed["config"]
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = PAYLOADS[payload]
        torch.save(changed, run / "checkpoints/last.ckpt")
        use(str(run))
        assert_harmless(gift, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["_target_", "_args_", "_partial_", "defaults", "evil", "a.b", "_target_ ", "${x}", "a[0]"]
)
def test_any_part_of_a_stored_config_may_have_any_key(key: str, gift: Path) -> None:
    run = Path("outputs/gift")
    whole = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    value = {"_target_": "os.mkdir", "path": str(gift.parent / "marker")} if key != "_target_" else "os.getcwd"
    parts = [(), *((name,) for name, part in whole["config"].items() if isinstance(part, dict)), ("model", "net")]
    for place in parts:
        before = files(gift.parent)
        changed = copy.deepcopy(whole)
        node = changed["config"]
        for name in place:
            node = node[name]
        node[key] = value
        torch.save(changed, run / "checkpoints/last.ckpt")
        use(str(run))
        assert_harmless(gift, before)


@pytest.mark.parametrize("group", ["callbacks", "logger", "trainer"])
@pytest.mark.parametrize(
    "name", ["../../outputs/gift/evil", "[../../outputs/gift/evil,default]", "/evil", "${x}", "a/b", ""]
)
def test_a_stored_choice_is_the_name_of_a_file_in_conf(group: str, name: str, gift: Path) -> None:
    edit(Path("outputs/gift/checkpoints/last.ckpt"), "config", "choices", group, value=name)
    before = files(gift.parent)
    refused = use("outputs/gift", *(["trainer=gpu"] if group == "trainer" else []))
    assert f"choices.{group}" in refused or "has no such file" in refused
    assert_harmless(gift, before)
    with pytest.raises(ValueError, match="has no such file"):
        compose_group(group, name)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("trainer", "profiler"), {"_target_": "loggers.profiler.NoProfiler", "dirpath": "../pwned", "filename": "x"}),
        (("trainer", "profiler"), {"_target_": "lightning.pytorch.profilers.AdvancedProfiler", "dirpath": "../pwned"}),
        (("trainer", "profiler"), {"_target_": "lightning.pytorch.Trainer", "default_root_dir": "../pwned"}),
        (("trainer", "_target_"), "lit_models.Classifier"),
        (("trainer", "model_registry"), "somebody/models"),
        (("trainer", "strategy"), "../../evil"),
        (("data", "more"), {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}),
        (("expect",), {"test/acc": {"_target_": "os.system"}}),
        (("choices", "overrides"), ["trainer.max_epochs=1", {"a": 1}]),
        (("choices", "overrides"), None),
        (("choices",), "experiment"),
    ],
)
def test_a_stored_value_of_the_wrong_kind_is_refused(place: tuple[str, ...], value: Any, gift: Path) -> None:
    edit(Path("outputs/gift/checkpoints/last.ckpt"), "config", *place, value=value)
    before = files(gift.parent)
    lines = use("outputs/gift").splitlines()
    assert len(lines) == 2
    assert all(f"is refused: config.{place[0]}" in line for line in lines)
    assert_harmless(gift, before)


@pytest.mark.slow
def test_a_stored_number_of_threads_does_not_end_the_process(gift: Path, shell) -> None:
    edit(Path("outputs/gift/checkpoints/last.ckpt"), "config", "threads", value=100_000_000)
    answer = shell("run=outputs/gift", script="evaluate.py", cwd=gift)
    assert (answer.returncode, answer.stderr) == (1, "error: threads=100000000 must be at most 1024\n")


def test_a_path_is_no_value_of_a_stored_callback(gift: Path) -> None:
    """Were it kept, a callback that writes files would write them there."""
    file = Path("outputs/gift/checkpoints/last.ckpt")
    edit(file, "config", "callbacks", "early_stopping", value={"monitor": "../../evil", "patience": 7})
    typed = ["callbacks.early_stopping.monitor=../../evil", "callbacks.early_stopping.patience=7", "callbacks.x=evil"]
    edit(file, "config", "choices", "overrides", value=typed)
    now = compose("resume=outputs/gift", "trainer.max_epochs=2")
    now.choices.overrides = ["trainer.max_epochs=2"]
    callbacks = merge_resume_config(now, file).callbacks
    assert (callbacks.early_stopping.monitor, callbacks.early_stopping.patience) == (None, 7)
    assert not callbacks.get("x")


def test_a_trial_that_somebody_left_gives_no_overrides(tmp_path: Path) -> None:
    """Its settings would be typed as the overrides of a job: those outside of the ranges are not taken up."""
    space = {"model": CategoricalDistribution(["mlp", "cnn"]), "optimizer.lr": FloatDistribution(0.1, 1)}
    hostile = {"model": CategoricalDistribution(["../../evil"]), "optimizer.lr": FloatDistribution(0.1, 1)}
    study = open_study(tmp_path, direction="maximize")
    study.ask(hostile)
    settings = {"metric": "val/acc", "direction": "maximize", "n_trials": 1, "startup_trials": 1, "seed": 1}
    sweeper = OptunaSweeper({}, **settings)
    sweeper.space, sweeper.at_once = space, 5
    assert sweeper._next_trials(study, tmp_path, "me") == []
    assert study.get_trials()[0].state == TrialState.FAIL


@pytest.mark.parametrize(
    "note", ["../elsewhere", "/tmp/elsewhere", "outputs", "outputs/../../elsewhere", ".", "", "outputs/link/x"]
)
def test_a_note_about_event_files_leads_nowhere_else(note: str, gift: Path) -> None:
    Path("../target").mkdir()
    Path("outputs/link").symlink_to("../../target")
    Path("outputs/gift/dashboard.txt").write_text(f"{note}\n")
    assert TensorBoard("outputs/gift", title="a/b").log_dir == "outputs/a/b"
    assert Path("outputs/gift/dashboard.txt").read_text() == "outputs/a/b\n"


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
def test_a_result_that_is_none_is_said_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result.json is damaged or not of this project"):
        read_result(tmp_path)


def test_a_command_to_type_again_holds_nothing_but_overrides(tmp_path: Path) -> None:
    result = {
        "command": "python train.py; touch pwned",
        "overrides": ["name=x; touch pwned"],
        "metrics": {},
        "status": "x",
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_result(tmp_path)["command"] == "python train.py 'name=x; touch pwned'"


@pytest.mark.slow
def test_what_is_printed_moves_no_cursor(shell, gift: Path) -> None:
    edit(Path("outputs/gift/checkpoints/last.ckpt"), "config", "seed", value="\x1b[2J")
    answer = shell("run=outputs/gift", script="evaluate.py", cwd=gift)
    assert answer.returncode == 1 and "\\x1b[2J" in answer.stderr and "\x1b" not in answer.stderr + answer.stdout
    record = logging.LogRecord("name", logging.INFO, "path", 1, "\x1b[2J%s", ("x\r",), None)
    assert PrintableFormatter("%(message)s").format(record) == "\\x1b[2Jx\\r"
    assert printable("a\x1b[2Jb\u202e\r\n\t图片", keep="\n\t") == "a\\x1b[2Jb\\u202e\\r\n\t图片"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["${oc.env:SECRET}", "${new_or_resumed_run_dir:null,pwned}", "???", "\\${x}"])
def test_names_from_files_are_never_evaluated(name: str, shell, tmp_path: Path) -> None:
    for folder in (name, "other"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (28, 28)).save(tmp_path / "images" / folder / f"{number}.png")
    answer = shell("data=image_folder", "data.root=images", "model=mlp", "trainer.accelerator=cpu", SECRET=SECRET)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ") and "cannot be used as a name" in answer.stderr
    assert SECRET not in answer.stdout + answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


# --- what the directory of a run holds ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.log", "evaluate.log", "checkpoints", "evaluations", "predictions", "pictures"])
def test_a_link_in_a_run_leads_nowhere_else(name: str, gift: Path) -> None:
    """What a command writes into would be a file of the user's, such as one that a shell reads at its start."""
    (target := gift.parent / "home").mkdir()
    link = Path("outputs/gift", name)
    if name == "checkpoints":
        link.rename(target / name)
    elif name.endswith(".log"):
        (target / name).write_text("mine\n")
    else:
        (target / name).mkdir()
    link.symlink_to(target / name)
    with pytest.raises(ValueError, match=r"is refused: it is a link to .*, outside of "):
        find_checkpoint("outputs/gift")
    if name != "checkpoints":  # a file is looked for where it is
        with pytest.raises(ValueError, match=r"is refused: it is a link to .*, outside of "):
            find_checkpoint("outputs/gift/checkpoints/last.ckpt")


def test_a_link_within_a_run_is_taken(gift: Path) -> None:
    Path("outputs/gift/checkpoints").rename("outputs/gift/old")
    Path("outputs/gift/checkpoints").symlink_to("old")
    assert find_checkpoint("outputs/gift")[1].is_file()


def test_a_log_that_is_a_pipe_is_not_waited_for(gift: Path) -> None:
    os.mkfifo("outputs/gift/train.log")
    with pytest.raises(ValueError, match="it is neither a file nor a directory"):
        find_checkpoint("outputs/gift")


def test_a_job_of_somebody_s_sweep_is_no_link(tmp_path: Path) -> None:
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
def test_a_link_in_a_sweep_leads_nowhere_else(name: str, shell, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).symlink_to("../mine")
    answer = shell("-m", *TINY, "seed=1", "trainer.max_epochs=1", "logger=none", "sweep_resume=sweep")
    assert answer.returncode == (1 if name == "study.db" else 0), answer.stderr
    assert (tmp_path / "mine").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["{home}", "../home", "home/../../home", 5, ["x"], ".worker-0123456789ab.lock/../x"])
def test_who_left_a_trial_is_no_path(name: Any, tmp_path: Path) -> None:
    """The name of a lock file, which is removed when its process is gone."""
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


def test_a_temporary_name_that_was_there_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / f".result.json.{os.getpid()}.tmp").symlink_to("mine")
    with atomic_write(tmp_path / "result.json") as temporary:
        temporary.write_text("ours\n")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert (tmp_path / "result.json").read_text() == "ours\n"


@pytest.mark.parametrize("where", ["working directory", "run", "link to a run", "data root"])
def test_the_name_of_a_directory_is_never_evaluated(where: str, shell, gift: Path) -> None:
    evil = gift / "${oc.env:SECRET}"
    environment = {"SECRET": SECRET}
    if where == "working directory":
        evil.mkdir()
        answer = shell(*TINY, "trainer.max_epochs=1", cwd=evil, **environment)
    elif where == "data root":
        answer = shell(*TINY, "trainer.max_epochs=1", cwd=gift, **environment | {"DATA_ROOT": str(evil)})
    else:
        Path("outputs/gift").rename(evil)
        Path("link").symlink_to(evil.name)
        name = "link" if where == "link to a run" else r"\${oc.env:SECRET}"
        answer = shell(f"resume={name}", "trainer.max_epochs=2", cwd=gift, **environment)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ") and len(answer.stderr.splitlines()) == 1
    assert SECRET not in answer.stdout + answer.stderr
    assert not any(SECRET in str(path) for path in gift.rglob("*"))
