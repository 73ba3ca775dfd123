"""debug=: quick checks of an experiment before a long training."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from callbacks.batch_gradient_verification import BatchGradientVerification
from cli.build import build, load_run
from cli.compose import compose
from lit_models import VAE
from tests.test_classics import SmallTrunk

IMAGES = ("trainer.accelerator=cpu", "logger=none", "callbacks.pictures=null")


@pytest.fixture
def random_dataset(random_images: Callable[[int, int], None]) -> None:
    random_images(600, 50)


def run(*overrides: str) -> dict:
    return train.train_config(compose("data.val_size=100", *IMAGES, *overrides), Path("run"))


def test_debug_fast_runs_one_batch_of_each_stage(random_dataset: None) -> None:
    result = run("experiment=mnist_dropout_cnn", "debug=fast", "data.validate_on=val")
    assert (result["epochs"], result["steps"], result["status"]) == (1, 1, "finished")
    assert {"train/loss", "val/acc", "test/acc"} <= set(result["metrics"])
    assert Path("run/checkpoints/last.ckpt").exists()


def test_short_debug_runs_do_not_become_outputs_last(random_dataset: None) -> None:
    short = ("model=mlp", "data.val_size=100", *IMAGES, "trainer.limit_train_batches=1", "trainer.max_epochs=1")
    for folder, more, last in (
        ("first", (), "first"),
        ("second", ("debug=fast",), "first"),
        ("third", ("debug=profile",), "first"),
        ("fourth", ("debug=traceback",), "fourth"),  # this one trains to the end
        ("fifth", (), "fifth"),
    ):
        train.train_config(compose(*short, *more), Path(folder))
        assert Path("outputs/last").resolve().name == last


@pytest.mark.slow
def test_few_gradient_steps_are_warned_about(random_dataset: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hint = "that is 8 gradient steps in all: a smaller data.batch_size"
    for settings, is_warned in (
        (["trainer.max_epochs=2"], True),
        (["trainer.max_epochs=20"], False),
        (["trainer.max_epochs=2", "model.steps_per_batch=10"], False),
        (["trainer.max_epochs=8", "trainer.accumulate_grad_batches=9"], True),
        (["debug=fast"], False),
        (["trainer.limit_train_batches=0.5"], False),  # as debug=limit does: few by intention
    ):
        caplog.clear()
        run("model=mlp", "data.batch_size=128", *settings)
        assert (hint in caplog.text) == is_warned
        assert ("gradient steps in all" in caplog.text) == is_warned


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn", "dropout_cnn", "lenet", "quick_cnn", "siamese"])
def test_debug_overfit_memorizes_one_batch(model: str, random_dataset: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if model == "siamese":  # whose pairs are drawn anew in every epoch, but not without a shuffle
        monkeypatch.setattr("lit_models.nets.siamese.ResNet", SmallTrunk)
    data = "mnist_pairs" if model == "siamese" else "mnist"
    result = run(f"model={model}", f"data={data}", "debug=overfit", "data.batch_size=32")
    assert result["steps"] == 200
    assert result["as_expected"]
    assert result["metrics"]["val/acc"] >= 0.99


@pytest.mark.slow
def test_debug_overfit_fails_if_nothing_is_learned(random_dataset: None) -> None:
    with pytest.raises(Exception, match="did not reach the expected val/acc"):
        run("model=mlp", "debug=overfit", "data.batch_size=32", "optimizer.lr=0")


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("gan", "check=true: GAN cannot reach val/acc, it measures test/d_loss, test/g_loss, train/d_loss"),
        ("vae", "check=true: VAE cannot reach val/acc, it measures test/kl, test/loss, test/reconstruction, train/kl"),
        (
            "forward_forward",
            "debug=overfit: a forward-forward net learns from one wrong label for each image of a batch",
        ),
    ],
)
def test_debug_overfit_is_refused_where_it_means_nothing(model: str, line: str, random_dataset: None) -> None:
    with pytest.raises(ValueError) as error:
        run(f"model={model}", "data=mnist", "debug=overfit", "data.batch_size=32")
    assert str(error.value).startswith(line)
    assert not Path("run").exists()


class Undeclared(VAE):
    """Does not say what it measures."""


def test_expected_metric_that_was_not_measured_is_named(random_dataset: None) -> None:
    with pytest.raises(Exception, match=r"^vae_on_mnist did not measure val/acc; there are train/kl, train/loss"):
        run("debug=overfit", "model=vae", f"model._target_={__name__}.Undeclared", "trainer.max_epochs=1")


def test_debug_limit_uses_a_tenth_of_the_batches(random_dataset: None) -> None:
    assert run("debug=limit", "data.batch_size=10")["steps"] == 5


def test_debug_profile_prints_the_slowest_actions(random_dataset: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run("debug=profile", "data.batch_size=100")
    (table,) = [record.message for record in caplog.records if "share" in record.message]
    assert "run_training_batch" in table
    assert len(table.strip().splitlines()) == 16
    load_run("run", "last")  # the stored config names the profiler and is accepted


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_report_of_a_profiler_is_printed(profiler: str, random_dataset: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run("debug=fast", f"trainer.profiler={profiler}")
    (report,) = [record.message for record in caplog.records if "FIT Profiler Report" in record.message]
    assert "run_training_batch" in report


def test_summary_of_the_model_is_printed(random_dataset: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run("debug=fast", "trainer.enable_model_summary=true")
    assert "Trainable params" in caplog.text


def test_debug_fast_works_in_float64(random_dataset: None) -> None:
    assert run("debug=fast", "trainer.precision=64-true")["status"] == "finished"


class MixesExamples(nn.Module):
    """A net whose reshape mixes the pixels of different images of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(28 * 28, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.transpose(0, 3).reshape(len(images), -1))


@pytest.mark.parametrize(
    ("net", "warnings"), [(MixesExamples(), 1), (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 0)]
)
def test_net_that_mixes_examples_of_a_batch_is_warned_about(
    net: nn.Module, warnings: int, random_dataset: None, caplog: pytest.LogCaptureFixture
) -> None:
    datamodule, model = build(compose("data.val_size=100"))
    model.net = net
    datamodule.setup()

    class Trainer:
        pass

    Trainer.datamodule = datamodule
    BatchGradientVerification().on_train_start(Trainer(), model)
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == warnings
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training


def test_first_log_line_describes_net_data_and_device(random_dataset: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run("trainer.max_epochs=1", "data.batch_size=100")
    line = "CNN, 8,490 parameters; MNIST, 500 examples in 5 batches; validated on 100 held out; cpu"
    assert line in [record.message for record in caplog.records]


def test_first_log_line_names_a_limited_training_set(random_dataset: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run("trainer.max_epochs=1", "data.batch_size=100", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1")
    line = "; MNIST, 200 of 500 examples in 2 batches; validated on 1 batch of 100 held out; "
    assert any(line in record.message for record in caplog.records)


def test_first_loss_above_guessing_is_warned_about(random_dataset: None, caplog: pytest.LogCaptureFixture) -> None:
    run("trainer.max_epochs=1", "data.batch_size=100", "data.std=[0.001]")
    assert any("to guess among 10 classes gives ln(10) = 2.30" in record.message for record in caplog.records)
