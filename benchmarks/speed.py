"""Time an epoch of this project beside a bare loop, the tutorial's way and plain Lightning.

    python benchmarks/speed.py                           all rows, 5 rounds after a warm-up: long
    python benchmarks/speed.py --rounds 7 mnist_cnn      the rows whose names begin with this, more often
    python benchmarks/speed.py --whole-rounds 1 whole    a command against a script, from start to end
    python benchmarks/speed.py --accelerator gpu         the rows for a GPU

Each round times every variant once, one after the other. The table has the median and the range of the rounds' ratios.

*project*: its ``train`` function with all defaults (checkpoints, TensorBoard, metrics.csv, progress) except the plots,
which take less than a second at the end of a run of any length. *bare*: the loop that one would write with the data in
memory: the same net, channels-last, the same batches cut from one tensor, torch's default optimizer and
convolutions. With the project's optimizer and convolutions it must end with bitwise the same weights; the warm-up
checks that. *tutorial*: torchvision's data set with transforms for each image and a DataLoader with 0 or 2 workers.
*plain Lightning*: that DataLoader under a Trainer with its defaults and ``self.log`` in every step. The last three are
timed on a fifth of an epoch, so their set-up counts five times. All variants include the test that ends an epoch. On a
GPU the bare loop keeps the data there as bytes, and its weights are not compared: the order of sums varies.

Two rows compare something else. ``whole process`` is a command against a script, from start to end, with the plots.
``mnist_99`` is the training to 99 % against the epochs of ``mnist_cnn`` that the tutorial takes to 98 %. Peak MB is the
resident size of a process that runs one variant only, without memory on the GPU.

Needs the data of the experiments. Nothing else should run on the machine.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning.pytorch as pl
import numpy as np
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
from lit_models.exact import TINY_BATCH

PROJECT = Path(__file__).parent.parent
SLOW = 5  # the slow variants are timed on this fraction of an epoch: 1 / SLOW
# name -> overrides; epochs of the project and of the bare loop in a round; fraction of the data
WORKLOADS = {
    "mnist_cnn": (["experiment=mnist_cnn"], 3, 1.0),
    "mnist_mlp": (["experiment=mnist_mlp"], 3, 1.0),
    "mnist_mlp, batch 512": (["experiment=mnist_mlp", "data.batch_size=512"], 10, 1.0),
    "mnist_dropout_cnn": (["experiment=mnist_dropout_cnn", "validate_before_training=false"], 3, 1.0),
    "cifar10_lenet": (["experiment=cifar10_lenet"], 2, 0.25),
    "blobs": (["experiment=blobs", "validate_before_training=false"], 10, 1.0),
    "mnist_99": (["experiment=mnist_99"], 1, 1.0),
    "mnist_vae": (["experiment=mnist_vae"], 2, 1.0),
    "mnist_gan": (["experiment=mnist_gan", "data.val_size=0"], 2, 1.0),
}
GPU_WORKLOADS = {
    f"{name}, batch {size}": ([f"experiment={name}", f"data.batch_size={size}"], epochs, 1.0)
    for name in ("mnist_cnn", "mnist_mlp", "cifar10_lenet")
    for size, epochs in ((64, 2), (2048, 20))
} | {"mnist_99": WORKLOADS["mnist_99"]}
WHOLE = "whole process, mnist_cnn, 10 epochs"
RATIOS = ("tutorial / project", "plain Lightning / project", "project / bare")  # in the table
VARIANTS = ("project", "bare", "tutorial", "tutorial, 2 workers", "plain Lightning")


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
                train.train(self.cfg.copy(), Path(folder))
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
        """Train a part of an epoch, or whole epochs up to the test accuracy ``until``. Returns the number of epochs."""
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


class Generative(Workload):
    """An experiment whose step is more than a net and a loss. Its tutorial makes the same steps on a DataLoader."""

    def variants(self) -> dict[str, Callable[[], Any]]:
        variants = super().variants()
        del variants["plain Lightning"]
        return variants

    def parts(self, fused: bool | None) -> tuple[list[torch.nn.Module], Callable[[Tensor], float]]:
        """Return the nets, and a function that makes a training step on normalized images and returns its loss."""
        raise NotImplementedError

    def evaluate(self, nets: list[torch.nn.Module], images: Iterable[Tensor]) -> float:
        """Return the mean loss over images, which ends an epoch."""
        raise NotImplementedError

    def bare(self, memory_format: torch.memory_format = torch.channels_last, fused: bool | None = None) -> list[Tensor]:
        nets, step = self.parts(fused)
        inputs, test_inputs = (part[0].to(self.device) for part in (self.train_set, self.test_set))
        prepare, total = self.datamodule.normalize, 0
        for epoch in range(self.epochs):
            order = torch.arange(len(inputs))
            if self.datamodule.shuffle:
                generator = torch.Generator().manual_seed(derive_seed(self.cfg.seed, epoch))
                order = torch.randperm(len(inputs), generator=generator)
            for index in order.to(self.device).split(self.cfg.data.batch_size):
                torch.default_generator.manual_seed(seed_of_step(self.cfg.seed, total))
                step(prepare(inputs[index]))
                total += 1
            self.evaluate(nets, map(prepare, test_inputs.split(1000)))
        return [tensor.detach() for net in nets for tensor in net.state_dict().values()]

    def tutorial(self, workers: int = 0, until: float | None = None) -> int:
        nets, step = self.parts(fused=None)
        train_loader, test_loader = self.loaders(workers)
        for images, _ in train_loader:
            step(images.to(self.device))
        self.evaluate(nets, (images.to(self.device) for images, _ in test_loader))
        return 1


class VAE(Generative):
    """pytorch/examples, vae."""

    def parts(self, fused: bool | None) -> tuple[list[torch.nn.Module], Callable[[Tensor], float]]:
        net = self.net()
        optimizer = self.optimizer(net, fused=fused)

        def step(images: Tensor) -> float:
            net.train()
            optimizer.zero_grad()
            loss = self.loss(net, images)
            loss.backward()
            optimizer.step()
            return loss.item()

        return [net], step

    def loss(self, net: Any, images: Tensor) -> Tensor:
        mean, log_variance = net.encoder(images).chunk(2, 1)
        logits = net.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        error = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
        return error + 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(images)

    @torch.no_grad()
    def evaluate(self, nets: list[torch.nn.Module], images: Iterable[Tensor]) -> float:
        return sum(self.loss(nets[0].eval(), batch).item() for batch in images)


class GAN(Generative):
    """Lightning's basic-gan, as a loop."""

    def parts(self, fused: bool | None) -> tuple[list[torch.nn.Module], Callable[[Tensor], float]]:
        torch.manual_seed(self.cfg.seed)
        size, shape = self.cfg.model.latent_dim, self.datamodule.shape
        generator = instantiate(self.cfg.model.generator)(latent_dim=size, output_shape=shape).to(self.device)
        discriminator = instantiate(self.cfg.model.discriminator)(input_shape=shape).to(self.device)
        g_optimizer, d_optimizer = (self.optimizer(net, fused=fused) for net in (generator, discriminator))

        def step(images: Tensor) -> float:
            generator.train()
            fakes = generator(torch.randn(len(images), size, device=self.device))
            discriminator.requires_grad_(False)
            g_optimizer.zero_grad()
            g_loss = self.loss(discriminator, fakes, 1)
            g_loss.backward()
            g_optimizer.step()
            discriminator.requires_grad_()
            d_optimizer.zero_grad()
            d_loss = (self.loss(discriminator, images, 1) + self.loss(discriminator, fakes.detach(), 0)) / 2
            d_loss.backward()
            d_optimizer.step()
            return g_loss.item() + d_loss.item()

        return [generator, discriminator], step

    def loss(self, discriminator: Any, images: Tensor, target: int) -> Tensor:
        logits = discriminator(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    @torch.no_grad()
    def evaluate(self, nets: list[torch.nn.Module], images: Iterable[Tensor]) -> float:
        generator, discriminator = nets
        generator.eval()
        total = 0.0
        for batch in images:
            fakes = generator(torch.randn(len(batch), self.cfg.model.latent_dim, device=self.device))
            total += self.loss(discriminator, fakes, 1).item()
            total += (self.loss(discriminator, batch, 1) + self.loss(discriminator, fakes, 0)).item() / 2
        return total


def workload_of(name: str) -> type[Workload]:
    return {"mnist_vae": VAE, "mnist_gan": GAN}.get(name, Workload)


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


# --- rows of the table -------------------------------------------------------------------------------------------


def time_epochs(name: str, accelerator: str, rounds: int) -> dict[str, Any]:
    """Return the seconds per epoch of all variants of a workload."""
    workload = workload_of(name)(accelerator, *workloads(accelerator)[name])
    variants = workload.variants()
    if accelerator == "cpu":
        same = all(map(torch.equal, variants["project"](), workload.bare_with_project_arithmetic()))
        assert same, f"{name}: the project and the bare loop end with different weights"
    tutorial_epochs = 1
    if name == "mnist_99":
        cnn = Workload(accelerator, *WORKLOADS["mnist_cnn"])
        variants |= {"tutorial": cnn.tutorial, "tutorial, 2 workers": lambda: cnn.tutorial(workers=2)}
        del variants["plain Lightning"]
        tutorial_epochs = cnn.tutorial(until=0.98)
    seconds = time_interleaved(variants, rounds)
    for variant, times in seconds.items():
        factor = 1 / workload.epochs if variant in ("project", "bare") else SLOW * tutorial_epochs
        seconds[variant] = [factor * time for time in times]
    peaks = {variant: peak_memory(name, accelerator, variant) for variant in variants}
    return summarize(seconds) | {"peak_mb": peaks}


def workloads(accelerator: str) -> dict[str, Any]:
    return GPU_WORKLOADS if accelerator == "gpu" else WORKLOADS


def time_whole_process(rounds: int) -> dict[str, Any]:
    """Return the seconds from the start of a process to its end."""
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        write_mnist(Path(folder, "MNIST/raw"))
        environment["DATA_ROOT"] = str(compose("data=mnist").data.root)
        script = [sys.executable, str(PROJECT / "benchmarks" / "tutorial_mnist_cnn.py"), folder]
        commands = {
            "project": [sys.executable, str(PROJECT / "train.py"), "experiment=mnist_cnn", "trainer.accelerator=cpu"],
            "tutorial": script,
            "tutorial, 2 workers": [*script, "--workers", "2"],
        }

        def start(command: list[str]) -> Callable[[], object]:
            return lambda: subprocess.run(
                command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

        variants = {variant: start(command) for variant, command in commands.items()}
        return summarize(time_interleaved(variants, rounds, warm_up=False))


def write_mnist(folder: Path) -> None:
    """Write MNIST's own files, where torchvision looks for them."""
    folder.mkdir(parents=True)
    parts = instantiate(compose("data=mnist").data).load()
    for name, (inputs, targets) in zip(("train", "t10k"), parts, strict=True):
        for kind, tensor in (("images-idx3", inputs[:, 0]), ("labels-idx1", targets.to(torch.uint8))):
            header = np.array([0x0800 + tensor.dim(), *tensor.shape], dtype=">i4").tobytes()
            Path(folder, f"{name}-{kind}-ubyte").write_bytes(header + tensor.numpy().tobytes())


def time_interleaved(
    variants: dict[str, Callable[[], object]], rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round."""
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds + warm_up):
        for variant, run in variants.items():
            start = time.perf_counter()
            run()
            if number >= warm_up:
                seconds[variant].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the medians of the seconds, and the ratios' medians with their range."""
    result: dict[str, Any] = {"seconds": {variant: statistics.median(times) for variant, times in seconds.items()}}
    if "bare" in seconds:
        result["project / bare"] = ratio(seconds["project"], seconds["bare"])
    if "tutorial" in seconds:
        best = [min(pair) for pair in zip(seconds["tutorial"], seconds["tutorial, 2 workers"], strict=True)]
        result["tutorial / project"] = ratio(best, seconds["project"])
    if "plain Lightning" in seconds:
        result["plain Lightning / project"] = ratio(seconds["plain Lightning"], seconds["project"])
    return result


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def peak_memory(name: str, accelerator: str, variant: str) -> float:
    """Return the peak resident size, in MB, of a process that runs one variant of a workload, without its workers."""
    command = [sys.executable, __file__, "--accelerator", accelerator, "--peak", variant, name]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def machine() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return f"{model}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw bars: the time of each variant as a multiple of the project's."""
    from matplotlib.figure import Figure

    rows = result["rows"]
    figure = Figure(figsize=(8, 0.5 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colors = {"bare": "#8a8a8a", "tutorial": "#4878a8", "plain Lightning": "#d1884f"}
    for index, row in enumerate(rows.values()):
        ratios = {variant: row[f"{variant} / project"]["median"] for variant in colors if f"{variant} / project" in row}
        if "project / bare" in row:
            ratios["bare"] = 1 / row["project / bare"]["median"]
        height = 0.8 / 3
        for place, variant in enumerate(variant for variant in colors if variant in ratios):
            y, label = -index + 0.27 - place * height, variant if index == 0 else None
            axes.barh(y, ratios[variant], height * 0.9, color=colors[variant], label=label)
            axes.annotate(f" {ratios[variant]:.2f}", (ratios[variant], y), va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([-index for index in range(len(rows))], list(rows))
    axes.set_xlabel("time, as a multiple of this project's (more is slower)")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments, and the names of the rows that they select."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="beginnings of names (default: all)")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole-rounds", type=int, default=2, help="of the row whose rounds take five minutes each")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/benchmarks"), help="directory of speed.json, speed.png"
    )
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.accelerator == "gpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here that torch can use")
    rows = [*workloads(arguments.accelerator), *([WHOLE] if arguments.accelerator == "cpu" else [])]
    names = [name for name in rows if name.startswith(tuple(arguments.rows or [""]))]
    if not names or arguments.rounds < 1:
        parser.error(f"there is nothing to do; the rows are {'; '.join(rows)}")
    return arguments, names


def print_peak_memory(accelerator: str, name: str, variant: str) -> None:
    """Run one variant, and print the peak resident size of this process in MB."""
    workload_of(name)(accelerator, workloads(accelerator)[name][0], 1, 1.0).variants()[variant]()
    # Not getrusage: its value begins with that of the parent process.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    print(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))


def format_row(name: str, row: dict[str, Any]) -> str:
    """Return a line of the Markdown table."""
    cells = [f"{row['seconds']['project']:.2f}"]
    for key in RATIOS:
        ratio = row.get(key)
        cells.append(f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "")
    peaks = row.get("peak_mb", {})
    cells.append(", ".join(f"{peaks[key]:.0f}" for key in VARIANTS if key in peaks and "workers" not in key))
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    arguments, names = parse_arguments()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    if arguments.peak:
        print_peak_memory(arguments.accelerator, arguments.rows[0], arguments.peak)
        return
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {pl.__version__}"
    about = f"{machine()}, {torch.get_num_threads()} threads; {versions}"
    if arguments.accelerator == "gpu":
        about = f"{torch.cuda.get_device_name()}, {about}"
    print(f"{about}\nmedians and ranges of {arguments.rounds} rounds\n")
    variants = ", ".join([*VARIANTS[:3], VARIANTS[4]])
    print(f"| workload | project, s per epoch | {' | '.join(RATIOS)} | peak MB: {variants} |")
    print("|---" * 6 + "|", flush=True)
    result: dict[str, Any] = {"machine": about, "rounds": arguments.rounds, "rows": {}}
    for name in names:
        if name == WHOLE:
            row = time_whole_process(arguments.whole_rounds)
        else:
            row = time_epochs(name, arguments.accelerator, arguments.rounds)
        result["rows"][name] = row
        print(format_row(name, row), flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(result, arguments.out / "speed.png")
    print(f"\n{arguments.out / 'speed.json'}, {arguments.out / 'speed.png'}")


if __name__ == "__main__":
    main()
