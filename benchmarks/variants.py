"""The variants that benchmarks/speed.py times: this project, a bare loop, the tutorial's way and plain Lightning."""

import contextlib
import hashlib
import io
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import torchvision
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

import train
from cli.compose import compose
from cli.process import seed_and_set_threads
from datamodules.batch_loader import derive_seed
from runs.threads import TINY_BATCH

SLOW = 5  # the slow variants are timed on this fraction of an epoch: 1 / SLOW


class Workload:
    """One experiment, trained by several variants of the code."""

    def __init__(self, accelerator: str, settings: list[str], epochs: int, fraction: float) -> None:
        self.epochs, self.accelerator = epochs, accelerator
        self.device = torch.device("cuda" if accelerator == "gpu" else "cpu")
        overrides = [*settings, f"trainer.max_epochs={epochs}", f"trainer.accelerator={accelerator}"]
        # Validation is the test that ends an epoch, so the one after the training is left out.
        overrides += ["data.validate_on=test", "trainer.limit_test_batches=0", "callbacks.pictures=null"]
        self.cfg = compose(*overrides)
        seed_and_set_threads(self.cfg.seed, self.cfg.threads)
        self.datamodule = instantiate(self.cfg.data)
        parts = [tuple(tensor[: int(fraction * len(tensor))] for tensor in part) for part in self.datamodule.load()]
        self.train_set, self.test_set = parts
        type(self.datamodule).load = lambda _: parts  # for the project

    def variants(self) -> dict[str, Callable[[], Any]]:
        """Return the variants that a round times."""
        variants: dict[str, Callable[[], Any]] = {"project": self.project, "bare": self.bare}
        if hasattr(self.datamodule, "mean"):  # images
            variants |= {
                "tutorial": self.tutorial,
                "tutorial, 2 workers": lambda: self.tutorial(workers=2),
                "plain Lightning": self.plain_lightning,
            }
        return variants

    def net(self) -> torch.nn.Module:
        torch.manual_seed(self.cfg.seed)
        shape, num_classes = self.datamodule.shape, self.datamodule.num_classes
        return instantiate(self.cfg.model.net, input_shape=shape, num_classes=num_classes).to(self.device)

    def optimizer(self, net: torch.nn.Module, **settings: Any) -> torch.optim.Optimizer:
        return instantiate(self.cfg.optimizer, **settings)(net.parameters())

    def project(self) -> list[Tensor]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            with contextlib.chdir(folder):  # for outputs/last and event files
                train.train_config(self.cfg.copy(), Path(folder))
            checkpoint = torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True)
        return list(checkpoint["state_dict"].values())

    def bare_with_project_arithmetic(self) -> list[Tensor]:
        """Run the bare loop with the project's fused optimizer and its convolutions for tiny batches."""
        tiny = (self.datamodule.batch_size or math.inf) <= TINY_BATCH
        with torch.backends.mkldnn.flags(enabled=not tiny):
            memory_format = torch.contiguous_format if tiny else torch.channels_last
            return self.bare(memory_format, fused=self.cfg.optimizer.get("fused"))

    def bare(self, memory_format: torch.memory_format = torch.channels_last, fused: bool | None = None) -> list[Tensor]:
        cfg, prepare = self.cfg, self.datamodule.normalize
        net = self.net().to(memory_format=memory_format)
        optimizer = self.optimizer(net, fused=fused)
        loss_of = instantiate(cfg.model.loss)
        inputs, targets = (tensor.to(self.device) for tensor in self.train_set)
        tests = [tensor.to(self.device).split(1000) for tensor in self.test_set]
        size = len(targets)
        batch_size = self.datamodule.batch_size or size
        scheduler = None
        if cfg.scheduler:
            total = self.epochs * -(-size // batch_size)
            scheduler = instantiate(cfg.scheduler)(optimizer, total_steps=total)
        random = any(isinstance(layer, (torch.nn.Dropout, torch.nn.Dropout2d)) for layer in net.modules())
        step = 0
        for epoch in range(self.epochs):
            net.train()
            order = torch.arange(size)
            if self.datamodule.shuffle:
                order = torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(cfg.seed, epoch)))
            for index in order.to(self.device).split(batch_size):
                batch, labels = prepare(inputs[index]), targets[index]
                if batch.dim() == 4:
                    batch = batch.contiguous(memory_format=memory_format)
                if random:
                    torch.default_generator.manual_seed(seed_of_step(cfg.seed, step))
                for _ in range(cfg.model.steps_per_batch):
                    optimizer.zero_grad()
                    loss_of(net(batch), labels).backward()
                    optimizer.step()
                if scheduler:
                    scheduler.step()
                step += 1
            accuracy(net, [(prepare(x), y) for x, y in zip(*tests, strict=True)])
        return [tensor.detach() for tensor in net.state_dict().values()]

    def loaders(self, workers: int = 0, fraction: float = 1 / SLOW) -> tuple[DataLoader[Any], DataLoader[Any]]:
        transform = Compose([ToTensor(), Normalize(tuple(self.cfg.data.mean), tuple(self.cfg.data.std))])
        parts = [[tensor[: int(fraction * len(tensor))] for tensor in part] for part in (self.train_set, self.test_set)]
        sets = [torchvision_set(inputs, targets, transform) for inputs, targets in parts]
        return (
            DataLoader(sets[0], self.cfg.data.batch_size, shuffle=True, num_workers=workers),
            DataLoader(sets[1], self.cfg.data.batch_size, num_workers=workers),
        )

    def tutorial(self, workers: int = 0, until: float | None = None) -> int:
        """Train a part of an epoch, or whole epochs up to the test accuracy ``until``. Return the number of epochs."""
        net = self.net()
        optimizer = self.optimizer(net, fused=None)
        train_loader, test_loader = self.loaders(workers, 1.0 if until else 1 / SLOW)
        for epoch in itertools.count(1):
            net.train()
            running = 0.0
            for batch, labels in train_loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(batch.to(self.device)), labels.to(self.device))
                loss.backward()
                optimizer.step()
                running += loss.item()
            if accuracy(net, test_loader) >= (until or 0):
                return epoch
        raise AssertionError

    def plain_lightning(self) -> None:
        net = self.net()
        optimizer = self.optimizer(net, fused=None)

        class Plain(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: Any, _: int) -> Tensor:
                logits = self.net(batch[0])
                loss = F.cross_entropy(logits, batch[1])
                self.log("train_loss", loss, prog_bar=True)
                self.log("train_acc", (logits.argmax(1) == batch[1]).float().mean())
                return loss

            def validation_step(self, batch: Any, _: int) -> None:
                logits = self.net(batch[0])
                self.log("val_loss", F.cross_entropy(logits, batch[1]))
                self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return optimizer

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            trainer = pl.Trainer(max_epochs=1, accelerator=self.accelerator, default_root_dir=folder)
            trainer.fit(Plain(), *self.loaders())


def seed_of_step(seed: int, step: int) -> int:
    """Return the seed of a step's random numbers in the project (lit_models/exact.py)."""
    digest = hashlib.blake2b(repr((seed, 0)).encode(), digest_size=7).digest()
    return int.from_bytes(digest) + step


def torchvision_set(inputs: Tensor, targets: Tensor, transform: Callable[[Any], Any]) -> Dataset[Any]:
    """Return torchvision's own data set class over tensors in memory."""
    kind = torchvision.datasets.MNIST if inputs.shape[1] == 1 else torchvision.datasets.CIFAR10
    dataset = kind.__new__(kind)
    dataset.transform, dataset.target_transform = transform, None
    if inputs.shape[1] == 1:
        dataset.data, dataset.targets = inputs[:, 0], targets
    else:
        dataset.data, dataset.targets = inputs.permute(0, 2, 3, 1).numpy(), targets.tolist()
    return dataset


@torch.no_grad()
def accuracy(net: torch.nn.Module, batches: Iterable[Any]) -> float:
    net.eval()
    device = next(net.parameters()).device
    correct = count = 0
    for batch, labels in batches:
        correct += (net(batch.to(device)).argmax(1) == labels.to(device)).sum().item()
        count += len(labels)
    return correct / count
