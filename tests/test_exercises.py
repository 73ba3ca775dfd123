"""The exercises reproduce the published figures of their tutorials."""

import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import datamodules
import train
from benchmarks import results
from callbacks.judge import FIGURES
from cli.compose import compose, incomparable_overrides, relevant_overrides
from cli.errors import format_error
from cli.help import SHELVES
from lit_models import FineTuning, losses, nets
from runs.expectations import check_expected
from runs.result import has_diverged
from tests.conftest import PROJECT, SMALLER

EXPERIMENTS = sorted(path.stem for path in (PROJECT / "conf/experiment").glob("*.yaml"))
LARGE = ["cifar10_distillation", "cifar10_resnet18", "cifar10_resnet18_5_epochs", "cifar10_teacher", "cifar10_vit"]
LARGE += ["mnist_siamese", "resnet18_one_step"]
LINES = ["line_diverging", "line_slow", "line_rescaled"]
LINE_MODELS = ["line_by_hand", "line_autograd", "line"]


def run(folder: str, *overrides: str) -> tuple[dict, list[dict[str, str]], dict[str, torch.Tensor]]:
    """Train in this process. Return the result, the rows of metrics.csv and the final weights."""
    path = Path(folder)
    path.mkdir()
    result = train.train_config(compose(*overrides, "trainer.accelerator=cpu", "logger=none"), path)
    with open(path / "metrics.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return result, rows, torch.load(path / "checkpoints/last.ckpt")["state_dict"]


@pytest.mark.parametrize(("experiment", "model"), [*itertools.product(LINES, LINE_MODELS)])
def test_lines_reproduce_the_published_losses_and_coefficients(experiment: str, model: str) -> None:
    expect = compose(f"experiment={experiment}").expect
    assert len(expect["train/loss"].published) == 10
    result, rows, _ = run("run", f"experiment={experiment}", f"model={model}")
    losses = [float(row["train/loss"]) for row in rows]
    assert losses == pytest.approx(expect["train/loss"].published, rel=2e-6)
    for name in "wb":
        assert result["metrics"][name] == pytest.approx(expect[name].published, rel=2e-6, abs=5e-5)
    assert result["status"] == ("diverged" if experiment == "line_diverging" else "finished")


def test_first_gradient_of_a_line_is_the_published_one() -> None:
    weights = {
        model: run(model, "experiment=line_diverging", f"model={model}", "trainer.max_epochs=1")[2]
        for model in LINE_MODELS
    }
    for state in weights.values():
        step = [1 - state["net.weight"].item(), 0 - state["net.bias"].item()]
        assert [number / 0.01 for number in step] == pytest.approx([-989.5273, -82.6000], rel=1e-5)


def test_line_by_hand_does_not_use_autograd() -> None:
    """A backward pass through the net raises. The run of line_by_hand ends nevertheless."""

    class RefusesBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError("autograd was used")

    forward = nets.RawLine.forward
    try:
        nets.RawLine.forward = lambda self, x: RefusesBackward.apply(forward(self, x))
        assert run("by_hand", "experiment=line_slow", "model=line_by_hand")[0]["status"] == "finished"
        with pytest.raises(AssertionError, match="autograd was used"):
            run("autograd", "experiment=line_slow", "model=line_autograd")
    finally:
        nets.RawLine.forward = forward


@pytest.mark.parametrize("model", LINE_MODELS)
def test_line_converges_to_the_least_squares_solution(model: str) -> None:
    (inputs, targets), _ = datamodules.Table(
        **{k: compose("data=readings").data[k] for k in ("inputs", "targets")}
    ).load()
    columns = torch.cat([0.1 * inputs, torch.ones_like(inputs)], 1).double()
    closed = torch.linalg.lstsq(columns, targets.double()).solution.flatten().tolist()
    settings = ("model.steps_per_batch=5000", "optimizer.lr=0.1", "trainer.max_epochs=1")
    result, *_ = run("run", "experiment=line_rescaled", f"model={model}", *settings)
    assert [result["metrics"][name] for name in "wb"] == pytest.approx(closed, rel=1e-4)


def test_gradient_descent_by_hand_equals_sgd() -> None:
    by_hand = run("by_hand", "experiment=lenet_one_step")[2]
    by_sgd = run("by_sgd", "experiment=lenet_one_step", "optimizer=sgd", "optimizer.lr=0.01", "optimizer.momentum=0")[2]
    assert len(by_hand) == 10
    for name, weight in by_hand.items():  # SGD fuses multiply and add, so it rounds once; the code by hand rounds twice
        torch.testing.assert_close(weight, by_sgd[name], rtol=2e-7, atol=1e-9)


def test_lenet_one_step_equals_plain_torch() -> None:
    """Compare with the step in plain torch, from the same image, target and initial weights."""
    weights = run("run", "experiment=lenet_one_step")[2]
    (image, target), _ = datamodules.OneRandom(image=[1, 32, 32], outputs=10).load()
    torch.manual_seed(1)
    net = nets.LeNet((1, 32, 32), 10)
    nn.functional.mse_loss(net(image), target).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(weights[f"net.{name}"], parameter.data - 0.01 * parameter.grad, rtol=1e-5, atol=1e-7)


def test_resnet18_one_step_loads_a_weights_file_or_gives_one_line() -> None:
    assert run("null", "experiment=resnet18_one_step")[0]["params"] == 11_689_512
    torch.manual_seed(5)
    reference = torchvision.models.resnet18()
    torch.save(reference.state_dict(), "weights.pt")
    _, _, state = run("file", "experiment=resnet18_one_step", "model.weights=weights.pt", "optimizer.lr=0")
    assert all(torch.equal(state[f"net.{name}"], parameter) for name, parameter in reference.named_parameters())
    Path("garbage.pt").write_bytes(b"no weights")
    torch.save(nets.LeNet((1, 28, 28), 10).state_dict(), "lenet.pt")
    for file, message in [
        ("garbage.pt", "not a file of weights"),
        ("lenet.pt", "another net"),
        ("none.pt", "is not a file"),
    ]:
        with pytest.raises(Exception, match=r"model\.weights") as error:
            run(file.removesuffix(".pt"), "experiment=resnet18_one_step", f"model.weights={file}")
        assert message in format_error(error.value)


@pytest.mark.slow
def test_unreachable_imagenet_weights_give_one_line(shell, tmp_path: Path) -> None:
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path)}
    answer = shell("experiment=resnet18_one_step", "model.weights=DEFAULT", **offline)
    assert answer.returncode == 1
    assert "error: model.weights=DEFAULT: https://" in answer.stderr
    assert "could not be downloaded" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_finetuning_replaces_the_head_and_frozen_trains_only_the_head() -> None:
    torch.manual_seed(0)
    pretrained = torchvision.models.resnet18()
    torch.save(pretrained.state_dict(), "weights.pt")
    settings = {"loss": nn.CrossEntropyLoss(), "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    model = FineTuning(net=nets.ResNet18((3, 64, 64), 10), weights="weights.pt", frozen=True, **settings)
    assert model.net.fc.weight.shape == (10, 512)
    assert torch.equal(model.net.conv1.weight, pretrained.conv1.weight)
    assert [name for name, parameter in model.net.named_parameters() if parameter.requires_grad] == [
        "fc.weight",
        "fc.bias",
    ]


def test_double_softmax_cross_entropy_does_not_reach_zero() -> None:
    logits, classes = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([0, 1])
    assert losses.DoubleSoftmaxCrossEntropy()(logits, classes).item() == pytest.approx(0.3133, abs=5e-5)
    assert nn.functional.cross_entropy(logits, classes).item() == 0


def test_binary_cross_entropy_takes_log_odds() -> None:
    log_odds, classes = torch.randn(5, 1), torch.tensor([0, 1, 1, 0, 1])
    expected = nn.functional.binary_cross_entropy(log_odds.sigmoid().flatten(), classes.float())
    torch.testing.assert_close(losses.BinaryCrossEntropy()(log_odds, classes), expected)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["blobs", "blobs_logits", "logistic"])
def test_quick_experiments_reach_their_expected_figures(experiment: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        result, *_ = run("run", f"experiment={experiment}", "check=true")
    assert result["as_expected"] is True
    assert "NOT as expected" not in caplog.text
    assert ("predicted labels" in caplog.text) == experiment.startswith("blobs")


def test_blobs_equals_a_bare_loop_to_the_bit() -> None:
    """The steps within one call of ``training_step`` equal the steps of a plain loop, to the bit."""
    _, rows, weights = run("run", "experiment=blobs", "trainer.max_epochs=2", "model.steps_per_batch=100")
    (points, labels), _ = datamodules.Blobs(size=200, data_seed=2).load()
    torch.manual_seed(1)
    net = nets.MLP((2,), 2, hidden_sizes=[5, 5], activation="Sigmoid")
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.01), []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(points).softmax(1), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert float(rows[0]["val/loss"]) == pytest.approx(losses[0])
    assert float(rows[1]["train/loss"]) == pytest.approx(sum(losses[:100]) / 100)
    assert [row["step"] for row in rows] == ["0", "100", "200"]
    assert all(torch.equal(weights[f"net.{name}"], parameter) for name, parameter in net.named_parameters())


@pytest.mark.slow
def test_line_scan_sweep_finds_w_2(shell, tmp_path: Path) -> None:
    answer = shell("experiment=line_scan")
    assert answer.returncode == 0, answer.stderr
    (folder,) = tmp_path.glob("outputs/sweep/*")
    with open(folder / "summary.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 41
    assert rows[0]["model.net.weight"] == "2.0"
    assert float(rows[0]["val/loss"]) == 0
    for row in rows:  # mean((w x - 2 x)^2) over x = 1, 2, 3
        assert float(row["val/loss"]) == pytest.approx(
            (float(row["model.net.weight"]) - 2) ** 2 * 14 / 3, rel=1e-4, abs=1e-9
        )
    assert "python train.py model.net.weight=2.0 experiment=line_scan" in (folder / "summary.md").read_text()
    assert (folder / "summary.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in EXPERIMENTS
        if name != "line_scan"
    ],
)
def test_experiments_have_a_header_and_train_two_batches(
    experiment: str, random_images: Callable[[int, int], None]
) -> None:
    header = (PROJECT / "conf/experiment" / f"{experiment}.yaml").read_text().splitlines()[:7]
    assert header[0] == "# @package _global_"
    assert header[1] == f"# python train.py experiment={experiment}"
    assert sum(line.startswith("# Shelf: ") and line[9:] in SHELVES[:-1] for line in header) == 1
    assert any(line.startswith("# Published") for line in header)
    assert any(line.startswith("# Takes") for line in header)

    random_images(200, 200)
    small = [] if compose(f"experiment={experiment}").data.val_size == 0 else ["data.val_size=20"]
    limits = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_test_batches=2")
    if experiment == "cifar10_distillation":
        run("teacher", "experiment=cifar10_teacher", *limits)
        small.append("model.teacher=teacher")
    result, *_ = run("run", f"experiment={experiment}", *small, *SMALLER.get(experiment, []), *limits)
    assert result["status"] in ("finished", "diverged")
    assert result["steps"] >= 1


def test_mnist_dropout_cnn_logs_and_validates_as_often_as_its_tutorial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The tutorial logs a mean loss every 10 batches, and validates before training and after each epoch."""

    def load(self):
        images = torch.zeros(64 * 25, 1, 28, 28, dtype=torch.uint8)
        return (images, torch.zeros(64 * 25, dtype=torch.int64)), (images[:100], torch.zeros(100, dtype=torch.int64))

    monkeypatch.setattr(datamodules.MNIST, "load", load)
    with caplog.at_level("INFO"):
        _, rows, _ = run("run", "experiment=mnist_dropout_cnn", "trainer.max_epochs=2")
    assert "(640 of 1600 examples)" in caplog.text
    assert [(row["epoch"], row["step"]) for row in rows] == [
        ("0", "0"), ("1", "10"), ("1", "20"), ("1", "25"), ("2", "35"), ("2", "45"), ("2", "50"),
    ]  # fmt: skip
    assert [bool(row["val/loss"]) for row in rows] == [True, False, False, True, False, False, True]
    assert all(row["train/loss_step"] for row in rows if row["step"] in ("10", "20", "35", "45"))


# --- expectations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "passed"),
    [
        ({"test/acc": {"at_least": 0.9}}, True),
        ({"test/acc": {"at_least": 0.96}}, False),
        ({"test/acc": {"at_most": 0.9}}, False),
        ({"test/loss": {"at_least": 0}}, False),  # the run has no such metric
        ({"test/acc": {"published": 0.951, "rtol": 0.01}}, True),
        ({"test/acc": {"published": 0.951, "atol": 0.0001}}, False),
        ({"train/loss": {"published": [2.0, 1.0], "rtol": 1e-6}}, True),
        ({"train/loss": {"published": [2.0, 1.1], "rtol": 1e-6}}, False),
        ({"train/loss": {"published": [2.0], "rtol": 1e-6}}, False),
        ({"test/acc": {"published": 0.1}}, True),  # printed and not checked
        ({"train/loss": {"published": [9.0]}}, True),
    ],
)
def test_check_expected_compares_metrics_and_curves(expect: dict, passed: bool) -> None:
    (comparison,) = check_expected(
        expect, {"test/acc": 0.95}, [{"train/loss": 2.0}, {"train/loss_step": 3.0}, {"train/loss": 1.0}]
    )
    assert comparison.passed is passed


def test_figure_of_a_callback_is_compared_where_it_was_measured() -> None:
    expect = {"test/recognized": {"at_least": 0.5, "if_measured": True}}
    assert check_expected(expect, {"test/loss": 1.0}, []) == []
    (comparison,) = check_expected(expect, {"test/recognized": 0.4}, [])
    assert not comparison.passed


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["mnist_vae", "mnist_gan", "mnist_dcgan"])
def test_check_needs_no_judge(
    experiment: str, random_images: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("it would train")

    random_images(5300, 60)
    monkeypatch.setattr(train, "fit_and_test", stop)
    with pytest.raises(RuntimeError, match="it would train"):
        run("run", f"experiment={experiment}", "check=true")
    expect = compose(f"experiment={experiment}").expect
    assert all(expect[f"test/{name}"].if_measured for name in FIGURES)


def test_figure_that_is_only_published_is_not_checked() -> None:
    settings = ["model=blobs_mlp", "data=blobs", "trainer.max_epochs=1", "callbacks.pictures=null"]
    settings.append("ignore_overrides=[model*,data,trainer*,ignore_overrides]")
    result, *_ = run("run", *settings, "expect={test/acc:{published:0.123}}")
    assert result["published"] == {"test/acc": 0.123} and "as_expected" not in result
    with pytest.raises(ValueError, match="nothing is expected here"):
        run("checked", *settings, "expect={test/acc:{published:0.123}}", "check=true")


def test_has_diverged_if_the_training_loss_grew() -> None:
    rows = [{"train/loss": 1.0}, {"val/loss": 9.0}]
    assert not has_diverged([])
    assert not has_diverged([*rows, {"train/loss": 1.5}])
    assert has_diverged([*rows, {"train/loss": 2.5}])
    assert has_diverged([*rows, {"train/loss": float("nan")}])


@pytest.mark.slow
def test_missed_expectation_has_exit_code_3(shell) -> None:
    missed = shell("experiment=line_slow", "check=true", "expect.w.published=5", "logger=none")
    assert missed.returncode == 3
    assert "NOT as expected" in missed.stdout
    assert missed.stderr == "error: line_slow did not reach the expected w\n"


def line_of_results(experiment: str, seed: int, figure: str, value: str, job: str = "") -> dict[str, str]:
    run = {"job": job, "epochs": "2", "params": "5000", "seconds": "1.25"}
    return {"experiment": experiment, "seed": str(seed), "figure": figure, "value": value} | run


@pytest.mark.parametrize(
    ("experiment", "figures", "cells"),
    [
        ("mnist_cnn", {"test/acc": ["0.98", "0.99"]}, "98.50 ± 0.71 % (2) | as published"),
        ("mnist_cnn", {"test/acc": ["0.99"]}, "99.00 % (1) | "),
        ("mnist_cnn", {"test/acc": ["0.9868", "0.9869"]}, "98.69 ± 0.01 % (2) | as published"),  # 98 % is printed
        ("mnist_residual", {"test/acc": ["0.979", "0.979"]}, "97.90 ± 0.00 % (2) | lower"),
        ("mnist_vae", {"test/loss": ["105.54", "105.72"]}, "test loss 105.6 ± 0.1 (2) | as published"),
        ("mnist_vae", {"test/loss": ["105.6", "105.6"]}, "test loss 105.6000 (2) | test loss higher"),
        ("mnist_autoencoder", {"test/loss": ["0.0375"]}, "test loss 0.0375 (1) | "),
        (
            "mnist_gan",
            {"train/g_loss": ["3.62", "3.82", "3.7"], "train/d_loss": ["0.074", "0.081", "0.08"]},
            "train g_loss 3.7 ± 0.1 (3); train d_loss 0.078 ± 0.004 (3) | train g_loss higher; train d_loss lower",
        ),
        (
            "blobs",
            {"test/acc": ["1", "1"], "val/loss": ["0.32", "0.32"]},
            "100.00 ± 0.00 % (2); val loss 0.3200 (2) | ",
        ),
        (
            "mnist_hello_lightning",
            {"test/acc": ["0.92", "0.924"], "val/acc": ["0.87 0.9 0.91", "0.89 0.92 0.93"]},
            "92.20 ± 0.28 % (2); val acc 88.0 91.0 92.0 % (2) | as published",
        ),
    ],
)
def test_row_of_results_has_every_measured_figure(experiment: str, figures: dict[str, list[str]], cells: str) -> None:
    lines = [
        line_of_results(experiment, seed, figure, value)
        for figure, values in figures.items()
        for seed, value in enumerate(values)
    ]
    row = results.row(experiment, lines)
    assert row.startswith(f"| `{experiment}` | ")
    assert row.endswith(f" | {cells} | 5,000 | 2 | 1.2 s |")


def test_row_of_a_sweep_has_a_figure_for_each_job() -> None:
    lines = [
        line_of_results("fashion_optimizers", seed, "test/acc", f"0.8{value}", f"optimizer={name}")
        for seed in (1, 2)
        for name, value in (("by_hand", 8), ("adam", 7 + seed))
    ]
    row = results.row("fashion_optimizers", lines)
    assert row.endswith(" | by_hand 88.00 ± 0.00 % (2); adam 88.50 ± 0.71 % (2) | by_hand lower | 5,000 | 2 | 2.5 s |")


def test_time_of_a_resumed_run_is_not_shown() -> None:
    """Its seconds are those of the last part."""
    whole, resumed = (line_of_results("mnist_cnn", seed, "test/acc", "0.98") for seed in (1, 2))
    resumed["seconds"] = ""
    assert results.row("mnist_cnn", [whole, resumed]).endswith("| 1.2 s |")
    assert results.row("mnist_cnn", [resumed]).endswith("| 2 |  |")


def test_results_are_of_every_experiment_and_have_their_sources() -> None:
    assert sorted(results.SEEDS) == EXPERIMENTS
    assert results.describe("mnist_dcgan")[2:] == ("After dcgan of pytorch/examples.", "pictures")
    assert results.describe("line_slow").source.startswith("Readings: Stevens, Antiga, Viehmann, Deep Learning with Py")
    assert results.describe("fashion_optimizers")[2:] == (
        "After tutorial 4 of the UvA deep learning course (Lippe), in Lightning's tutorials.",
        "test accuracy: 89.09, 88.83 and 89.46 %",
    )
    assert all(results.describe(experiment).published for experiment in EXPERIMENTS)


def test_both_readmes_have_the_results_of_the_file() -> None:
    for name, (header, shelves) in results.LANGUAGES.items():
        assert results.tables(header, shelves) in (PROJECT / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_results_of_a_run_and_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "TABLE", tmp_path / "results.csv")
    for experiment in ("line_scan", "line_slow", "line_slow"):
        results.measure(experiment, 2, tmp_path / "runs")
    lines = results.read_table()
    assert [line["figure"] for line in lines[:3]] == ["train/loss", "w", "b"]
    losses = [float(value) for value in lines[0]["value"].split()]
    assert losses == pytest.approx(compose("experiment=line_slow").expect["train/loss"].published, rel=1e-6)
    assert (lines[1]["experiment"], lines[1]["seed"], lines[1]["job"], lines[1]["epochs"]) == (
        "line_slow",
        "2",
        "",
        "10",
    )
    jobs = {line["job"]: float(line["value"]) for line in lines[3:]}
    assert len(jobs) == 41
    assert min(jobs, key=jobs.__getitem__) == "model.net.weight=2.0"


def test_run_that_has_ended_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.subprocess, "run", lambda *_, **__: pytest.fail("a training started"))
    (run_dir := tmp_path / "xor" / "1").mkdir(parents=True)
    (run_dir / "result.json").write_text('{"status": "finished", "overrides": [], "metrics": {}}')
    assert results.train("xor", 1, tmp_path) == run_dir


@pytest.mark.parametrize(
    ("overrides", "changing"),
    [
        (["callbacks=judge", "callbacks.judge.run=last", "monitor=val/frechet", "mode=min", "metrics=classes"], []),
        (["callbacks=tensorboard_extras", "callbacks.tensorboard_extras.examples=5", "callbacks=default"], []),
        (["callbacks=[judge,predicted_labels]", "~callbacks.pictures", "debug=traceback"], []),
        (["+trainer.enable_progress_bar=false", "trainer.profiler=simple"], []),
        (["callbacks=[judge,early_stopping]", "debug=fast"], ["all"]),
        (["callbacks=early_stopping", "monitor=val/acc"], ["callbacks=early_stopping"]),
        (["callbacks=judges", "callbacks.early_stopping.patience=2"], ["all"]),
    ],
)
def test_overrides_that_only_watch_a_training_change_no_figures(overrides: list[str], changing: list[str]) -> None:
    assert relevant_overrides(overrides) == (overrides if changing == ["all"] else changing)


def test_teacher_that_must_be_given_keeps_nothing_from_being_compared() -> None:
    cfg = compose("experiment=cifar10_distillation")
    cfg.choices.overrides = ["model.teacher=RUN", "model.temperature=3"]
    assert incomparable_overrides(cfg) == ["model.temperature=3"]


@pytest.mark.parametrize(
    ("command", "changing"),
    [
        ("fashion_optimizers optimizer=adam", []),
        ("fashion_optimizers optimizer=adam +optimizer.weight_decay=1", ["+optimizer.weight_decay=1"]),
        ("line_slow model=line_by_hand model.net.weight=0.5", ["model.net.weight=0.5"]),
        ("fashion_optimizers checkpoint.tested=last monitor=train/loss", ["checkpoint.tested=last"]),
        ("fashion_optimizers monitor=train/loss mode=min", ["monitor=train/loss", "mode=min"]),
        ("xor monitor=train/loss checkpoint.every_n_steps=9", []),
        ("xor monitor=train/loss checkpoint.tested=best", ["checkpoint.tested=best", "monitor=train/loss"]),
    ],
)
def test_setting_that_changes_the_figures_keeps_a_run_from_being_compared(command: str, changing: list[str]) -> None:
    cfg = compose(*(overrides := f"experiment={command}".split()))
    cfg.choices.overrides = overrides
    assert incomparable_overrides(cfg) == changing


def test_check_without_expectations_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is expected here"):
        run("run", "experiment=line_scan", "check=true")
    assert list(Path("run").iterdir()) == []


@pytest.mark.slow
def test_expectations_are_not_compared_after_overrides(shell) -> None:
    answer = shell("experiment=line_slow", "check=true", "optimizer.lr=1e-3", "seed=4", "logger=none")
    assert answer.returncode == 3
    line = "error: line_slow was not compared with what it expects, because of these overrides: optimizer.lr=1e-3\n"
    assert answer.stderr == line
    assert "not compared" in answer.stdout
    assert "because of these overrides: optimizer.lr=1e-3" in answer.stdout
    assert "seed" not in answer.stdout.split("not compared")[1].splitlines()[0]
