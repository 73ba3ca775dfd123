"""Any LightningModule trains, resumes, is evaluated and swept here, as Lightning's documentation writes them."""

import csv
import itertools
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import evaluate
import train
from callbacks.progress_bar import ProgressBar, _format_speed, _format_time
from cli.build import build
from cli.compose import compose
from lit_models.exact import ExactModule
from runs import safety
from runs.format import format_metric
from tests.conftest import PROJECT, Killed, make_paths
from tests.kill_and_resume import differences, final_state
from tests.test_readme import _not_copied

IMPORTABLE = safety.IMPORTABLE
SHORT = ("data.val_size=40", "data.batch_size=16", "trainer.accelerator=cpu", "trainer.max_epochs=3", "threads=1")


@pytest.fixture(autouse=True)
def tiny(random_images: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    random_images(200, 50)  # ten batches of 16
    for name in ("MODULES", "IMPORTABLE"):  # as if the classes of this file were in lit_models/
        monkeypatch.setattr(safety, name, (*getattr(safety, name), "tests."))


def run(model: type, *overrides: str, folder: str = "run", logger: str = "none", **arguments: Any) -> dict:
    cfg = compose(*SHORT, f"logger={logger}", *overrides)
    if not cfg.resume:
        cfg.model = {"_target_": f"{model.__module__}.{model.__qualname__}", **arguments}
    Path(folder).mkdir(exist_ok=True)
    return train.train_config(cfg, Path(folder))


def rows(folder: str = "run") -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as lines:
        return list(csv.DictReader(lines))


class LitAutoEncoder(pl.LightningModule):
    """Lightning in 15 minutes, and the pages on validation and test: names with an underscore."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 28 * 28))

    def training_step(self, batch, batch_idx):
        x, _ = batch
        x = x.view(x.size(0), -1)
        z = self.encoder(x)
        x_hat = self.decoder(z)
        loss = F.mse_loss(x_hat, x)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        x, _ = batch
        x = x.view(x.size(0), -1)
        test_loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("test_loss", test_loss)

    def validation_step(self, batch, batch_idx):
        x, _ = batch
        x = x.view(x.size(0), -1)
        val_loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("val_loss", val_loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Noisy(pl.LightningModule):
    """A classifier with dropout, hyperparameters, a schedule that follows a metric, and all ways to log."""

    def __init__(self, num_classes: int, optimizer: Any, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Dropout(), nn.Linear(width, num_classes))
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/both", loss, on_step=True, on_epoch=True)
        self.log("train/loss", loss, on_epoch=True, on_step=False, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log_dict({"val/loss": F.cross_entropy(logits, batch[1])}, prog_bar=True)
        self.accuracy(logits, batch[1])
        self.log("val/acc", self.accuracy)

    def configure_optimizers(self):
        optimizer = self.hparams.optimizer(self.parameters())
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


class PlainGAN(pl.LightningModule):
    """Manual optimization of two optimizers, nothing returned, no validation and no test."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.G, self.D = nn.Linear(4, 784), nn.Linear(784, 1)

    def training_step(self, batch):
        real = batch[0].flatten(1)
        g_opt, d_opt = self.optimizers()
        fake = self.G(torch.randn(len(real), 4))
        d_loss = (self.D(fake.detach()) - self.D(real)).tanh().mean()
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()
        g_loss = -self.D(fake).tanh().mean()
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.G.parameters(), lr=1e-3), torch.optim.Adam(self.D.parameters(), lr=1e-3)


class Silent(LitAutoEncoder):
    """Returns nothing and logs nothing."""

    validation_step = test_step = pl.LightningModule.test_step

    def training_step(self, batch, batch_idx):
        return None


class ExactGAN(ExactModule):
    """The same GAN on the base that makes it exact."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed=seed)
        self.automatic_optimization = False
        self.G, self.D = nn.Linear(4, 784), nn.Linear(784, 1)

    configure_optimizers = PlainGAN.configure_optimizers

    def log_dict(self, metrics, **options):
        if "g_loss" in metrics:
            self.accumulate("train", 16, metrics)
        else:
            super().log_dict(metrics, **options)

    training_step = PlainGAN.training_step


def test_module_of_lightnings_documentation_trains_resumes_and_evaluates(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = run(LitAutoEncoder, logger="tensorboard")
    assert result["status"] == "finished"
    assert (result["epochs"], result["steps"], result["monitor"], result["mode"]) == (3, 30, "val/loss", "min")
    assert set(result["metrics"]) == {"train/loss", "val/loss", "test/loss"}
    table = rows()
    assert list(table[0]) == ["epoch", "step", "train/loss", "val/loss", "seconds"]
    assert float(table[2]["train/loss"]) < float(table[0]["train/loss"])
    best = min(table, key=lambda row: float(row["val/loss"]))
    assert torch.load("run/checkpoints/best.ckpt")["epoch"] == int(best["epoch"]) - 1
    assert "epoch 3/3  train loss" in caplog.text and "test loss" in caplog.text

    events = EventAccumulator(Path("run/dashboard.txt").read_text().strip()).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [10, 20, 30]
    assert [event.step for event in events.Scalars("val_loss")] == [10, 20, 30]  # as the module calls it
    written = evaluate.evaluate_config(OmegaConf.merge(EVALUATE, {"run": "run"}), Path("run"))
    assert written["metrics"]["test/loss"] == pytest.approx(result["metrics"]["test/loss"])


EVALUATE = OmegaConf.create(
    {"run": "run", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
)


class Late(LitAutoEncoder):
    """Builds a layer where Lightning recommends it for large models."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = None

    def configure_model(self) -> None:
        if self.decoder is None:
            self.decoder = nn.Linear(3, 784)


class ExactLate(ExactModule):
    """The same on the base that has a configure_model of its own."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed=seed)
        self.layer: nn.Linear | None = None

    def configure_model(self) -> None:
        if self.layer is None:
            self.layer = nn.Linear(784, 1)
        super().configure_model()

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def step(self, batch, stage):
        loss = self.layer(batch[0].flatten(1)).square().mean()
        self.accumulate(stage, len(batch[0]), {"loss": loss})
        return loss

    configure_optimizers = LitAutoEncoder.configure_optimizers


@pytest.mark.parametrize("model", [Late, ExactLate])
def test_layers_that_are_built_in_configure_model_are_loaded(model: type) -> None:
    result = run(model)
    assert evaluate.evaluate_config(EVALUATE, Path("run"))["metrics"]["test/loss"] == result["metrics"]["test/loss"]


def test_loss_of_an_epoch_is_the_mean_over_its_batches() -> None:
    """It is logged in each step alone, so Lightning itself knows only that of the last batch."""
    seen: list[float] = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            seen.append(outputs["loss"].item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitAutoEncoder, "configure_callbacks", lambda self: [Spy()])
        run(LitAutoEncoder, "trainer.max_epochs=1")
    assert float(rows()[0]["train/loss"]) == pytest.approx(sum(seen) / 10)


def test_every_way_to_log_gives_the_same_metric_name() -> None:
    result = run(Noisy)
    assert list(rows()[0]) == ["epoch", "step", "train/loss", "train/both", "val/loss", "val/acc", "seconds"]
    assert rows()[0]["train/both"] == rows()[0]["train/loss"]
    assert (result["monitor"], result["mode"]) == ("val/acc", "max")
    written = evaluate.evaluate_config(EVALUATE, Path("run"))  # without a test step, by the validation step
    assert set(written["metrics"]) == {"test/loss", "test/acc"}
    assert "test/loss" not in result["metrics"]


@pytest.mark.parametrize("model", [LitAutoEncoder, Noisy, PlainGAN, ExactGAN])
def test_any_procedure_resumes_bitwise_after_an_epoch(model: type) -> None:
    """Dropout, noise and a schedule that follows a metric included."""
    run(model, folder="whole")
    run(model, "trainer.max_epochs=1", folder="parts")
    torch.rand(7)
    run(model, "trainer.max_epochs=2", "resume=parts", folder="parts")
    run(model, "trainer.max_epochs=3", "resume=parts", folder="parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


@pytest.mark.parametrize("step", [3, 13, 26])
def test_two_optimizers_resume_bitwise_within_an_epoch(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(ExactGAN, folder="whole")
    training_step = ExactGAN.training_step

    def die(self, batch):
        if self.global_step == 2 * step:
            raise Killed
        training_step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ExactGAN, "training_step", die)
        run(ExactGAN, "checkpoint.every_n_steps=2", folder="parts")
    assert torch.load("parts/checkpoints/last.ckpt")["global_step"] == 2 * step
    run(ExactGAN, "resume=parts", folder="parts")
    run(ExactGAN, "checkpoint.every_n_steps=2", folder="rhythm")
    assert differences(final_state(Path("rhythm")), final_state(Path("parts"))) == []
    assert differences(final_state(Path("whole"))[1], final_state(Path("parts"))[1]) == []


def test_plain_module_warns_when_it_resumes_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(Noisy, folder="whole")
    training_step = Noisy.training_step

    def die(self, batch, batch_idx):
        if self.global_step == 14:
            raise Killed
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Noisy, "training_step", die)
        run(Noisy, "checkpoint.every_n_steps=2", folder="parts")
    caplog.clear()
    run(Noisy, "resume=parts", folder="parts")
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "resumed after batch 4 of 10 of epoch 2: the other batches follow, but what Noisy logs of this epoch is "
        "measured on those alone (ExactModule keeps the whole epoch)"
    ]
    whole, parts = (torch.load(f"{name}/checkpoints/last.ckpt") for name in ("whole", "parts"))
    assert differences(whole["state_dict"], parts["state_dict"]) == []  # the same batches, the same dropout
    assert differences(whole["optimizer_states"], parts["optimizer_states"]) == []
    assert rows("whole")[1]["train/loss"] != rows("parts")[1]["train/loss"]
    assert rows("whole")[2]["train/loss"] == rows("parts")[2]["train/loss"]


@pytest.mark.parametrize(
    ("speed", "text"),
    [(0.2, "5.0 s/batch"), (0.96, "1 batch/s"), (1.4, "1 batch/s"), (13.3, "13 batches/s"), (2000, "2,000 batches/s")],
)
def test_speed_is_in_batches_or_in_seconds(speed: float, text: str) -> None:
    assert _format_speed(speed) == text


@pytest.mark.parametrize(("seconds", "text"), [(9, "0:09"), (185, "3:05"), (3600, "1:00:00"), (81994, "22:46:34")])
def test_time_left_has_hours(seconds: int, text: str) -> None:
    assert _format_time(seconds) == text


@pytest.mark.parametrize(("slow_batch", "is_logged"), [(20, True), (29, False)])
def test_rest_of_the_training_is_logged_where_there_is_one(
    slow_batch: int, is_logged: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 30 batches one takes six seconds. Before it there is nothing to say yet."""
    caplog.set_level(logging.INFO)
    times = itertools.chain([0.0] * slow_batch, itertools.repeat(6.0))  # the first one is the start
    monkeypatch.setattr("callbacks.progress_bar.time", SimpleNamespace(monotonic=lambda: next(times)))
    run(LitAutoEncoder)
    assert ("for the rest" in caplog.text) == is_logged
    assert "0:00 for the rest" not in caplog.text
    if is_logged:  # 19 batches after the first one, in six seconds
        assert "3 batches/s: 0:03 for the rest" in caplog.text


def test_progress_shows_metrics_logged_with_prog_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressBar, "enable", lambda self: setattr(self, "_live", True))
    monkeypatch.setattr("callbacks.progress_bar.REFRESH_SECONDS", 0)
    run(PlainGAN, folder="gan")
    assert re.search(r"100 %  g_loss -?[\d.]+  d_loss -?[\d.]+  [\d,]+ batches/s", capsys.readouterr().err)
    run(LitAutoEncoder, folder="autoencoder")  # shows nothing, and returns a loss
    assert re.search(r"100 %  loss [\d.]+  [\d,]+ batches/s", capsys.readouterr().err)
    run(ExactGAN, folder="exact")
    assert re.search(r"100 %  g_loss -?[\d.]+  d_loss", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "half", "end"),
    [
        (("trainer.max_epochs=3", "trainer.max_steps=20"), "epoch 1/3 [━─]+ 50 %", "epoch 2/3 [━─]+ 100 %"),
        (("trainer.max_epochs=-1", "trainer.max_steps=20"), "epoch 1 [━─]+ 50 %", "epoch 2 ━{20} 100 %"),
        (("trainer.max_epochs=2", "trainer.max_steps=200"), "epoch 1/2 [━─]+ 50 %", "epoch 2/2 ━{20} 100 %"),
        (
            ("trainer.max_epochs=-1", "trainer.max_steps=10", "trainer.accumulate_grad_batches=2"),
            "epoch 1 [━─]+ 50 %",
            "epoch 2 ━{20} 100 %",
        ),
    ],
)
def test_progress_ends_where_the_training_does(
    limits: tuple[str, ...],
    half: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ProgressBar, "enable", lambda self: setattr(self, "_live", True))
    monkeypatch.setattr("callbacks.progress_bar.REFRESH_SECONDS", 0)
    run(LitAutoEncoder, *limits)
    lines = [
        line for line in capsys.readouterr().err.replace("#", "━").replace(".", "─").split("\r") if " left" in line
    ]
    assert len(lines) == 20
    assert re.match(half, lines[9]) and re.match(end, lines[-1]) and "0:00 left" in lines[-1]


def test_shares_are_shown_in_percent() -> None:
    for name in ("val/acc", "test/acc/cat", "train/top5_acc", "val/accuracy", "test/recognized"):
        assert format_metric(name, 0.5) == "50.00 %"
    for name in ("val/loss", "test/f1/acc", "train/accumulated"):  # the second is that of a class
        assert format_metric(name, 0.5) == "0.5000"


def test_class_that_checkpoints_may_not_name_is_warned_of_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(LitAutoEncoder, folder="known")
    assert "refused" not in caplog.text
    monkeypatch.setattr(safety, "IMPORTABLE", IMPORTABLE)  # this file is not in lit_models/
    assert run(LitAutoEncoder, "trainer.max_epochs=1")["status"] == "finished"
    reason = "config.model._target_=tests.test_procedures.LitAutoEncoder is not of this project"
    assert f"this run cannot be resumed, evaluated or exported: its checkpoints are refused: {reason}" in caplog.text
    with pytest.raises(ValueError, match="is not of this project"):
        evaluate.evaluate_config(EVALUATE, Path("run"))


def test_steps_of_both_optimizers_of_a_gan_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = run(PlainGAN, "trainer.log_every_n_steps=5", logger="tensorboard")
    assert (result["epochs"], result["steps"], result["optimizers"]) == (3, 60, 2)
    assert "3 epochs, 60 steps of 2 optimizers" in caplog.text
    assert list(rows()[0]) == ["epoch", "step", "train/g_loss", "train/d_loss", "seconds"]
    events = EventAccumulator(Path("run/dashboard.txt").read_text().strip()).Reload()
    assert [event.step for event in events.Scalars("train/g_loss")] == [20, 40, 60]
    assert [event.step for event in events.Scalars("g_loss")] == [10, 20, 30, 40, 50, 60]


def test_run_without_a_monitored_metric_keeps_last_ckpt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = run(PlainGAN)
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.ckpt"]
    assert (result["monitor"], result["mode"]) == (None, None)
    assert "there is no best.ckpt: this run measured train/d_loss, train/g_loss; monitor=train/d_loss" in caplog.text
    line = (
        r"^the run in run has no best\.ckpt: none of its epochs has measured, at its end, what tells which one is best"
    )
    with pytest.raises(FileNotFoundError, match=line):
        evaluate.evaluate_config(OmegaConf.merge(EVALUATE, {"checkpoint": "best"}), Path("run"))
    with pytest.raises(ValueError, match="PlainGAN has no test_step and no validation_step to evaluate it with"):
        evaluate.evaluate_config(EVALUATE, Path("run"))


def test_module_that_logs_nothing_trains(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = run(Silent)
    assert (result["status"], result["steps"]) == ("finished", 30)  # of the optimizer, without a gradient
    assert "there is no best.ckpt: this run measured nothing that could choose a best epoch" in caplog.text
    assert len(rows()) == 3
    assert json.loads(Path("run/result.json").read_text())["metrics"] == {}


@pytest.mark.parametrize("model", [LitAutoEncoder, Noisy, PlainGAN, ExactGAN, Silent])
@pytest.mark.parametrize("mode", ["fast", "limit", "profile"])
def test_debug_modes_work_with_any_procedure(model: type, mode: str) -> None:
    assert run(model, f"debug={mode}")["status"] == "finished"


# --- what a constructor gets --------------------------------------------------------------------------------------


class Base(LitAutoEncoder):
    def __init__(self, input_shape: tuple[int, ...], scheduler: Any = None) -> None:
        super().__init__()
        self.got = {"input_shape": input_shape, "scheduler": scheduler}


class Passing(Base):
    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.got["num_classes"] = num_classes


class Closed(Passing):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, input_shape=(1, 1, 1))


def built(model: type, *overrides: str, **arguments: Any) -> Any:
    cfg = compose(*SHORT, *overrides)
    cfg.choices.overrides = list(overrides)
    cfg.model = {"_target_": f"{model.__module__}.{model.__qualname__}", **arguments}
    return build(cfg)[1]


def test_constructor_receives_what_it_has_parameters_for() -> None:
    got = built(Passing).got
    assert type(got["input_shape"]) is tuple
    assert (got["input_shape"], got["num_classes"]) == ((1, 28, 28), 10)
    assert got["scheduler"].func is torch.optim.lr_scheduler.OneCycleLR
    got = built(Closed).got
    assert (got["input_shape"], got["num_classes"], got["scheduler"]) == ((1, 1, 1), 10, None)
    assert built(Passing, num_classes=3).got["num_classes"] == 3  # the config says another number


@pytest.mark.parametrize("override", ["optimizer=sgd", "optimizer.lr=0.1", "+optimizer.amsgrad=true", "scheduler=none"])
def test_optimizer_that_the_model_would_ignore_is_refused(override: str) -> None:
    with pytest.raises(
        ValueError, match=r"LitAutoEncoder makes its own, its constructor takes no (optim|sched)"
    ) as error:
        built(LitAutoEncoder, override)
    assert str(error.value).startswith(override)


def test_unused_optimizer_is_not_a_hyperparameter() -> None:
    run(LitAutoEncoder)
    config = torch.load("run/checkpoints/last.ckpt")["config"]
    assert (config["choices"]["optimizer"], config["choices"]["scheduler"]) == (None, None)


@pytest.mark.parametrize("target", ["lit_models.nets.CNN", "lit_models.losses.check_targets"])
def test_net_as_the_model_is_refused(target: str) -> None:
    cfg = compose(*SHORT)
    cfg.model = {"_target_": target}
    with pytest.raises(ValueError, match=f"model._target_={target} is not a LightningModule; a net goes to model.net"):
        build(cfg)


class Picky(LitAutoEncoder):
    def check_data(self, datamodule: Any) -> None:
        if len(datamodule.shape) != 1:
            raise ValueError(f"this model takes series, and the data gives inputs of shape {datamodule.shape}")


def test_check_data_of_a_model_refuses_data() -> None:
    with pytest.raises(ValueError, match=r"this model takes series, and the data gives inputs of shape \(1, 28, 28\)"):
        built(Picky)


class TwoOptimizers(ExactModule):
    def __init__(self) -> None:
        super().__init__()
        self.G, self.D = nn.Linear(4, 784), nn.Linear(784, 1)

    configure_optimizers = PlainGAN.configure_optimizers

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("model", "overrides", "line"),
    [
        (
            PlainGAN,
            ["trainer.gradient_clip_val=1"],
            "trainer.gradient_clip_val=1 is for automatic optimization, and Pl",
        ),
        (PlainGAN, ["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=2 is for automatic optimiz"),
        (pl.LightningModule, [], "LightningModule has no training_step, which a training needs"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(model: type, overrides: list, line: str) -> None:
    with pytest.raises(ValueError) as error:
        run(model, *overrides, folder="refused")
    assert str(error.value).startswith(line)
    assert [*Path("refused").iterdir()] == []


def test_several_optimizers_with_automatic_optimization_are_refused() -> None:
    with pytest.raises(ValueError, match="TwoOptimizers has 2 optimizers: set automatic_optimization = False"):
        run(TwoOptimizers)


def test_compile_without_a_net_is_refused() -> None:
    with pytest.raises(
        ValueError, match="compile=true compiles the net of a model, and LitAutoEncoder has no attribute"
    ):
        run(LitAutoEncoder, "compile=true")


@pytest.mark.parametrize("name", ["libgcc_s.so.1", "libcuda.so", "glibc-hwcaps/x86-64-v3/libcuda.so.1"])
def test_compile_beside_a_library_is_refused(name: str, tmp_path: Path) -> None:
    """A linker or torch's compile workers take it for the system's. The directory may be a run from anyone."""
    make_paths(tmp_path, name)
    with pytest.raises(ValueError, match=f"compile=true: a compiler may use {name} in this directory: start in"):
        train.compile_net(SimpleNamespace(net=torch.nn.Linear(1, 1)))


# --- the examples of the README, as they stand --------------------------------------------------------------------

DIES = '''"""Kills the process when it begins a step."""

import os
import signal
from typing import Any

import lightning.pytorch as pl


class Dies(pl.Callback):
    """kill -9 at a gradient step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
'''
EXAMPLES = dict(re.findall(r"<!-- file: (.*?) -->\n```\w+\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with what the README tells to write."""
    copy = tmp_path_factory.mktemp("procedures") / "lit-classics"
    shutil.copytree(PROJECT, copy, ignore=_not_copied)
    for name, text in EXAMPLES.items():
        (copy / name).write_text(text)
    (copy / "callbacks/dies.py").write_text(DIES)
    return copy


@pytest.mark.parametrize(("name", "lines"), [("tiny_autoencoder", 25), ("tiny_gan", 45)])
def test_readme_examples_are_short(name: str, lines: int) -> None:
    text = EXAMPLES[f"lit_models/{name}.py"]
    assert len(text.splitlines()) <= lines
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step", "saved"), [("tiny_autoencoder", 25, 24), ("tiny_gan", 50, 48)])
def test_readme_examples_resume_bitwise_after_kill_9(name: str, step: int, saved: int, project: Path) -> None:
    """Ten batches in an epoch: both are killed in the third one, after a checkpoint in its middle."""

    def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(project / script), *arguments]
        return subprocess.run(command, cwd=project, capture_output=True, text=True)

    points = (f"model={name}", "data=blobs", "data.size=220", "data.val_size=20", "data.batch_size=20")
    points += ("threads=1", "checkpoint.every_n_steps=4", "trainer.accelerator=cpu", "trainer.max_epochs=4")
    whole, parts = project / f"{name}_whole", project / f"{name}_parts"
    answer = call("train.py", *points, f"hydra.run.dir={whole}")
    assert answer.returncode == 0, answer.stderr
    dies = (f"+callbacks.dies={{_target_: callbacks.dies.Dies, step: {step}}}",)
    assert call("train.py", *points, f"hydra.run.dir={parts}", *dies).returncode == -signal.SIGKILL
    assert torch.load(parts / "checkpoints/last.ckpt")["global_step"] == saved
    answer = call("train.py", f"resume={parts}")
    assert answer.returncode == 0, answer.stderr
    ours, theirs = final_state(whole), final_state(parts)
    for part in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert differences(ours[0][part], theirs[0][part]) == []
    if name == "tiny_gan":
        assert differences(ours, theirs) == []
    else:
        assert "resumed after batch 4 of 10 of epoch 3" in answer.stdout
        assert [row["val/loss"] for row in ours[1]] == [row["val/loss"] for row in theirs[1]]
    results = [json.loads((folder / "result.json").read_text())["metrics"] for folder in (whole, parts)]
    assert results[0] == results[1]
    answer = call("evaluate.py", f"run={parts}")
    assert answer.returncode == 0, answer.stderr
    written = json.loads((parts / "evaluations/test_last.json").read_text())["metrics"]
    tested = {metric: value for metric, value in results[0].items() if metric.startswith("test/")}
    assert set(written) == set(tested) and tested
    if name == "tiny_autoencoder":  # the GAN draws new noise
        assert written == pytest.approx(tested, rel=1e-6)
