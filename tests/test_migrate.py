"""Runs made before names changed still work, and so do the old names on the command line.

The runs in tests/old_runs were made by commit f5485a6:

    train.py data=tabular data.size=2000 data.batch_size=100 data.val_size=400 model=mlp model.net.hidden=[8] \
        optimizer.lr=0.01 scheduler=cosine trainer.max_epochs=4 validate_first=true checkpoint.every_n_steps=10
    train.py model=cnn data=mnist optimizer=sgd callbacks=details trainer.max_epochs=1 trainer.limit_train_batches=100

The first was killed after the second epoch; undisturbed.csv is the metrics.csv of the same run without the kill.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from cli.compose import compose
from cli.resume import merge_resume_config
from runs.migrate import RENAMED_KEYS, RENAMED_TARGETS, upgrade_checkpoint, upgrade_overrides
from tests.conftest import PROJECT

CPU = "trainer.accelerator=cpu"


@pytest.fixture
def old_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of an old run."""
    return Path(shutil.copytree(PROJECT / "tests" / "old_runs" / request.param, tmp_path / "run"))


def rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline="", encoding="utf-8") as lines:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(lines)]


@pytest.mark.slow
@pytest.mark.parametrize("old_run", ["tabular_mlp"], indirect=True)
def test_old_run_resumes_to_the_recorded_metrics(old_run: Path, shell) -> None:
    answer = shell(f"resume={old_run}", CPU, OMP_NUM_THREADS="1")
    assert answer.returncode == 0, answer.stderr
    resumed, undisturbed = rows(old_run / "metrics.csv"), rows(old_run / "undisturbed.csv")
    assert [row["epoch"] for row in resumed] == [0, 1, 2, 3, 4]
    for got, expected in zip(resumed, undisturbed, strict=True):
        del got["seconds"], expected["seconds"]
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("old_run", ["tabular_mlp"], indirect=True)
def test_old_run_can_be_evaluated_predicted_and_exported(old_run: Path, shell) -> None:
    evaluated = shell(f"run={old_run}", "split=val", CPU, script="evaluate.py")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads((old_run / "evaluations" / "val_last.json").read_text())["metrics"]
    assert metrics["val/loss"] == pytest.approx(rows(old_run / "metrics.csv")[-1]["val/loss"], rel=1e-4)

    predicted = shell(f"run={old_run}", "data=test", "n=3", script="predict.py")  # the old names
    assert predicted.returncode == 0, predicted.stderr
    assert "note: data is now split" in predicted.stderr and "note: n is now limit" in predicted.stderr
    assert len((old_run / "predictions" / "predictions.csv").read_text().splitlines()) == 1 + 3

    exported = shell(f"run={old_run}", "to=old.pt", script="export.py")
    assert exported.returncode == 0, exported.stderr
    assert "note: to is now output" in exported.stderr and Path("old.pt").is_file()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("old_run", ["mnist_cnn"], indirect=True)
def test_old_mnist_run_keeps_its_accuracy_and_resumes(old_run: Path, shell, real_root: Path) -> None:
    answer = shell(f"run={old_run}", CPU, script="evaluate.py")
    assert answer.returncode == 0, answer.stderr
    metrics = json.loads((old_run / "evaluations" / "test_last.json").read_text())["metrics"]
    before = json.loads((old_run / "result.json").read_text())["metrics"]
    assert metrics["test/acc"] == pytest.approx(before["test/acc"], abs=2e-4)
    more = shell(f"resume={old_run}", "trainer.max_epochs=2", CPU)
    assert more.returncode == 0, more.stderr
    assert [row["epoch"] for row in rows(old_run / "metrics.csv")] == [1, 2]


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("train", "validate_first=true", "validate_before_training=true"),
        ("train", "callbacks=details", "callbacks=tensorboard_extras"),
        ("predict", "n=3", "limit=3"),
        ("predict", "to=a=b\nc", "output=a=b\nc"),
        ("export", "to=model.onnx", "output=model.onnx"),
    ],
)
def test_old_override_is_upgraded_with_a_note(command: str, old: str, new: str) -> None:
    overrides, notes = upgrade_overrides([old, "seed=1"], command)
    assert overrides == [new, "seed=1"]
    (note,) = notes
    assert " is now " in note


@pytest.mark.parametrize("key", ["data.shuffle", "data.drop_last", "callbacks.early_stopping.mode"])
def test_setting_that_conf_has_by_now_may_still_be_added(key: str) -> None:
    """In conf/ of another, such as a data set of one's own, it may be missing: the plus stays for that."""
    overrides, notes = upgrade_overrides([f"+{key}=false"])
    assert overrides == [f"++{key}=false"]
    assert not notes


def test_stored_callback_states_are_renamed() -> None:
    checkpoint = {"callbacks": {"Pictures": {"way": {0: {}}, "stride": 2}, "Record": {"rows": []}}}
    upgrade_checkpoint(checkpoint)
    expected = {"Plots": {"weight_history": {0: {}}, "stride": 2}, "MetricsHistory": {"rows": []}}
    assert checkpoint["callbacks"] == expected


def test_current_overrides_are_unchanged() -> None:
    overrides = ["n=3", "data=test", "~callbacks.pictures", "+trainer.min_epochs=2", "-m", "model=mlp,cnn"]
    assert upgrade_overrides(overrides, "train") == (overrides, [])
    assert not set(RENAMED_KEYS) & set(RENAMED_KEYS.values())


@pytest.fixture
def extra_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add renamed keys and targets for one test."""
    monkeypatch.setitem(RENAMED_KEYS, "data.amount", "data.size")
    monkeypatch.setitem(RENAMED_KEYS, "callbacks.images", "callbacks.pictures")
    monkeypatch.setitem(RENAMED_TARGETS, "lit_models.old.Net", "lit_models.nets.MLP")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.amount=[8],[16]", "data.size=[8],[16]"),
        ("+data.amount=5", "+data.size=5"),
        ("++data.amount=5", "++data.size=5"),
        ("~data.amount", "~data.size"),
        ("~callbacks.images", "~callbacks.pictures"),
        ("callbacks.images.every_n_epochs=1", "callbacks.pictures.every_n_epochs=1"),
        ("callbacks=default,details", "callbacks=default,tensorboard_extras"),
        ("model.net._target_=lit_models.old.Net", "model.net._target_=lit_models.nets.MLP"),
    ],
)
def test_renamed_key_is_upgraded_in_every_kind_of_override(old: str, new: str, extra_renames: None) -> None:
    assert upgrade_overrides([old])[0] == [new]
    assert upgrade_overrides([new]) == ([new], [])
    for same in ("data.amounts=5", "xdata.amount=5", "model.data.amount=5", "amount=5", "data=amount"):
        assert upgrade_overrides([same]) == ([same], [])


def test_run_with_an_old_key_resumes_with_either_name(extra_renames: None, tmp_path: Path) -> None:
    Path("run").mkdir()
    train.train_config(
        compose("model=blobs_mlp", "data=blobs", "trainer.max_epochs=1", CPU, "logger=none"), Path("run")
    )
    file = Path("run/checkpoints/last.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    config = checkpoint["config"]
    config["data"]["amount"] = config["data"].pop("size")
    config["model"]["net"]["_target_"] = "lit_models.old.Net"
    config["choices"]["overrides"] = ["data.amount=200"]
    del config["compile"]
    torch.save(checkpoint, file)
    for override in ("data.amount=200", "data.size=200"):
        cfg = compose("data=blobs", "resume=run", "trainer.max_epochs=2", override)
        cfg.choices.overrides = upgrade_overrides([override, "trainer.max_epochs=2"])[0]
        merged = merge_resume_config(cfg, file)
        assert (merged.data.size, merged.compile, merged.model.net._target_) == (200, False, "lit_models.nets.MLP")
        assert "amount" not in merged.data
        assert list(merged.choices.overrides) == ["data.size=200", "trainer.max_epochs=2"]
    cfg.data.size, cfg.choices.overrides = 300, ["data.size=300"]
    with pytest.raises(ValueError, match=r"data\.size"):
        merge_resume_config(cfg, file)
