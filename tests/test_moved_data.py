"""A run is resumed and used with its own settings, which are not those of the default config, and with moved data."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf

import evaluate
import export
import predict
from cli import CONF
from cli.build import load_run
from cli.resumed_run import stored_choices
from runs.files import read_yaml
from tests.conftest import read_predictions, run

QUIET = ("logger=none", "callbacks.pictures=null", "callbacks.progress=null")
TABLE = ("data=csv", "data.path=here.csv", "data.target=kind", "model=mlp", *QUIET)
MORE = ("+trainer.min_epochs=1", "callbacks=early_stopping", "trainer.max_epochs=1", "metrics=classes")


@pytest.fixture
def table_run() -> Path:
    """A run on a table that has moved since."""
    rows = [f"{a},{b},{'left' if a < b else 'right'}" for a in range(6) for b in range(6)]
    Path("here.csv").write_text("\n".join(["a,b,kind", *rows]) + "\n")
    run("old", *TABLE, *MORE)
    Path("here.csv").rename("there.csv")
    return Path("old")


@pytest.fixture
def stored_run() -> Path:
    """What is left of a run where nobody reads its checkpoint."""
    (folder := Path("old/checkpoints")).mkdir(parents=True)
    (folder / "last.ckpt").touch()
    choices = {"model": "mlp", "optimizer": "adamw", "scheduler": "onecycle", "trainer": "default", "logger": "none"}
    (folder.parent / "config.yaml").write_text(yaml.safe_dump({"choices": choices}))
    return folder.parent


def stored(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.eval_batch_size=7", "data.eval_batch_size"),
        ("callbacks.early_stopping.patience=4", "callbacks.early_stopping.patience"),
        ("trainer.min_epochs=2", "trainer.min_epochs"),  # it was added with a plus
        ("metrics.f1.average=micro", "metrics.f1.average"),
    ],
)
def test_resume_may_change_what_the_run_has(override: str, key: str, table_run: Path) -> None:
    run("old", f"resume={table_run}", "data.path=there.csv", "trainer.max_epochs=2", override)
    config = OmegaConf.create(stored(table_run))
    assert config.data.path == os.path.abspath("there.csv")
    assert str(OmegaConf.select(config, key)) == override.partition("=")[2]
    assert json.loads((table_run / "result.json").read_text())["epochs"] == 2
    overrides = config.choices.overrides
    assert len({text.partition("=")[0].lstrip("+") for text in overrides}) == len(overrides)


def test_resume_may_change_the_workers_of_a_directory_of_images(stored_run: Path) -> None:
    choices = {"data": "image_folder", "model": "cnn", "overrides": ["data=image_folder"]}
    (stored_run / "config.yaml").write_text(yaml.safe_dump({"choices": choices}))
    options, arguments = stored_choices(["resume=old", "data.num_workers=0"])
    assert options == ["model=cnn", "data=image_folder"]
    assert arguments == ["resume=old", "data.num_workers=0"]


@pytest.mark.slow
def test_resume_command_takes_the_settings_of_the_run(table_run: Path, shell: Callable) -> None:
    """Settings that neither has are refused with those of the run, and what is typed stays what is typed."""
    answer = shell("resume=old", "data.pathh=there.csv")
    assert answer.stderr.startswith("error: there is no data.pathh (did you mean data.path?); data has ")
    answer = shell("resume=old", "data.path=there.csv", "trainer.max_epochs=2")
    assert answer.returncode == 0, answer.stderr
    expected = [*TABLE, *MORE]
    expected[1] = "data.path=there.csv"
    expected[expected.index("trainer.max_epochs=1")] = "trainer.max_epochs=2"
    assert stored(table_run)["choices"]["overrides"] == expected


@pytest.mark.parametrize(
    "name", ["../../x", "mnist,csv", "${oc.env:HOME}", "mnist hydra.run.dir=x", 5, None, ["csv"], {}]
)
def test_options_of_a_stored_run_are_those_that_conf_has(name: object, stored_run: Path) -> None:
    """The run may come from anyone."""
    config = stored(stored_run)
    config["choices"] |= {"data": name, "hydra/launcher": "joblib", "overrides": [f"metrics={name}", 5]}
    (stored_run / "config.yaml").write_text(yaml.safe_dump(config))
    options, arguments = stored_choices(["resume=old", "model=lenet"])
    assert options == ["optimizer=adamw", "scheduler=onecycle", "trainer=default", "logger=none"]
    assert arguments == ["resume=old", "model=lenet"]


@pytest.mark.parametrize("content", ["", "[]", "choices: 5", "choices: {overrides: {}}", "{"])
def test_damaged_config_of_a_stored_run_chooses_nothing(content: str, stored_run: Path) -> None:
    (stored_run / "config.yaml").write_text(content)
    assert stored_choices(["resume=old"]) == ([], ["resume=old"])


def test_commands_find_data_that_has_moved(table_run: Path) -> None:
    settings = {"run": "old", "checkpoint": "last", "data": {"root": None, "path": "there.csv", "test_path": None}}
    cfg = OmegaConf.create({**settings, "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}})
    assert "test/acc" in evaluate.evaluate_config(cfg, table_run)["metrics"]
    asked = {"images": None, "csv": None, "samples": None, "split": "test", "limit": 3, "output": "predictions"}
    table = predict.predict_config(OmegaConf.create({**settings, **asked}), table_run)
    assert len(read_predictions(table)) == 3
    assert export.export(OmegaConf.create({**settings, "output": "net.pt"}), table_run).is_file()


def test_commands_refuse_a_place_that_the_data_does_not_have(table_run: Path) -> None:
    for key, hint in (("root", "the data of this run has data.path and data.test_path"), ("path", "no such file")):
        data = {"root": None, "path": None, "test_path": None, key: "nowhere"}
        cfg = OmegaConf.create({"run": "old", "checkpoint": "last", "data": data, "split": "test"})
        cfg.trainer = {"accelerator": "cpu", "devices": 1}
        with pytest.raises((ValueError, OSError), match=hint):
            evaluate.evaluate_config(cfg, table_run)
    assert not (table_run / "evaluations").exists()


SECRET = "db.example.org:5432:me:PASSWORD1\nx\n"


@pytest.mark.parametrize("fitted", ["kept", "null", "left out"])
@pytest.mark.parametrize("key", ["path", "test_path"])
def test_file_that_a_checkpoint_names_is_not_quoted_unless_it_is_that_of_the_run(
    key: str, fitted: str, table_run: Path
) -> None:
    Path("secret").write_text(SECRET)
    file = table_run / "checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    data = checkpoint["config"]["data"]
    data |= {"path": "there.csv", key: "secret"} | ({"fitted_state": None} if fitted == "null" else {})
    if fitted == "left out":
        del data["fitted_state"]
    torch.save(checkpoint, file)
    before = {path: path.read_bytes() for path in table_run.rglob("*") if path.is_file()}
    said = "there.csv has changed" if key == "test_path" else "secret has changed"
    for use in (lambda: load_run("old", "last")[1].setup(), lambda: run("old", "resume=old", "trainer.max_epochs=2")):
        with pytest.raises(ValueError, match=said if fitted == "kept" else r"it holds no data\.fitted_state") as error:
            use()
        assert "PASSWORD" not in str(error.value)
    assert {path: path.read_bytes() for path in table_run.rglob("*") if path.is_file()} == before


def test_config_that_contains_itself_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: &a {x: *a}\n")
    assert read_yaml(tmp_path / "config.yaml") == {}


def test_job_of_an_experiment_that_is_a_sweep_is_resumed_as_a_run(stored_run: Path) -> None:
    config = stored(stored_run)
    config["choices"]["experiment"] = "line_scan"
    (stored_run / "config.yaml").write_text(yaml.safe_dump(config))
    options, _ = stored_choices([f"resume={stored_run}"])
    assert "experiment=line_scan" in options
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert hydra.compose("config", options, return_hydra_config=True).hydra.mode.name == "RUN"


@pytest.mark.slow
def test_data_of_predict_is_not_its_former_split(shell: Callable, table_run: Path) -> None:
    answer = shell("run=old", "data.path=there.csv", "split=test", script="predict.py")
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ({"state_dict": None}, "last.ckpt is damaged: it holds no weights"),
        ({"state_dict": {1: 2}}, "last.ckpt is damaged: it holds no weights"),
        ({"state_dict": {}}, "last.ckpt: its weights are not those of the model of its config: Missing key"),
        ({"loops": None}, "last.ckpt cannot be resumed: its loops are not what Lightning writes"),
    ],
)
@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_checkpoint_with_missing_keys_is_refused_before_the_run_changes(
    command: str, damage: dict, line: str, table_run: Path
) -> None:
    file = table_run / "checkpoints/last.ckpt"
    torch.save(torch.load(file, weights_only=True) | damage, file)
    before = {path: path.read_bytes() for path in table_run.rglob("*") if path.is_file()}
    if command == "resume":
        with pytest.raises(ValueError, match=line):
            run("old", "resume=old", "data.path=there.csv", "trainer.max_epochs=2")
    elif "loops" not in damage:  # nobody reads them
        with pytest.raises(ValueError, match=line):
            load_run("old", "last")
    assert {path: path.read_bytes() for path in table_run.rglob("*") if path.is_file()} == before
