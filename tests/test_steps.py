"""The project's own gradient step equals Lightning's, which clipping, accumulation and callbacks need."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch._dynamo.utils import counters

import train
from callbacks.checkpoints import Checkpoints
from cli.build import build
from cli.compose import compose
from datamodules import CIFAR10, Blobs
from lit_models.exact import ExactModule
from tests.kill_and_resume import differences

BLOBS = ("model=blobs_mlp", "data=blobs", "data.batch_size=30", "model.steps_per_batch=1", "logger=none")
LIGHTNING_STEP = "trainer.gradient_clip_val=1e9"  # clips nothing, but needs Lightning's gradient step


def run(folder: str, *overrides: str) -> tuple[dict, dict]:
    result = train.train_config(compose(*overrides, "trainer.accelerator=cpu"), Path(folder))
    return result, torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)


def assert_same(one: dict, other: dict) -> None:
    assert one["global_step"] == other["global_step"] > 0
    assert one["lr_schedulers"][0]["_last_lr"] == other["lr_schedulers"][0]["_last_lr"]
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name])


def test_own_step_equals_lightning_step() -> None:
    settings = (*BLOBS, "scheduler=onecycle", "trainer.max_epochs=2")
    _, own = run("own", *settings)
    _, lightning = run("lightning", *settings, LIGHTNING_STEP)
    assert_same(own, lightning)


@pytest.mark.parametrize(
    "first, then", [([], [LIGHTNING_STEP]), ([LIGHTNING_STEP], ["trainer.gradient_clip_val=null"])]
)
def test_run_may_resume_with_the_other_kind_of_step(first: list[str], then: list[str]) -> None:
    settings = (*BLOBS, "scheduler=step", "trainer.max_epochs=4")
    _, whole = run("whole", *settings)
    run("parts", *settings, *first, "trainer.max_epochs=2")
    _, parts = run("parts", "resume=parts", "trainer.max_epochs=4", *then)
    assert_same(whole, parts)


def test_gradients_are_clipped_and_accumulated() -> None:
    result, _ = run("clipped", *BLOBS, "optimizer=sgd", "trainer.max_epochs=1", "trainer.gradient_clip_val=1e-9")
    assert result["steps"] == 7
    _, start = run("start", *BLOBS, "optimizer=sgd", "trainer.max_epochs=1", "optimizer.lr=0")
    _, clipped = run("clipped", *BLOBS, "optimizer=sgd", "trainer.max_epochs=1", "trainer.gradient_clip_val=1e-9")
    for name, weight in start["state_dict"].items():
        torch.testing.assert_close(weight, clipped["state_dict"][name], atol=1e-7, rtol=0)
    result, _ = run("accumulated", *BLOBS, "trainer.max_epochs=1", "trainer.accumulate_grad_batches=2")
    assert result["steps"] == 4


class GradientNorms(pl.Callback):
    """Records the norm of the gradients before each optimizer step."""

    def __init__(self) -> None:
        GradientNorms.norms = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: object) -> None:
        self.norms.append(sum(weight.grad.norm() for weight in pl_module.parameters()))


def test_on_before_optimizer_step_sees_the_gradients() -> None:
    run("run", *BLOBS, "trainer.max_epochs=1", "+callbacks.listener._target_=tests.test_steps.GradientNorms")
    from tests.test_steps import GradientNorms as recorded

    assert len(recorded.norms) == 7
    assert min(recorded.norms) > 0


SGD = ("optimizer=sgd", "optimizer.lr=0.01", "optimizer.momentum=0.9", "scheduler=none")
LENET = ("model=lenet", "data=cifar10", *SGD, "logger=none")


def test_tiny_batches_train_alike_without_onednn(random_images: Callable[[int, int], None]) -> None:
    random_images(40, 10)
    settings = (*LENET, "data.val_size=8", "data.batch_size=4", "trainer.max_epochs=1")
    _, own = run("own", *settings)
    _, lightning = run("lightning", *settings, LIGHTNING_STEP)
    weights = own["state_dict"]["net.conv1.weight"]
    assert weights.is_contiguous()
    assert not lightning["state_dict"]["net.conv1.weight"].is_contiguous()
    for name, weight in own["state_dict"].items():
        torch.testing.assert_close(weight, lightning["state_dict"][name], atol=1e-6, rtol=1e-4)
    assert torch.backends.mkldnn.enabled  # again after training, for the large batches of the evaluation


@pytest.mark.parametrize("sizes", [("4", "8"), ("8", "4")])
def test_run_may_resume_with_another_batch_size_per_process(
    sizes: tuple[str, str], random_images: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused optimizer walks through its state in memory order, which then differs from that of the weights."""
    random_images(40, 10)
    monkeypatch.setattr(CIFAR10, "load_state_dict", lambda *_: None)  # skip the check of the batch size
    ends = []
    for fused in ("true", "false"):
        settings = (*LENET, "data.val_size=8", f"optimizer.fused={fused}")
        folder = f"fused_{fused}"
        run(folder, *settings, f"data.batch_size={sizes[0]}", "trainer.max_epochs=1")
        _, checkpoint = run(folder, f"resume={folder}", f"data.batch_size={sizes[1]}", "trainer.max_epochs=2")
        ends.append(checkpoint)
    for name, weight in ends[0]["state_dict"].items():
        torch.testing.assert_close(weight, ends[1]["state_dict"][name], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ, reason="torch's compiler takes the instructions of the processor all the same"
)
def test_compiled_net_trains_alike(random_images: Callable[[int, int], None]) -> None:
    random_images(40, 10)
    settings = (*LENET, "data.val_size=8", "data.batch_size=8")
    run("plain", *settings, "trainer.max_epochs=1")
    _, plain = run("plain", "resume=plain", "trainer.max_epochs=2")
    torch._dynamo.reset()
    counters.clear()
    run("compiled", *settings, "trainer.max_epochs=1", "compile=true")
    assert counters["stats"]["unique_graphs"] > 0
    _, compiled = run("compiled", "resume=compiled", "trainer.max_epochs=2", "compile=true")
    assert plain["state_dict"].keys() == compiled["state_dict"].keys()
    for name, weight in compiled["state_dict"].items():
        torch.testing.assert_close(weight, plain["state_dict"][name], atol=1e-6, rtol=1e-4)


def test_own_step_equals_lightning_step_with_autocast() -> None:
    settings = (*BLOBS, "scheduler=onecycle", "trainer.max_epochs=2", "trainer.precision=bf16-mixed")
    _, own = run("own", *settings)
    _, lightning = run("lightning", *settings, "+callbacks.listener._target_=tests.test_steps.GradientNorms")
    assert_same(own, lightning)


def test_only_float16_needs_lightning_step() -> None:
    _, model = build(compose(*BLOBS))
    for precision, reason in (("16-mixed", "trainer.precision=16-mixed"), ("bf16-mixed", None)):
        # A plugin, because on a CPU Lightning replaces float16 by bfloat16.
        model.trainer = pl.Trainer(accelerator="cpu", plugins=[MixedPrecision(precision, "cpu")], logger=False)
        assert model._requires_automatic_optimization(model.trainer) == reason


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions_train_with_their_weight_dtype(precision: str) -> None:
    result, checkpoint = run("run", *BLOBS, "trainer.max_epochs=1", f"trainer.precision={precision}")
    assert result["steps"] == 7
    assert {weight.dtype for weight in checkpoint["state_dict"].values()} == {
        torch.float64 if precision == "64-true" else torch.float32
    }


@pytest.mark.parametrize(
    "setting, named",
    [
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches"),
    ],
)
@pytest.mark.parametrize("experiment", [("experiment=line_slow", "model=line_by_hand"), ("experiment=blobs",)])
def test_procedures_with_their_own_steps_refuse_clipping(experiment: tuple[str, ...], setting: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be combined with.*{named}"):
        run("run", *experiment, setting, "logger=none")


class Gan(ExactModule):
    """A procedure with two optimizers, each with a schedule, and with neither classes nor a ``net``."""

    def __init__(self) -> None:
        super().__init__(seed=3)
        self.automatic_optimization = False
        self.generator = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2))
        self.discriminator = torch.nn.Linear(2, 1)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        real, losses = batch[0], {}
        for (name, sign), optimizer in zip({"g_loss": -1, "d_loss": 1}.items(), self.optimizers(), strict=True):
            fake = self.generator(torch.randn(len(real), 3))
            losses[name] = sign * (self.discriminator(fake).tanh().mean() - self.discriminator(real).tanh().mean())
            optimizer.zero_grad()
            self.manual_backward(losses[name])
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.accumulate("train", len(real), losses)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.accumulate("val", len(batch[0]), {"real": self.discriminator(batch[0]).mean()})

    def configure_optimizers(self) -> tuple[list, list]:
        optimizers = [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.generator, self.discriminator)]
        decay = functools.partial(torch.optim.lr_scheduler.LinearLR, end_factor=0.1, total_iters=20)
        return optimizers, [self.schedule(decay, optimizer) for optimizer in optimizers]


def train_gan(folder: str, max_steps: int, resume: str | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    checkpoints = Checkpoints(Path(folder), {})
    limits = {"max_epochs": 3, "max_steps": max_steps, "accelerator": "cpu"}
    trainer = pl.Trainer(**limits, logger=False, enable_progress_bar=False, callbacks=[checkpoints])
    torch.manual_seed(0)
    model = Gan()
    data = Blobs(size=200, batch_size=30, val_size=20)
    torch.manual_seed(1 if resume else 2)  # without effect: each step has its own seed
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return torch.load(checkpoints.last, weights_only=True), trainer.callback_metrics


def test_resume_with_two_optimizers_is_exact() -> None:
    whole, metrics = train_gan("whole", max_steps=-1)
    assert set(metrics) == {"train/g_loss", "train/d_loss", "val/real"}
    batches = whole["global_step"] // 6  # per epoch: two steps per batch, three epochs
    parts, _ = train_gan("parts", max_steps=2 * batches + 4)
    assert parts["epoch_sums"]["count"] == 60  # two batches of the unfinished second epoch
    parts, again = train_gan("parts", max_steps=-1, resume="parts/last.ckpt")
    assert differences(whole["state_dict"], parts["state_dict"]) == []
    assert differences(whole["optimizer_states"], parts["optimizer_states"]) == []
    assert differences(whole["lr_schedulers"], parts["lr_schedulers"]) == []
    assert metrics == again


WRONG_CHOICES = {
    "scheduler=cosine +scheduler.T_max=5": "scheduler.T_max=5: CosineAnnealingLR gets the length of the whole training",
    "scheduler=onecycle +scheduler.epochs=5": "scheduler.epochs=5: OneCycleLR gets the length of the whole training",
    "scheduler=linear trainer.max_epochs=-1": "this scheduler needs the length of the training",
    "scheduler=step ~scheduler.gamma +scheduler.gama=1": "StepLR takes no argument gama (scheduler=)",
    "scheduler=step ~scheduler.step_size": "StepLR is missing a required argument: 'step_size' (scheduler=)",
    "optimizer=lbfgs +optimizer.fused=true": "LBFGS takes no argument fused (optimizer=)",
    "optimizer=lbfgs optimizer.line_search_fn=wolfe": "optimizer.line_search_fn=wolfe must be strong_wolfe or null",
}


@pytest.mark.parametrize("words", WRONG_CHOICES)
def test_wrong_optimizer_or_scheduler_is_refused_before_anything_is_written(words: str) -> None:
    Path("run").mkdir()
    with pytest.raises(ValueError) as error:
        run("run", *BLOBS, *words.split())
    assert str(error.value).startswith(WRONG_CHOICES[words])
    assert [*Path("run").iterdir()] == []


PLATEAU = ("scheduler=none", "+scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau")
PLATEAU += ("+scheduler._partial_=true", "+scheduler.patience=0", "+scheduler.threshold=0.5", "data.val_size=40")


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ((), 3e-6),  # no loss is half the one before: from the second epoch on a tenth each time
        (("trainer.check_val_every_n_epoch=2", LIGHTNING_STEP), 3e-3),  # Lightning saves before it changes the rate
        (("data.val_size=0", "+scheduler.mode=max"), 3e-6),
    ],
)
def test_scheduler_may_follow_a_metric(settings: tuple[str, ...], rate: float) -> None:
    _, whole = run("whole", *BLOBS, *PLATEAU, *settings, "trainer.max_epochs=4")
    assert whole["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(rate)
    run("parts", *BLOBS, *PLATEAU, *settings, "trainer.max_epochs=1")
    _, parts = run("parts", "resume=parts", "trainer.max_epochs=4")
    assert not differences(whole, parts)
