"""Metrics of torchmetrics by config: exact, once per epoch, from the runs of anyone without danger."""

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torchmetrics.functional import mean_squared_error, r2_score
from torchmetrics.functional.classification import multiclass_auroc, multiclass_calibration_error, multiclass_f1_score

import evaluate
import train
from cli.build import build, build_metrics, load_run
from cli.compose import compose
from cli.errors import format_error
from lit_models.epoch_means import EpochMeans
from runs.safety import check_safe
from tests.test_procedures import EVALUATE

POINTS = ("model=blobs_mlp", "data=blobs", "data.val_size=60", "data.batch_size=35", "model.steps_per_batch=1")
COMMON = ("trainer.accelerator=cpu", "callbacks.pictures=null", "logger=none", "threads=1", "trainer.max_epochs=2")


def run(*overrides: str, folder: str = "run") -> dict:
    Path(folder).mkdir(exist_ok=True)
    return train.train_config(compose(*COMMON, *overrides), Path(folder))


def outputs_of(folder: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the trained net of a run says to the examples of a split, and their targets."""
    _, data, model = load_run(folder, "last")
    data.setup()
    batches = list(data._eval_dataloader(split))
    with torch.inference_mode():
        return torch.cat([model(inputs) for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


@pytest.fixture
def no_cat_in_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes of points, of which the test set has two. Some of it look like the third."""
    from datamodules import Blobs

    targets = torch.arange(60) % 3
    inputs = torch.eye(3)[targets][:, :2] * 4 + torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    test = (torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0], [4.0, 1.0]]), torch.tensor([0, 1, 1, 0]))
    monkeypatch.setattr(Blobs, "load", lambda self: ((inputs, targets), test))
    monkeypatch.setattr(Blobs, "num_classes", 3)
    monkeypatch.setattr(Blobs, "class_names", ("ant", "bee", "cat"))


THREE = ("model=mlp", "data=blobs", "data.val_size=0", "optimizer.lr=0.05", "trainer.max_epochs=30", "metrics=classes")
RECALL = "torchmetrics.classification.MulticlassRecall"


@pytest.mark.parametrize("average", ["macro", "none"])
def test_class_without_examples_has_no_metric_and_counts_in_no_mean(
    average: str, no_cat_in_test: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = run(*THREE, f"+metrics.recall._target_={RECALL}", f"+metrics.recall.average={average}")
    metrics = json.loads(Path("run/result.json").read_text())["metrics"]
    assert result["metrics"] == metrics
    assert (metrics["test/acc"], metrics["test/acc/ant"], metrics["test/acc/bee"]) == (0.75, 1, 0.5)
    assert metrics["test/acc/cat"] is None
    if average == "macro":
        assert metrics["test/recall"] == 0.75
        assert metrics["test/f1"] == pytest.approx((1 + 2 / 3) / 2)
        assert metrics["test/auroc"] == multiclass_auroc(*probabilities("run"), 3, average="none")[:2].mean().item()
    else:
        assert [metrics[f"test/recall/{name}"] for name in ("ant", "bee", "cat")] == [1, 0.5, None]
    assert re.search(r"of each class +ant 100.0 %  bee 50.0 %  cat no example\n", caplog.text)
    caplog.clear()
    evaluated = evaluate.evaluate_config(EVALUATE, Path("run"))
    written = json.loads(Path("run/evaluations/test_last.json").read_text(), parse_constant=pytest.fail)
    assert written["metrics"] == evaluated["metrics"]
    assert written["metrics"]["test/acc/cat"] is None
    assert re.search(r"test/acc/cat +no example", caplog.text)


def probabilities(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    logits, targets = outputs_of(folder, "test")
    return logits.softmax(1), targets


def test_classification_metrics_cover_all_examples_of_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    """Evaluated in batches of 25: a mean of the metrics of the batches would be another number."""
    caplog.set_level("INFO")
    result = run(*POINTS, "metrics=classes", "data.eval_batch_size=25")
    for split in ("val", "test"):
        logits, targets = outputs_of("run", split)
        probs = logits.softmax(1)
        expected = {
            "f1": multiclass_f1_score(probs, targets, 2, average="macro"),
            "auroc": multiclass_auroc(probs, targets, 2),
            "ece": multiclass_calibration_error(probs, targets, 2, n_bins=15),
        }
        for name, value in expected.items():
            assert result["metrics"][f"{split}/{name}"] == pytest.approx(value.item(), rel=1e-5), name
    with open("run/metrics.csv", newline="") as lines:
        (_, last) = csv.DictReader(lines)
    assert list(last) == [
        *("epoch", "step", "train/loss", "train/acc", "val/loss", "val/acc"),
        *("val/f1", "val/auroc", "val/ece", "seconds"),
    ]
    for name in ("f1", "auroc", "ece"):
        assert f"test {name}" in caplog.text
    written = evaluate.evaluate_config(EVALUATE, Path("run"))
    assert written["metrics"] == {name: value for name, value in result["metrics"].items() if name.startswith("test/")}
    written = evaluate.evaluate_config(OmegaConf.merge(EVALUATE, {"split": "val"}), Path("run"))
    assert written["metrics"]["val/f1"] == result["metrics"]["val/f1"]


def test_regression_metrics_are_in_the_units_of_the_targets(tmp_path: Path) -> None:
    lines = [f"{x},{1000 + 50 * x + 7 * (x % 3)}" for x in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["x,price", *lines]))
    table = ("data=csv", f"data.path={tmp_path / 'table.csv'}", "data.target=price", "model=mlp_regression")
    result = run(*table, "data.batch_size=8", "data.eval_batch_size=5")
    outputs, targets = outputs_of("run", "test")
    _, data, _ = load_run("run", "last")
    prices, truth = data.denormalize_targets(outputs)[:, 0], data.denormalize_targets(targets)[:, 0]
    assert truth.min() >= 1000
    rmse = mean_squared_error(prices, truth, squared=False)
    assert result["metrics"]["test/rmse"] == pytest.approx(rmse.item(), rel=1e-4)
    assert result["metrics"]["test/r2"] == pytest.approx(r2_score(prices, truth).item(), rel=1e-4)
    assert "test/rmse" not in run(*table, "metrics=none", folder="none")["metrics"]


def test_a_metric_with_a_value_for_each_class_is_logged_for_each() -> None:
    recall = "+metrics.recall={_target_: torchmetrics.classification.MulticlassRecall, average: null}"
    result = run(*POINTS, recall)
    logits, targets = outputs_of("run", "test")
    for number, name in enumerate(build(compose(*POINTS))[0].class_names):
        hits = (logits.argmax(1) == targets)[targets == number]
        assert result["metrics"][f"test/recall/{name}"] == pytest.approx(hits.float().mean().item())


@pytest.mark.parametrize("model", ["blobs_mlp", "logistic"])
def test_binary_metrics_take_log_odds(model: str) -> None:
    result = run(f"model={model}", *POINTS[1:], "+metrics.f1._target_=torchmetrics.classification.BinaryF1Score")
    _, _, module = load_run("run", "last")
    outputs, targets = outputs_of("run", "test")
    predicted = module.classes(outputs)
    true_positives = ((predicted == 1) & (targets == 1)).sum()
    expected = 2 * true_positives / ((predicted == 1).sum() + (targets == 1).sum())
    assert result["metrics"]["test/f1"] == pytest.approx(expected.item())


def test_r2_of_one_example_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    result = run("model=line", "data=doubles", "data.val_size=1", "optimizer=by_hand", "scheduler=none")
    assert math.isnan(result["metrics"]["val/r2"]) and result["metrics"]["val/rmse"] > 0
    assert "metrics.r2: Needs at least two samples to calculate r2 score." in caplog.messages
    assert result["status"] == "finished"


WRONG = {
    "+metrics.f1=5": "metrics.f1 must have a _target_",
    "+metrics.f1._target_=torchmetrics.classification.MulticlassF2Score": "metrics.f1._target_=torchmetrics",
    "+metrics.loss._target_=torchmetrics.classification.MulticlassF1Score": "metrics.loss: a metric has a name of",
    f"+metrics.f1._target_={RECALL} +metrics.f1.x._target_=os.getcwd": "metrics.f1 takes numbers and words, no object",
    "+metrics.f1._target_=torch.nn.CrossEntropyLoss": "metrics.f1._target_=torch.nn.CrossEntropyLoss is not a metric",
    "+metrics.f1._target_=torchmetrics.text.BLEUScore": "metrics.f1._target_=torchmetrics.text.BLEUScore is not of",
    "+metrics.f1._target_=torchmetrics.F1Score": "metrics.f1._target_=torchmetrics.F1Score is not of torchm",
    "+metrics.f1._target_=os.system": "metrics.f1._target_=os.system is not of torchmetrics.classification or",
    "metrics=numbers": "metrics.rmse takes numbers, and the targets of the data are classes",
    "data=doubles model=line metrics=classes": "metrics.f1 takes classes, and the targets of the data are numbers",
    "model=mlp data=mnist +metrics.f1._target_=torchmetrics.classification.BinaryF1Score": "metrics.f1=torchmetrics",
}


def test_metrics_of_classes_are_refused_for_a_model_that_reconstructs() -> None:
    with pytest.raises(ValueError, match=r"metrics\.f1 compares classes, and \w+ predicts none: it reconstructs"):
        run("data=blobs", "model=autoencoder", "metrics=classes", "trainer.max_epochs=1", "data.val_size=20")


@pytest.mark.parametrize("words", WRONG)
def test_wrong_metric_gives_one_line(words: str, random_images: Callable[[int, int], None]) -> None:
    random_images(40, 10)
    own = () if "data=" in words else POINTS
    with pytest.raises(Exception) as error:
        run(*own, *words.split())
    assert format_error(error.value).startswith(WRONG[words])
    assert not Path("run/config.yaml").exists()


@pytest.mark.parametrize(
    "metrics",
    [
        {"f1": {"_target_": "os.system", "command": "true"}},
        {"f1": {"_target_": "torchmetrics.text.BLEUScore"}},
        {"f1": {"_target_": "torchmetrics.classification.f_beta.torch.load", "f": "x"}},
        {"f1": {"_target_": "torch.nn.Linear"}},
        {
            "f1": {
                "_target_": "torchmetrics.classification.MulticlassF1Score",
                "num_classes": {"_target_": "torch.nn.ReLU"},
            }
        },
        {"_target_": "torchmetrics.classification.MulticlassF1Score"},
    ],
)
def test_stored_metric_must_be_of_torchmetrics(metrics: dict) -> None:
    config = {"choices": {"overrides": []}, "model": {}, "data": {}, "trainer": {}, "metrics": metrics}
    with pytest.raises(ValueError, match=r"^a\.ckpt is refused: config\.metrics"):
        check_safe(config, "a.ckpt")
    good = {"_target_": "torchmetrics.classification.MulticlassF1Score", "num_classes": 3, "average": "macro"}
    check_safe(config | {"metrics": {"f1": good}}, "a.ckpt")


def test_typed_number_of_classes_is_kept() -> None:
    cfg = compose(*POINTS, "metrics=classes", "+metrics.f1.num_classes=7")
    metrics = build_metrics(cfg, build(cfg)[0])
    assert (metrics["f1"].num_classes, metrics["auroc"].num_classes) == (7, 2)


def test_sums_of_an_epoch_continue_on_another_device() -> None:
    means, meta = EpochMeans(), torch.device("meta")  # stands for a GPU
    means.load_state_dict({}, meta)  # such as those of a validation before the training
    assert means.sums == {}
    means.load_state_dict({"count": 3, "loss": 1.5}, meta)
    assert (means.sums["count"], means.sums["loss"].device) == (3, meta)


@pytest.mark.slow
def test_metrics_of_two_processes_equal_those_of_one(shell: Callable, tmp_path: Path) -> None:
    """61 validation examples in batches of 25: the processes have different numbers of them. No step is made."""
    common = (*POINTS, "data.val_size=61", "data.eval_batch_size=25", "metrics=classes", "logger=none", "threads=1")
    common += ("trainer.max_epochs=0", "validate_before_training=true", "callbacks.pictures=null")
    found = []
    for name, how in (("one", ("trainer.accelerator=cpu",)), ("two", ("trainer=ddp", "trainer.devices=2"))):
        answer = shell(*common, *how, "trainer.accelerator=cpu", f"hydra.run.dir={name}")
        assert answer.returncode == 0, answer.stderr
        found.append(json.loads((tmp_path / name / "result.json").read_text())["metrics"])
    names = [name for name in found[0] if name.count("/") == 1]
    assert len(names) == 10  # of a validation and a test: loss, acc, f1, auroc, ece
    assert {name: found[1][name] for name in names} == pytest.approx({name: found[0][name] for name in names}, rel=1e-5)
