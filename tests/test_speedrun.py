"""The CIFAR-10 speedrun: whitening, test-time augmentation, Muon, alternating flips, and exact resume."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

import evaluate
import train
from cli.build import build, load_run
from cli.compose import compose
from datamodules import CIFAR10
from datamodules.images import flip_crop
from lit_models import nets
from lit_models.optim import LinearDecay, Muon
from lit_models.optim.muon import newton_schulz
from tests.conftest import Killed, kill_at
from tests.kill_and_resume import differences, final_state

NARROW = ("experiment=cifar10_94", "model.net.widths=[8,16,16]", "data.batch_size=50", "trainer.accelerator=cpu")
NARROW += ("trainer.precision=32-true", "trainer.benchmark=false", "threads=1", "logger=none")
# The learning rates of SGD in the experiment are for batches of 2,000 examples, not of 50.
NARROW += ("optimizer.bias_lr=5", "optimizer.head_lr=0.5")


def striped_images(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of two classes, horizontal and vertical stripes, in random widths and colors."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (size,), generator=generator)
    waves = (torch.arange(32) * torch.empty(size, 1).uniform_(0.5, 1.5, generator=generator)).sin()  # (size, 32)
    images = waves[:, None, :, None].expand(-1, 3, -1, 32) * torch.rand(size, 3, 1, 1, generator=generator)
    images = torch.where(labels[:, None, None, None] == 1, images, images.mT)
    images = images + 0.5 * torch.randn(images.shape, generator=generator)
    return (127 + 40 * images).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture
def striped_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "datamodules.images.ImageDataModule.load", lambda _: (striped_images(300, 0), striped_images(100, 1))
    )


def run(folder: str, *overrides: str) -> dict:
    Path(folder).mkdir(exist_ok=True)
    return train.train_config(compose(*overrides), Path(folder))


def state_dict(folder: str) -> dict[str, Tensor]:
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


# --- the net -----------------------------------------------------------------------------------------------------


def test_whitening_does_not_depend_on_the_sign_of_the_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sign that LAPACK chooses differs between processors, and the losses with it by one percent."""
    images = torch.rand(100, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    nets_ = [nets.CifarNet((3, 12, 12), 10) for _ in range(2)]
    nets_[0].init_whiten(images)
    eigh = torch.linalg.eigh
    flip = torch.tensor([1.0, -1.0]).repeat(6).double()
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], eigh(matrix)[1] * flip))
    nets_[1].init_whiten(images)
    assert torch.equal(nets_[0].whitening.weight, nets_[1].whitening.weight)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_with_both_signs(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(600, channels, 14, 14, generator=generator)
    images = F.avg_pool2d(noise, 3, stride=1)  # neighboring pixels are correlated
    net = nets.CifarNet(images.shape[1:], 10)
    net.init_whiten(images)
    outputs = F.conv2d(images, net.whitening.weight)  # (600, 8 C, 11, 11)
    size = 4 * channels
    torch.testing.assert_close(outputs[:, :size], -outputs[:, size:])
    outputs = outputs[:, :size].transpose(0, 1).flatten(1)
    moments = outputs @ outputs.T / outputs.shape[1]
    patches = F.unfold(images, 2).transpose(0, 1).flatten(1)
    values = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1])
    torch.testing.assert_close(moments, torch.diag(values / (values + 5e-4)), atol=1e-3, rtol=0)
    assert values.min() > 5e-4  # so the moments are about 1


def test_convolutions_start_as_identity_and_batch_norm_has_no_trainable_scale() -> None:
    net = nets.CifarNet((3, 32, 32), 10)
    inputs = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(net.groups[0].conv1(inputs)[:, :24], inputs)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    norms = {f"groups.{group}.norm{number}.weight" for group, number in itertools.product(range(3), (1, 2))}
    assert frozen == {"whitening.weight", *norms}


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_evaluation_averages_six_augmented_views(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images = torch.randn(5, *shape)
    net = nets.CifarNet(shape, 10, widths=[8, 16, 16])
    for _ in range(20):  # fill the running statistics of batch norm
        net(images)
    plain = nets.CifarNet(shape, 10, widths=[8, 16, 16], tta=False)
    plain.load_state_dict(net.state_dict())
    net.eval(), plain.eval()
    padded = F.pad(images, [1] * 4, mode="reflect")
    up, down = padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]
    by_hand = 0
    for weight, view in ((0.5, images), (0.25, up), (0.25, down)):
        by_hand = by_hand + weight * (plain(view) + plain(view.flip(3))) / 2
    torch.testing.assert_close(net(images), by_hand)
    assert not torch.allclose(plain(images), by_hand, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_net_has_finite_gradients_in_bfloat16() -> None:
    net, images = torch.compile(nets.CifarNet((3, 32, 32), 10)), torch.rand(8, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(net(images), torch.arange(8))
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters() if weight.grad is not None)


# --- Muon --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (24, 24 * 9)])
def test_newton_schulz_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = newton_schulz(matrix[None])[0]
    values = torch.linalg.svdvals(result)
    assert 0.5 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert F.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0) > 0.97
    torch.testing.assert_close(newton_schulz(1e-3 * matrix[None])[0], result, atol=0.01, rtol=0)


SETTINGS = {"lr": 0.24, "momentum": 0.6, "bias_lr": 0.5, "head_lr": 0.1, "sgd_momentum": 0.85, "weight_decay": 0.01}


def test_muon_normalizes_filters_and_takes_orthogonalized_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator).requires_grad_()
    start, gradients = weight.detach().clone(), torch.randn(2, *weight.shape, generator=generator)
    optimizer = Muon([weight], **SETTINGS)
    weight.grad = gradients[0]
    optimizer.step()
    step = (1 + 0.6) * gradients[0]
    expected = start * 8**0.5 / start.norm() - 0.24 * newton_schulz(step.flatten(1)[None]).view_as(step)
    torch.testing.assert_close(weight.detach(), expected)
    weight.grad = gradients[1]
    optimizer.step()
    step = gradients[1] + 0.6 * (0.6 * gradients[0] + gradients[1])
    expected = expected * 8**0.5 / expected.norm() - 0.24 * newton_schulz(step.flatten(1)[None]).view_as(step)
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_trains_a_layer_that_begins_with_zeros() -> None:
    weight = torch.zeros(4, 3, requires_grad=True)
    optimizer = Muon([weight], **SETTINGS)
    weight.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -0.24 * newton_schulz(1.6 * weight.grad[None])[0])


def test_muon_updates_biases_and_head_like_sgd() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, generator=generator), torch.randn(3, 4, generator=generator)]
    ours, theirs = ([part.clone().requires_grad_() for part in start] for _ in range(2))
    muon = Muon([{"kind": "biases", "params": ours[:1]}, {"kind": "head", "params": ours[1:]}], **SETTINGS)
    groups = [
        {"params": part, "lr": rate, "weight_decay": 0.01 / rate} for part, rate in zip(theirs, (0.5, 0.1), strict=True)
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=generator)
        muon.step()
        sgd.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_linear_decay_reaches_zero_and_follows_a_longer_training() -> None:
    parts = [torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimizer = torch.optim.SGD([{"params": parts[0]}, {"params": parts[1], "until": 0.375, "lr": 4.0}], lr=1.0)

    def rates() -> list[float]:
        return [group["lr"] for group in optimizer.param_groups]

    def steps(scheduler: LinearDecay, count: int) -> None:
        for _ in range(count):
            optimizer.step()
            scheduler.step()

    scheduler = LinearDecay(optimizer, total_steps=8)
    seen = []
    for _ in range(8):
        seen.append(rates())
        steps(scheduler, 1)
    assert [first for first, _ in seen] == pytest.approx([1 - step / 8 for step in range(8)])
    assert [second for _, second in seen] == pytest.approx([4, 8 / 3, 4 / 3, 0, 0, 0, 0, 0])
    assert rates() == [0, 0]
    longer = LinearDecay(optimizer, total_steps=16)
    longer.load_state_dict({name: value for name, value in scheduler.state_dict().items() if name != "total_steps"})
    steps(longer, 1)
    assert rates() == pytest.approx([1 - 9 / 16, 0])


# --- the data ----------------------------------------------------------------------------------------------------


def make_halves(size: int, **settings) -> CIFAR10:
    """Return images that are black on the left and white on the right, whose class is their index."""
    datamodule = CIFAR10(root="unused", mean=[0.5] * 3, std=[0.5] * 3, augment="alternate", **settings)
    images = torch.zeros(size, 3, 32, 32, dtype=torch.uint8)
    images[..., 16:] = 255
    datamodule.load = lambda: ((images, torch.arange(size)), (images[:4], torch.arange(4)))
    datamodule.setup()
    return datamodule


def flipped_by_index(datamodule: CIFAR10, epoch: int) -> dict[int, bool]:
    loader = datamodule.train_dataloader()
    loader.set_epoch(epoch)
    return {
        number: bool(image[:, :, 0].mean() > 0)
        for images, numbers in loader
        for image, number in zip(images, numbers.tolist(), strict=True)
    }


def test_flips_alternate_per_example() -> None:
    datamodule = make_halves(200, batch_size=32, val_size=20)
    epochs = [flipped_by_index(datamodule, epoch) for epoch in range(4)]
    assert len(epochs[0]) == 180
    assert 60 < sum(epochs[0].values()) < 120
    for number, first in epochs[0].items():
        assert [epoch[number] for epoch in epochs] == [first, not first, first, not first]
    again = flipped_by_index(make_halves(200, batch_size=7, val_size=0), 2)  # independent of the batch size
    assert epochs[2].items() <= again.items()
    assert flipped_by_index(make_halves(200, batch_size=200, seed=2), 0) != again


def test_shifted_image_is_a_window_of_the_reflected_image() -> None:
    images = torch.randint(256, (60, 3, 10, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mirror = torch.arange(60) % 2 == 0
    changed = flip_crop(images, torch.Generator().manual_seed(1), mirror, pad=2, reflect=True)
    padded = F.pad(torch.where(mirror[:, None, None, None], images.flip(3), images).float(), [2] * 4, mode="reflect")
    places = set()
    for image, result in zip(padded.byte(), changed, strict=True):
        windows = {(y, x): image[:, y : y + 10, x : x + 9] for y in range(5) for x in range(5)}
        places.add(next(place for place, window in windows.items() if torch.equal(window, result)))
    assert len(places) > 15


# --- the run -----------------------------------------------------------------------------------------------------


def test_speedrun_learns_keeps_frozen_weights_and_is_evaluated(
    striped_cifar: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("run", *NARROW, "trainer.max_epochs=4")
    assert result["metrics"]["test/acc"] >= 0.95
    weights, (images, _) = state_dict("run"), striped_images(300, 0)
    assert all((weight == 1).all() for name, weight in weights.items() if "norm" in name and name.endswith("weight"))
    _, datamodule, model = load_run("run", "last")
    net = nets.CifarNet((3, 32, 32), 10, widths=[8, 16, 16])
    net.init_whiten(datamodule.normalize(images))
    assert torch.equal(net.whitening.weight, weights["net.whitening.weight"])
    # The stored whitening is used, also with other training images.
    monkeypatch.setattr(
        "datamodules.images.ImageDataModule.load", lambda _: (striped_images(300, 7), striped_images(100, 1))
    )
    cfg = OmegaConf.create(
        {"run": "run", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
    )
    again = evaluate.evaluate_config(cfg, Path("run"))
    assert again["metrics"] == {name: value for name, value in result["metrics"].items() if name.startswith("test/")}
    with torch.inference_mode():  # as in predict.py
        tested, labels = striped_images(100, 1)
        right = (model(datamodule.normalize(tested)).argmax(1) == labels).float().mean().item()
    assert right == pytest.approx(result["metrics"]["test/acc"])


# Before, at and after the step that freezes the bias of the whitening.
@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 9, pytest.param(13, marks=pytest.mark.slow)])
def test_resume_in_mid_epoch_is_exact(step: int, striped_cifar: None) -> None:
    settings = (*NARROW, "trainer.max_epochs=4", "checkpoint.every_n_steps=1")
    run("whole", *settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, step)
        run("parts", *settings)
    assert torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == step
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


@pytest.mark.slow
def test_whitening_bias_is_trained_for_three_eighths_of_the_steps(
    striped_cifar: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_models import Speedrun

    biases: list[Tensor] = []
    training_step = Speedrun.training_step

    def watched(self, batch, batch_idx):
        biases.append(self.net.whitening.bias.detach().clone())
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Speedrun, "training_step", watched)
    run("run", *NARROW, "data.batch_size=100", "trainer.max_epochs=8")  # 24 steps
    changes = [not torch.equal(one, other) for one, other in itertools.pairwise(biases)]
    assert changes == [True] * 9 + [False] * 14


def test_longer_training_follows_the_decay_of_its_new_length(striped_cifar: None) -> None:
    run("run", *NARROW, "trainer.max_epochs=1")
    run("run", "resume=run", "trainer.max_epochs=2")
    (scheduler,) = torch.load("run/checkpoints/last.ckpt", weights_only=True)["lr_schedulers"]
    assert (scheduler["total_steps"], scheduler["last_epoch"]) == (12, 12)


def test_automatic_optimization_gives_the_same_weights(striped_cifar: None) -> None:
    run("own", *NARROW, "trainer.max_epochs=2")
    run("lightning", *NARROW, "trainer.max_epochs=2", "trainer.gradient_clip_val=1e9")
    assert differences(state_dict("own"), state_dict("lightning")) == []


def test_other_optimizers_accept_the_parameter_groups(striped_cifar: None) -> None:
    parts = ("model=speedrun", "data=cifar10", "data.val_size=0", "model.net.widths=[8,16,16]", "optimizer=adamw")
    assert run("run", *parts, "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none")["status"] == "finished"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.whitening_until=0"], r"model\.whitening_until=0"),
        (["data=blobs"], "at least 9 x 9 pixels"),
    ],
)
def test_invalid_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        build(compose("model=speedrun", "data=cifar10", *overrides))
