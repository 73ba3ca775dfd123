"""How long an epoch takes: this project, a bare loop, the tutorial's way, and Lightning as it comes, beside each other.

    python benchmarks/speed.py                           all workloads, 5 rounds after a warm-up
    python benchmarks/speed.py --rounds 7 mnist_cnn      one of them, more often

Each round times every way once, one after the other, over the same share of the data and with the test that ends an
epoch; what is reported is the median of the ratios of a round and their range. The *project* is its own ``train``
function with everything that users get by default: checkpoints, TensorBoard, metrics.csv, progress. The *bare* loop
cuts the same batches from memory and must end with the same weights, to the bit. The *tutorial* takes torchvision's
data set with transforms for each image and a DataLoader with 0 or 2 workers. *Plain Lightning* puts that DataLoader
under a Trainer with its defaults and ``self.log`` in every step. Nothing else should run on the machine.
"""

import argparse
import contextlib
import io
import json
import logging
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import torchvision
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import Compose, Normalize, ToTensor

import command_line
import train
from datamodules import BatchLoader

# name -> (experiment and overrides, share of the training and of the test set)
WORKLOADS = {
    "mnist_cnn, batch 64": (["experiment=mnist_cnn"], 1.0),
    "mnist_mlp, batch 64": (["experiment=mnist_mlp"], 1.0),
    "mnist_mlp, batch 512": (["experiment=mnist_mlp", "data.batch_size=512"], 1.0),
    "mnist_dropout_cnn, batch 64": (["experiment=mnist_dropout_cnn", "validate_first=false"], 1.0),
    "cifar10_lenet, batch 4": (["experiment=cifar10_lenet"], 0.4),
    "blobs, full batch": (["experiment=blobs", "validate_first=false", "callbacks=default"], 1.0),
}
EPOCHS = 2


class Workload:
    """One experiment, trained in several ways on the first examples of its data set."""

    def __init__(self, overrides: list[str], share: float) -> None:
        self.overrides = [*overrides, f"trainer.max_epochs={EPOCHS}", "trainer.accelerator=cpu"]
        self.cfg = command_line.compose(*self.overrides)
        self.datamodule = instantiate(self.cfg.data)
        (inputs, targets), (test_inputs, test_targets) = self.datamodule.load()
        train_size, test_size = (int(share * len(labels)) for labels in (targets, test_targets))
        self.train_set = inputs[:train_size], targets[:train_size]
        self.test_set = test_inputs[:test_size], test_targets[:test_size]
        type(self.datamodule).load = lambda _: (self.train_set, self.test_set)
        if self.cfg.threads:
            torch.set_num_threads(self.cfg.threads)
        self.weights: dict[str, list[Tensor]] = {}

    def ways(self) -> dict[str, Callable[[], None]]:
        ways = {"project": self.project, "bare": self.bare}
        if self.datamodule.class_names and hasattr(self.datamodule, "mean"):
            ways |= {
                "tutorial": lambda: self.tutorial(0),
                "tutorial, 2 workers": lambda: self.tutorial(2),
                "plain Lightning": self.plain_lightning,
            }
        return ways

    def net_and_optimizer(self) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(self.cfg.seed)
        net = instantiate(self.cfg.model.net, shape=self.datamodule.shape, num_classes=self.datamodule.num_classes)
        return net, instantiate(self.cfg.optimizer)(net.parameters())

    def project(self) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            train.train(command_line.compose(*self.overrides, "trainer.limit_test_batches=0"), Path(folder))
            checkpoint = torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True)
        self.weights["project"] = list(checkpoint["state_dict"].values())

    def bare(self) -> None:
        net, optimizer = self.net_and_optimizer()
        net = net.to(memory_format=torch.channels_last)
        loss_of, prepare = instantiate(self.cfg.model.loss), self.datamodule.prepare
        inputs, targets = self.train_set
        seed = self.datamodule.seed if self.datamodule.shuffle else None
        batches = BatchLoader(
            inputs, targets, torch.arange(len(targets)), self.cfg.data.batch_size or len(targets), seed=seed
        )
        for epoch in range(EPOCHS):
            batches.set_epoch(epoch)
            net.train()
            for step, (batch, labels) in enumerate(batches):
                if any(isinstance(layer, torch.nn.Dropout) for layer in net.modules()):
                    seed_of_step = (self.cfg.seed * 1_000_003 << 32) + epoch * len(batches) + step
                    torch.default_generator.manual_seed(seed_of_step)
                batch = prepare(batch)
                for _ in range(self.cfg.model.steps_per_batch):
                    optimizer.zero_grad()
                    loss_of(net(batch), labels).backward()
                    optimizer.step()
            test(net, [(prepare(x), y) for x, y in zip(*(part.split(1000) for part in self.test_set), strict=True)])
        self.weights["bare"] = [parameter.detach() for parameter in net.parameters()]

    def loaders(self, workers: int) -> tuple[DataLoader, DataLoader]:
        transform = Compose([ToTensor(), Normalize(self.cfg.data.mean, self.cfg.data.std)])
        sets = [torchvision_set(*part, transform) for part in (self.train_set, self.test_set)]
        return (
            DataLoader(sets[0], self.cfg.data.batch_size, shuffle=True, num_workers=workers),
            DataLoader(sets[1], self.cfg.data.batch_size, num_workers=workers),
        )

    def tutorial(self, workers: int) -> None:
        net, optimizer = self.net_and_optimizer()
        train_loader, test_loader = self.loaders(workers)
        for _ in range(EPOCHS):
            net.train()
            running = 0.0
            for batch, labels in train_loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(batch), labels)
                loss.backward()
                optimizer.step()
                running += loss.item()
            test(net, test_loader)

    def plain_lightning(self) -> None:
        workload = self

        class Plain(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net, self._optimizer = workload.net_and_optimizer()

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
                return self._optimizer

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", default_root_dir=folder)
            trainer.fit(Plain(), *self.loaders(0))


def torchvision_set(inputs: Tensor, targets: Tensor, transform: Callable) -> torch.utils.data.Dataset:
    """torchvision's own data set class over tensors that are here already."""
    kind = torchvision.datasets.MNIST if inputs.shape[1] == 1 else torchvision.datasets.CIFAR10
    dataset = kind.__new__(kind)
    dataset.transform, dataset.target_transform = transform, None
    if inputs.shape[1] == 1:
        dataset.data, dataset.targets = inputs[:, 0], targets
    else:
        dataset.data, dataset.targets = inputs.permute(0, 2, 3, 1).numpy(), targets.tolist()
    return Subset(dataset, range(len(targets)))


@torch.no_grad()
def test(net: torch.nn.Module, batches: Any) -> float:
    net.eval()
    correct = count = 0
    for batch, labels in batches:
        correct += (net(batch).argmax(1) == labels).sum().item()
        count += len(labels)
    return correct / count


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Times all ways of a workload in turn; returns seconds and ratios."""
    workload = Workload(*WORKLOADS[name])
    seconds: dict[str, list[float]] = {way: [] for way in workload.ways()}
    for number in range(rounds + 1):
        for way, run in workload.ways().items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[way].append((time.perf_counter() - start) / EPOCHS)
    assert all(map(torch.equal, workload.weights["project"], workload.weights["bare"])), "project and bare loop differ"
    result: dict[str, Any] = {"seconds": {way: statistics.median(times) for way, times in seconds.items()}}
    result["project / bare"] = ratio(seconds["project"], seconds["bare"])
    if "tutorial" in seconds:
        best = [min(pair) for pair in zip(seconds["tutorial"], seconds["tutorial, 2 workers"], strict=True)]
        result["tutorial / project"] = ratio(best, seconds["project"])
        result["plain Lightning / project"] = ratio(seconds["plain Lightning"], seconds["project"])
    return result


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help="beginnings of names (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    chosen = [name for name in WORKLOADS if name.startswith(tuple(arguments.workloads or [""]))]
    if not chosen:
        parser.error(f"there is no such workload; there are {', '.join(WORKLOADS)}")

    versions = f"torch {torch.__version__}, lightning {pl.__version__}"
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {versions}"
    print(f"{machine}; seconds per epoch of a share of the data, ratios: median (range) of {arguments.rounds} rounds\n")
    print("| workload | project | tutorial / project | plain Lightning / project | project / bare |")
    print("|---|---|---|---|---|", flush=True)
    figures = {}
    for name in chosen:
        figures[name] = measure(name, arguments.rounds)
        cells = [f"{figures[name]['seconds']['project']:.2f} s"]
        for key in ("tutorial / project", "plain Lightning / project", "project / bare"):
            r = figures[name].get(key)
            cells.append(f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})" if r else "")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak resident size of this process: {peak:.0f} MB")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine, "peak_mb": peak, "workloads": figures}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
