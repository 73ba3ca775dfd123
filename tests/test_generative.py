"""Autoencoders and generators: what they learn, that it is exact, what they refuse, and the pictures of them."""

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import evaluate
from callbacks.judge import Judge
from callbacks.plots import Plots
from cli.build import build, load_classifier
from cli.compose import compose
from cli.errors import format_error
from cli.resume import overrides_to_repeat
from datamodules.images import ImageDataModule
from lit_models import GAN, VAE, Autoencoder, nets
from lit_models.exact import _derive_seed
from plots.generative import GAP, code_plane, mosaic, project_codes
from runs.overrides import quote_value
from tests.conftest import count_parameters, run
from tests.kill_and_resume import differences, final_state, kill_and_resume

GRAY, COLOR = (1, 28, 28), (3, 32, 32)
MODELS = ("autoencoder", "vae", "gan", "dcgan")
SMALL = {
    "autoencoder": ("model.net.hidden_sizes=[8]",),
    "vae": ("model.net.hidden_sizes=[8]", "model.net.latent_dim=2"),
    "gan": ("model.generator.hidden_sizes=[4,8]", "model.discriminator.hidden_sizes=[8]", "model.latent_dim=3"),
    "dcgan": ("model.generator.width=2", "model.discriminator.width=4", "model.latent_dim=3"),
}
RUN = ("data=mnist", "data.batch_size=16", "data.val_size=40", "trainer.accelerator=cpu", "threads=1", "logger=none")


def settings(model: str) -> tuple[str, ...]:
    return (f"model={model}", *SMALL[model], *RUN)


@pytest.fixture
def tiny(random_images: Callable[[int, int], None]) -> None:
    random_images(200, 50)


# --- architectures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (nets.MLPAutoencoder(GRAY), 784 * 64 + 64 + 64 * 3 + 3 + 3 * 64 + 64 + 64 * 784 + 784),
        (nets.MLPVAE(GRAY, (400,), 20), 652_824),
        (nets.MLPGenerator(100, GRAY), 1_510_032),
        (nets.MLPDiscriminator(GRAY), 533_505),
        (nets.DCGANGenerator(100, (3, 64, 64)), 3_576_704),  # as the example's, in both
        (nets.DCGANDiscriminator((3, 64, 64)), 2_765_568),
        (nets.DCGANGenerator(100, GRAY, 32), 100 * 128 * 16 + 128 * 64 * 9 + 64 * 32 * 16 + 32 * 16 + 2 * 224),
        (nets.DCGANDiscriminator(GRAY, 32), 32 * 16 + 32 * 64 * 16 + 64 * 128 * 9 + 128 * 16 + 2 * 192),
    ],
)
def test_parameter_counts(net: nn.Module, count: int) -> None:
    assert count_parameters(net) == count


@pytest.mark.parametrize("size", [5, 8, 20, 28, 32, 33, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_takes_square_images_of_any_size(size: int, channels: int) -> None:
    shape = (channels, size, size)
    images = nets.DCGANGenerator(7, shape, 2)(torch.randn(2, 7))
    assert images.shape == (2, *shape)
    assert nets.DCGANDiscriminator(shape, 2)(images).shape == (2, 1)


def test_dcgan_initializes_its_weights_as_in_the_paper() -> None:
    torch.manual_seed(0)
    net = nets.DCGANDiscriminator((1, 64, 64))
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            assert abs(layer.weight.std() - 0.02) < 0.002
        elif isinstance(layer, nn.BatchNorm2d):
            assert abs(layer.weight.mean() - 1) < 0.01 and not layer.bias.any()


@pytest.mark.parametrize("shape", [GRAY, COLOR, (5,)])
def test_autoencoder_reconstructs_its_inputs(shape: tuple[int, ...]) -> None:
    inputs = torch.randn(4, *shape)
    for net in (nets.MLPAutoencoder(shape, [6, 5], 2), nets.MLPVAE(shape, [6, 5], 2)):
        assert net(inputs).shape == inputs.shape
        widths = [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)]
        assert widths == [6, 5, net.numbers_per_latent * 2, 5, 6, math.prod(shape)]


# --- what a step is -------------------------------------------------------------------------------------------------


def test_vae_loss_equals_that_of_the_example(tiny: None) -> None:
    """Its formula again, on the same random numbers: sums over all pixels of a batch, divided by the images."""
    datamodule, model = build(compose(*settings("vae"), "data.mean=[0.0]", "data.std=[1.0]"))
    datamodule.setup()
    images = datamodule.first_inputs(30)
    torch.manual_seed(3)
    loss, _ = model.model_step((images, torch.zeros(30)), "train")
    torch.manual_seed(3)
    mu, logvar = model.net.encoder(images).chunk(2, 1)
    decoded = torch.sigmoid(model.net.decoder(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)))
    bce = F.binary_cross_entropy(decoded, images, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    assert loss.item() == pytest.approx((bce + kld).item() / 30, rel=1e-5)
    means = {name: mean.item() for name, mean in model.means("train").items()}
    assert means["train/kl"] == pytest.approx(kld.item() / 30, rel=1e-4)
    assert means["train/reconstruction"] == pytest.approx(bce.item() / 30, rel=1e-5)


def test_vae_compares_pixels_whatever_the_normalization(tiny: None) -> None:
    losses = []
    for normalization in (("0.0", "1.0"), ("0.1307", "0.3081")):
        overrides = [f"data.{name}=[{number}]" for name, number in zip(("mean", "std"), normalization, strict=True)]
        datamodule, model = build(compose(*settings("vae"), *overrides))
        datamodule.setup()
        images = datamodule.first_inputs(30)
        pixels = images * datamodule.std[0] + datamodule.mean[0]
        assert pixels.min() + 1e-6 >= 0 and pixels.max() <= 1 + 1e-6
        back = model.reconstruct(images) * datamodule.std[0] + datamodule.mean[0]  # a sigmoid, undone and done again
        assert back.min() > 0 and back.max() < 1
        torch.testing.assert_close(model._pixels(images), pixels)
        losses.append(datamodule.to_uint8(model.decode(torch.zeros(1, 2))))
    assert torch.equal(*losses)  # a decoder does not know how its images are normalized


def test_gan_steps_equal_those_of_basic_gan(tiny: None) -> None:
    """Two epochs in plain torch: generator first, then the discriminator on the same fakes and the real images."""
    # Not Adam, which makes steps of the rounding errors of a bias before batch norm, whose gradient is zero.
    overrides = (*settings("gan"), "optimizer=sgd", "scheduler=none", "data.shuffle=false", "trainer.max_epochs=2")
    cfg = compose(*overrides)
    datamodule, model = build(cfg)
    datamodule.setup()
    generator, discriminator = model.generator.train(), model.discriminator.train()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (generator, discriminator)]
    step = 0
    for _ in range(2):
        for images, _ in datamodule.train_dataloader():
            torch.default_generator.manual_seed(_derive_seed(model.seed, 0) + step)
            fakes = generator(torch.randn(len(images), 3))
            ones, zeros = torch.ones(len(images), 1), torch.zeros(len(images), 1)
            loss = F.binary_cross_entropy(discriminator(fakes).sigmoid(), ones)
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            real = F.binary_cross_entropy(discriminator(images).sigmoid(), ones)
            ((real + F.binary_cross_entropy(discriminator(fakes.detach()).sigmoid(), zeros)) / 2).backward()
            optimizers[1].step()
            step += 1
    result = run("run", *overrides)
    assert (result["epochs"], result["steps"]) == (2, 2 * step)  # Lightning counts the steps of both
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)


# --- exact ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as abruptly as a test in one process can."""


def killed_after(patch: pytest.MonkeyPatch, batches: int, model: str) -> None:
    """The batch after so many does not end: its gradients and its random numbers are lost."""
    method = "_d_loss" if "gan" in model else "model_step"  # in a GAN's batch the generator has made its step
    cls = GAN if "gan" in model else VAE if model == "vae" else Autoencoder
    original, calls = getattr(cls, method), iter(range(batches))

    def patched(self, *arguments):
        if self.training and next(calls, None) is None:
            raise Killed
        return original(self, *arguments)

    patch.setattr(cls, method, patched)


@pytest.mark.parametrize("batches", [10, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 14))])
@pytest.mark.parametrize("model", MODELS)
def test_killed_run_resumes_to_the_same_weights(model: str, batches: int, tiny: None) -> None:
    overrides = (*settings(model), "trainer.max_epochs=3", "checkpoint.every_n_steps=2")
    run("whole", *overrides)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, batches, model)
        run("parts", *overrides)
    steps = batches * (2 if "gan" in model else 1)
    assert steps - 2 < torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] <= steps
    run("parts", "resume=parts", "logger=none")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []
    whole, parts = (json.loads(Path(folder, "result.json").read_text())["metrics"] for folder in ("whole", "parts"))
    assert whole == parts


@pytest.mark.real
@pytest.mark.parametrize("experiment", ["mnist_vae", "mnist_gan"])
def test_weights_after_six_kills_are_those_of_an_uninterrupted_run(
    experiment: str, real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(real_root))
    lines = kill_and_resume(6, seed=1, folder=tmp_path, experiment=experiment)
    assert sum(bool(re.search(r"resumed from step \d", line)) for line in lines) >= 3


@pytest.mark.parametrize("model", MODELS)
def test_same_command_gives_the_same_bits_with_and_without_pictures(model: str, tiny: None) -> None:
    overrides = (*settings(model), "trainer.max_epochs=2")
    run("one", *overrides)
    run("other", *overrides, "callbacks.pictures=null")
    one, other = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("one", "other"))
    for part in ("state_dict", "optimizer_states"):
        assert differences(one[part], other[part]) == []
    assert len(one["optimizer_states"]) == (2 if "gan" in model else 1)
    run("seed", *overrides, "seed=2")
    assert differences(one["state_dict"], torch.load("seed/checkpoints/last.ckpt")["state_dict"])


@pytest.mark.parametrize("model", MODELS)
def test_test_equals_the_last_validation_on_the_same_images(model: str, tiny: None) -> None:
    """Its random numbers depend on the seed alone, so that evaluate.py gives the same too."""
    result = run("run", *settings(model), "data.validate_on=test", "trainer.max_epochs=2")
    metrics = result["metrics"]
    names = [name.removeprefix("test/") for name in metrics if name.startswith("test/")]
    assert names
    assert [metrics[f"val/{name}"] for name in names] == [metrics[f"test/{name}"] for name in names]
    asked = {"run": "run", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
    evaluated = evaluate.evaluate_config(OmegaConf.create(asked), Path("run"))["metrics"]
    assert evaluated == {f"test/{name}": metrics[f"test/{name}"] for name in names}


def test_resumed_gan_keeps_its_schedules(tiny: None) -> None:
    for scheduler in ("onecycle", "step"):
        overrides = (*settings("gan"), f"scheduler={scheduler}", "trainer.max_epochs=3", "checkpoint.every_n_steps=2")
        run(f"whole_{scheduler}", *overrides)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            killed_after(patch, 13, "gan")
            run(f"parts_{scheduler}", *overrides)
        run(f"parts_{scheduler}", f"resume=parts_{scheduler}", "logger=none")
        whole, parts = (final_state(Path(f"{name}_{scheduler}")) for name in ("whole", "parts"))
        assert differences(whole, parts) == []
        assert len(whole[0]["lr_schedulers"]) == 2
    first, second = (state["_last_lr"][0] for state in whole[0]["lr_schedulers"])
    assert first == second == pytest.approx(0.3 * 3e-3)  # after three epochs, times gamma every two


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [-1, 9])
def test_schedules_of_a_gan_end_with_its_last_step(epochs: int, tiny: None) -> None:
    """``max_steps`` counts those of both optimizers."""
    run("run", *settings("gan"), "scheduler=linear", f"trainer.max_epochs={epochs}", "trainer.max_steps=20")
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20
    assert [one["_last_lr"] for one in checkpoint["lr_schedulers"]] == [[pytest.approx(0, abs=1e-12)]] * 2


@pytest.mark.parametrize("model", MODELS)
def test_loss_that_is_not_finite_ends_the_training(model: str, tiny: None) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) after step") as raised:
        run("run", *settings(model), "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=2")
    assert ("clipping" in str(raised.value)) == ("gan" not in model)  # Lightning clips no gradients of two optimizers
    assert json.loads(Path("run/result.json").read_text())["status"] == "diverged"


# --- several processes ----------------------------------------------------------------------------------------------

TWO = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
ROWS = ("model=autoencoder", "data=tabular", "data.size=1003", "data.val_size=106", "logger=none", "optimizer=sgd")
ROWS += ("optimizer.lr=0.1", "scheduler=none", "trainer.max_epochs=2")


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "outputs/last/result.json").read_text())["metrics"]


@pytest.mark.slow
def test_autoencoder_in_two_processes_equals_one_process(shell: Callable, tmp_path: Path) -> None:
    """897 examples: the last batch gives the processes unequal numbers."""
    for folder, how in (("one", ("data.batch_size=64",)), ("two", (*TWO, "data.batch_size=32"))):
        (tmp_path / folder).mkdir()
        answer = shell(*ROWS, *how, cwd=tmp_path / folder)
        assert answer.returncode == 0, answer.stderr
    assert metrics_of(tmp_path / "two") == pytest.approx(metrics_of(tmp_path / "one"), rel=1e-4)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Settings of a data set of image files."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(9):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return ["data=image_folder", f"data.root={tmp_path / 'images'}", "data.image=[1,8,8]", "data.num_workers=0"]


@pytest.mark.slow
def test_vae_trains_in_two_processes_and_gan_refuses(shell: Callable, tmp_path: Path, pictures: list[str]) -> None:
    normalization = ("data.mean=[0.5]", "data.std=[0.5]", "data.batch_size=4", "trainer.max_epochs=2", "logger=none")
    answer = shell("model=vae", *pictures, *normalization, *TWO)
    assert answer.returncode == 0, answer.stderr
    metrics = metrics_of(tmp_path)
    for stage in ("train", "test"):
        parts = metrics[f"{stage}/reconstruction"] + metrics[f"{stage}/kl"]
        assert metrics[f"{stage}/loss"] == pytest.approx(parts, rel=1e-5)
    answer = shell("model=gan", *pictures, *normalization, *TWO)
    assert answer.returncode == 1
    lines = sorted(answer.stderr.splitlines())
    assert lines[-1] == "error: a GAN trains in one process: trainer.devices=1 trainer.num_nodes=1"
    assert set(lines) <= {lines[-1], f"[rank 1] {lines[-1]}"}


# --- what they refuse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "model=vae data=blobs",
            "a VAE takes images (channels, height, width), whose pixels it reads as probabilities",
        ),
        ("model=gan data=blobs", "a GAN takes images (channels, height, width), not inputs of shape (2,)"),
        ("model=dcgan data=blobs", "a DCGAN takes square images (channels, size, size) of more than 4 pixels, not"),
        (
            "model=dcgan data=one_digit data.image=[1,32,16]",
            "not inputs of shape (1, 32, 16); model=gan takes any images",
        ),
        ("model=autoencoder model.net.latent_dim=0", "model.net.latent_dim=0 must be a whole number of at least 1"),
        ("model=vae model.net.latent_dim=2.5", "model.net.latent_dim=2.5 must be a whole number of at least 1"),
        ("model=gan model.latent_dim=0", "model.latent_dim=0 must be a whole number of at least 1"),
        (
            "model=gan trainer.gradient_clip_val=1",
            "trainer.gradient_clip_val=1 is for automatic optimization, and GAN makes",
        ),
        (
            "model=gan trainer.accumulate_grad_batches=2",
            "trainer.accumulate_grad_batches=2 is for automatic optimization, and GAN",
        ),
        ("model=gan optimizer=lbfgs", "GAN makes its own gradient steps and cannot be combined with L-BFGS"),
        ("model=gan trainer.devices=2", "a GAN trains in one process: trainer.devices=1 trainer.num_nodes=1"),
        (
            "model=dcgan +model.steps_per_batch=2",
            "model.steps_per_batch=2 cannot be combined with GAN, which makes its",
        ),
        ("model=vae model.mean=[0.0] model.std=[1.0]", "reads pixels as probabilities, and these are from -0.42"),
        ("model=vae metrics=classes", "metrics.f1 compares classes, and VAE predicts none: it reconstructs its inputs"),
        ("model=gan metrics=classes", "metrics.f1 compares classes, and GAN predicts none: it generates"),
        ("model=gan monitor=val/frechet", "monitor=val/frechet: this run has no validation; data.val_size="),
        (
            "model=gan monitor=train/loss",
            "train/loss is not measured (did you mean train/g_loss?); there are train/d_l",
        ),
        (
            "model=gan data.val_size=20 monitor=val/frechet",
            "(callbacks=judge measures it); there are train/d_loss, train/g_loss, val/d_loss, val/g_loss",
        ),
        ("model=autoencoder model.steps_per_batch=0", "model.steps_per_batch=0 must be a whole number of at least 1"),
        ("model=vae model.steps_per_batch=1.5", "model.steps_per_batch=1.5 must be a whole number of at least 1"),
        (
            "model=autoencoder callbacks.pictures.every_n_epochs=1.5",
            "callbacks.pictures.every_n_epochs=1.5 must be a whole number of at least 1",
        ),
    ],
)
def test_wrong_settings_give_one_line(overrides: str, line: str, tiny: None) -> None:
    short = ("data.val_size=0", "logger=none", "trainer.max_epochs=1", "trainer.accelerator=cpu")
    with pytest.raises(Exception) as raised:
        run("run", "data=mnist", *short, *overrides.split())
    assert line in format_error(raised.value)
    assert "\n" not in format_error(raised.value)
    assert [*Path("run").iterdir()] == []


# --- the judge ------------------------------------------------------------------------------------------------------


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that a net tells apart at once: the higher the class, the lower a bright band."""

    def load(self):
        labels = torch.arange(200) % 10
        images = torch.randint(100, (200, *self.shape), generator=torch.Generator().manual_seed(0))
        rows = torch.arange(28).view(1, 1, 28, 1) // 2 - 2
        return [(torch.where(rows == labels.view(-1, 1, 1, 1), 255, images).to(torch.uint8), labels)] * 2

    monkeypatch.setattr(ImageDataModule, "load", load)


class FromTheData(nn.Module):
    """A generator whose images are chosen: by the first latent number, out of those that it holds."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.images[torch.arange(len(latents)) % len(self.images)]


def judged(images: Callable[[Any], torch.Tensor], **more: Any) -> dict[str, float]:
    """What the judge says of a generator that makes these images."""
    datamodule, model = build(compose(*settings("gan"), "data.validate_on=test"))
    datamodule.setup()
    model.generator = FromTheData(images(datamodule))
    judge = Judge("classifier", load_classifier("classifier"))
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[judge], logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.test(model, datamodule=datamodule, verbose=False)
    return {name.removeprefix("test/"): value.item() for name, value in trainer.callback_metrics.items()}


CLASSIFIER = ("model=mlp", "model.net.hidden_sizes=[32]", "data=mnist", "data.val_size=0", "data.batch_size=20")
CLASSIFIER += ("trainer.max_epochs=20", "trainer.accelerator=cpu", "callbacks.pictures=null")


def test_judge_tells_good_generators_from_bad_ones(digits: None) -> None:
    assert run("classifier", *CLASSIFIER, "logger=none", "threads=1")["metrics"]["test/acc"] == 1
    perfect = judged(lambda data: next(iter(data.test_dataloader()))[0])
    assert perfect["recognized"] > 0.95
    assert perfect["class_entropy"] == pytest.approx(math.log2(10), abs=1e-4)
    assert perfect["frechet"] < 1e-3
    collapsed = judged(lambda data: next(iter(data.test_dataloader()))[0][3:4])  # always the same three
    assert collapsed["recognized"] == 1
    assert collapsed["class_entropy"] == 0
    assert collapsed["frechet"] > 1000 * max(perfect["frechet"], 1e-3)
    halved = judged(lambda data: next(iter(data.test_dataloader()))[0][:2])
    assert halved["class_entropy"] == pytest.approx(1)
    assert perfect["frechet"] < halved["frechet"]


def test_judge_logs_every_epoch_and_changes_no_bits(digits: None) -> None:
    run("classifier", *CLASSIFIER, "logger=none", "threads=1")
    torch.set_num_threads(1)
    overrides = (*settings("gan"), "trainer.max_epochs=2", "callbacks.pictures=null")
    run("alone", *overrides)
    judge = ("callbacks=judge", "callbacks.judge.run=classifier", "callbacks.pictures=null", "monitor=val/frechet")
    result = run("judged", *overrides, *judge)
    names = {f"{stage}/{name}" for stage in ("val", "test") for name in ("recognized", "class_entropy", "frechet")}
    assert names <= set(result["metrics"])
    with open("judged/metrics.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    distances = [float(row["val/frechet"]) for row in rows]
    assert (result["monitor"], result["mode"]) == ("val/frechet", "min")
    assert torch.load("judged/checkpoints/best.ckpt")["epoch"] == distances.index(min(distances))
    one, other = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("alone", "judged"))
    assert differences(one["state_dict"], other["state_dict"]) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("model=mlp", "callbacks=judge is for models that generate, such as model=vae and model=gan, not Classifier"),
        ("model=autoencoder", "not Autoencoder"),
        ("model=gan data=fashion_mnist", "callbacks.judge.run=classifier learned MNIST in (1, 28, 28), and these are"),
        ("model=gan callbacks.judge.run=generator", "is not the run of a classifier"),
        ("model=gan callbacks.judge.run=nowhere", "nowhere is neither a run directory nor a checkpoint"),
    ],
)
def test_judge_refuses_what_it_cannot_judge(overrides: str, line: str, tiny: None) -> None:
    short = ("data=mnist", "data.val_size=0", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "logger=none")
    run("classifier", "model=mlp", *short)
    run("generator", *settings("gan"), *short)
    judge = ("callbacks=judge", "callbacks.judge.run=classifier")
    with pytest.raises(Exception) as raised:
        run("run", *short, *judge, *overrides.split())
    assert line in format_error(raised.value)
    assert [*Path("run").iterdir()] == []


def test_resume_command_repeats_what_is_not_taken_from_a_checkpoint(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among it another run, by its directory: ``last`` is a later one then."""
    run("a judge", "model=mlp", "data=mnist", "data.val_size=0", "trainer.max_epochs=1", "logger=none")
    judge = ["callbacks=judge", "callbacks.judge.run=last", "callbacks.pictures=null"]
    directory = Path("a judge").resolve()
    for typed, repeated in (
        (judge, [judge[0], f"callbacks.judge.run={quote_value(str(directory))}", judge[2]]),
        (["callbacks.mine._target_=Mine", "compile=true"],) * 2,
        (["callbacks.pictures=null", "seed=1"], []),
    ):
        monkeypatch.setattr("cli.resume.task_overrides", lambda typed=typed: ["model=gan", *typed])
        assert overrides_to_repeat(compose("model=gan")) == repeated


def test_judge_without_a_run_is_refused() -> None:
    with pytest.raises(Exception) as raised:
        run("run", "model=gan", "data=mnist", "callbacks=judge")
    assert "callbacks.judge.run" in format_error(raised.value)


# --- pictures -------------------------------------------------------------------------------------------------------


def drawn() -> set[str]:
    return {path.stem for path in Path("run/pictures").glob("*.png")}


PICTURES = {
    "autoencoder": {"loss", "codes", "reconstructions"},
    "vae": {"loss", "codes", "reconstructions", "walk", "generated", "generated_epochs"},
    "gan": {"losses", "generated", "generated_epochs"},
    "dcgan": {"losses", "generated", "generated_epochs", "filters"},
}


@pytest.mark.parametrize("data", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", MODELS)
def test_generative_plots_are_written(model: str, data: str, tiny: None) -> None:
    run("run", *settings(model), f"data={data}", "trainer.max_epochs=2")
    assert drawn() == PICTURES[model]
    for name in drawn():
        image = matplotlib.image.imread(f"run/pictures/{name}.png")[..., :3]
        assert image.std() > 0.02, f"{name} is empty"
        assert 250 < image.shape[1] < 1300


def test_mosaic_places_images_side_by_side() -> None:
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 3, 4)
    whole = mosaic(images, 3)
    assert whole.shape == (2 * (3 + GAP) + GAP, 3 * (4 + GAP) + GAP)
    assert [int(whole[GAP, GAP + column * (4 + GAP)]) for column in range(3)] == [1, 2, 3]
    assert [int(whole[GAP + 3 + GAP, GAP + column * (4 + GAP)]) for column in range(3)] == [4, 5, 255]
    assert mosaic(images.expand(5, 3, 3, 4), 3).shape == (*whole.shape, 3)


def test_codes_are_projected_on_their_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(500, 4, generator=generator) * torch.tensor([0.1, 5.0, 0.1, 2.0])
    points, names = project_codes(codes)
    assert points.std(0).tolist() == pytest.approx([5, 2], rel=0.1)
    assert names[0] == "first of 4 principal components (87 % of the variance)"
    plane = codes[:, :2]
    assert project_codes(plane)[0] is plane
    figure = code_plane(codes, torch.arange(500) % 3, ("a", "$b$", "c"))
    assert len(figure.axes[0].texts) == 3


def test_samples_over_many_epochs_are_thinned_out() -> None:
    plots = Plots()
    for epoch in range(40):
        plots._record_samples(epoch, torch.full((20, 1, 2, 2), epoch, dtype=torch.uint8))
    assert list(plots.samples) == list(range(0, 40, 4))
    assert all((images == epoch).all() and len(images) == 10 for epoch, images in plots.samples.items())
