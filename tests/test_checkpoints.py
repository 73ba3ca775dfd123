"""The files of checkpoints: they hold the weights that the test has measured, and damage is noticed."""

import errno
import json
import math
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

import evaluate
import train
from cli.build import build, load_run
from cli.compose import compose
from lit_models.finetuning import _read
from runs.checkpoint import find_checkpoint, load_checkpoint
from tests.conftest import run

RUN = ("model=blobs_mlp", "data=blobs", "data.val_size=60", "data.batch_size=35", "model.steps_per_batch=1")
RUN += ("trainer.accelerator=cpu", "threads=1", "logger=none", "callbacks=default", "callbacks.pictures=null")
RUN += ("scheduler=none", "trainer.max_epochs=3")
EVALUATE = {"run": "run", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
AVERAGE = "+callbacks.average._target_=lightning.pytorch.callbacks"
AVERAGING = {
    "SWA": (
        f"{AVERAGE}.StochasticWeightAveraging",
        "+callbacks.average.swa_lrs=0.1",
        "+callbacks.average.swa_epoch_start=1",
    ),
    "EMA": (f"{AVERAGE}.EMAWeightAveraging", "+callbacks.average.decay=0.9"),
    "callbacks=swa": ("callbacks=swa", "callbacks.pictures=null", "callbacks.swa.swa_epoch_start=1"),
    "callbacks=ema": ("callbacks=ema", "callbacks.pictures=null", "callbacks.ema.decay=0.9"),
}


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Return a list to which each test appends the weights that it measures."""
    weights: list[dict[str, torch.Tensor]] = []
    test = pl.Trainer.test

    def record(self: pl.Trainer, model: pl.LightningModule, **options: object) -> object:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return test(self, model, **options)

    monkeypatch.setattr(pl.Trainer, "test", record)
    return weights


def assert_saved(weights: dict[str, torch.Tensor]) -> None:
    saved = load_run("run", "last")[2].state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in saved)


@pytest.mark.parametrize("name", AVERAGING)
def test_last_ckpt_holds_the_tested_weights(name: str, tested: list) -> None:
    run("run", *RUN, *AVERAGING[name])
    assert_saved(tested[-1])
    run("run", "resume=run", "trainer.max_epochs=5", *AVERAGING[name])
    assert_saved(tested[-1])
    assert not torch.equal(tested[0]["net.1.weight"], tested[1]["net.1.weight"])


@pytest.mark.parametrize("name", ["callbacks=swa", "callbacks=ema"])
def test_average_after_a_resume_is_that_of_an_uninterrupted_run(name: str, tested: list) -> None:
    run("whole", *RUN, *AVERAGING[name])
    run("run", *RUN, *AVERAGING[name], "trainer.max_epochs=2")
    run("run", "resume=run", "trainer.max_epochs=3")
    whole, first, resumed = tested
    assert all(torch.equal(whole[weight], resumed[weight]) for weight in whole)
    assert not all(torch.equal(whole[weight], first[weight]) for weight in whole)
    assert_saved(resumed)


@pytest.mark.parametrize(("start", "epochs", "warns"), [(0.8, 2, True), (0.8, 3, False), (1, 3, True), (2, 3, False)])
def test_average_with_the_untrained_weights_is_said(
    start: float, epochs: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = compose("model=blobs_mlp", "data=blobs", "callbacks=swa", f"callbacks.swa.swa_epoch_start={start}")
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    train.check_run(cfg, trainer, build(cfg)[1])
    assert ("averages the untrained weights too" in caplog.text) == warns


class Zero(pl.Callback):
    """Changes the weights after the last step."""

    measures = ()

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for weight in pl_module.parameters():
            weight.zero_()


def test_training_resumes_with_the_weights_of_its_last_step(tested: list) -> None:
    run("whole", *RUN)
    run("run", *RUN, "trainer.max_epochs=2", f"+callbacks.zero._target_={__name__}.Zero")
    assert not any(weight.any() for weight in tested[-1].values())
    assert_saved(tested[-1])
    run("run", "resume=run", "trainer.max_epochs=3", "+callbacks.zero=null")
    assert all(torch.equal(tested[0][name], tested[-1][name]) for name in tested[0])


@pytest.mark.parametrize("name", AVERAGING)
def test_run_that_was_killed_before_its_test_tests_the_saved_weights(
    name: str, tested: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("run", *RUN, *AVERAGING[name])
    Path("run/result.json").unlink()
    run("run", "resume=run", *AVERAGING[name])
    first, second = tested
    assert all(torch.equal(first[weight], second[weight]) for weight in first)
    assert_saved(first)


def test_writing_into_one_checkpoint_leaves_the_other() -> None:
    run("run", *RUN, "trainer.max_epochs=1")
    best, last = (Path(f"run/checkpoints/{name}.ckpt") for name in ("best", "last"))
    saved = best.read_bytes()
    assert last.read_bytes() == saved
    last.write_bytes(b"another")  # as cp does
    assert best.read_bytes() == saved


def test_flipped_bit_in_a_checkpoint_is_noticed() -> None:
    """torch reads such a file without an error."""
    run("run", *RUN, "trainer.max_epochs=1")
    file = Path("run/checkpoints/last.ckpt")
    weight = load_checkpoint(file)["state_dict"]["net.1.weight"]
    content = bytearray(file.read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)
    with pytest.raises(
        ValueError, match=r"last\.ckpt is damaged .*: its part data/\d+ has changed since it was written"
    ):
        load_checkpoint(file)
    with pytest.raises(ValueError, match=r"model\.weights=.* its part data/\d+ has changed since it was written"):
        _read(file)


UNKEPT = {
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0 leaves nothing to train on",
    "+trainer.val_check_interval=0": "trainer.val_check_interval=0 must be a number of batches or a part of an epoch",
    "trainer.strategy=ddp_spawn": "trainer.strategy: processes that are copies of this one cannot give it the run back",
    f"{AVERAGE}.BatchSizeFinder": "BatchSizeFinder trains on trial and goes back, which a run here cannot",
    f"{AVERAGE}.LearningRateMonitor": "LearningRateMonitor writes to a logger: logger=tensorboard, not logger=none",
    f"{AVERAGE}.LearningRateFinder": "LearningRateFinder trains on trial and goes back, which a run here cannot",
}


def test_logger_that_would_write_over_metrics_csv_is_refused() -> None:
    logger = ("logger=none", "+logger._target_=lightning.pytorch.loggers.CSVLogger")
    with pytest.raises(ValueError, match=r"CSVLogger would write over metrics\.csv of the run: leave out"):
        run("run", *RUN, *logger, "+logger.name=''", "+logger.version=''")
    assert [*Path("run").iterdir()] == []
    run("run", *RUN, *logger, "trainer.max_epochs=1")
    assert Path("run/lightning_logs/version_0/metrics.csv").is_file()
    assert Path("run/metrics.csv").read_text().startswith("epoch,step,")


@pytest.mark.parametrize("override", UNKEPT)
def test_what_cannot_be_trained_and_kept_is_refused_before_anything_is_written(override: str) -> None:
    with pytest.raises(ValueError) as error:
        run("run", *RUN, override)
    assert str(error.value).startswith(UNKEPT[override])
    assert [*Path("run").iterdir()] == []


def test_weights_of_classes_are_a_list() -> None:
    plain, weighted = run("plain", *RUN), run("run", *RUN, "+model.loss.weight=[1,5]")
    assert weighted["metrics"]["test/loss"] != plain["metrics"]["test/loss"]
    loss = load_run("run", "last")[2].loss
    assert loss.weight.tolist() == [1, 5]
    found = evaluate.evaluate_config(OmegaConf.create(EVALUATE), Path("run"))["metrics"]
    assert found["test/loss"] == weighted["metrics"]["test/loss"]
    assert run("run", "resume=run", "trainer.max_epochs=4")["epochs"] == 4


@pytest.mark.parametrize(
    ("weight", "line"),
    [
        ("[1,5,2]", "model.loss.weight has 3 numbers, and the data has 2 classes"),
        ("[1,much]", "model.loss.weight=[1, 'much'] must be a list of numbers, one for each class"),
        ("5", "model.loss.weight=5 must be a list of numbers, one for each class"),
    ],
)
def test_wrong_weights_of_classes_give_one_line(weight: str, line: str) -> None:
    with pytest.raises(ValueError) as error:
        run("run", *RUN, f"+model.loss.weight={weight}")
    assert str(error.value) == line


def test_evaluation_that_is_not_finite_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    run("run", *RUN, "trainer.max_epochs=1")
    monkeypatch.setattr("callbacks.logged_metrics", lambda *_: {"test/loss": math.inf, "test/acc": math.nan})
    evaluate.evaluate_config(OmegaConf.create(EVALUATE), Path("run"))
    content = Path("run/evaluations/test_last.json").read_text()
    assert json.loads(content, parse_constant=pytest.fail)["metrics"] == {"test/loss": None, "test/acc": None}


def test_last_run_is_found_without_symbolic_links(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.symlink", fail)
    for name in ("second", "first", "third"):
        Path("outputs/blobs").mkdir(parents=True, exist_ok=True)
        run(f"outputs/blobs/{name}", *RUN, "trainer.max_epochs=1")
    assert "outputs/last does not point at this run" in caplog.text
    Path("outputs/blobs/third/checkpoints/last.ckpt").unlink()  # ended before its first epoch did
    os.utime("outputs/blobs/second/config.yaml", (1, 1))
    Path("outputs/blobs/other/checkpoints").mkdir(parents=True)
    Path("outputs/blobs/other/checkpoints/last.ckpt").touch()  # of another program
    assert find_checkpoint("last")[0] == Path("outputs/blobs/first").resolve()
    assert [path.name for path in Path("outputs").iterdir()] == ["blobs"]  # nothing is left behind
