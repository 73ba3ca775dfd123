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

Three rows compare something else. ``whole process`` is a command against a script, from start to end, with the plots.
``mnist_99`` is the training to 99 % against the epochs of ``mnist_cnn`` that the tutorial takes to 98 %. ``beside a
busy program`` is timed while another program computes on one core. Peak MB is the resident size of a process that runs
one variant only; it is not measured with a GPU.

Needs the data of the experiments. Nothing else should run on the machine.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.utils import instantiate

from benchmarks.generative import GAN, VAE
from benchmarks.variants import SLOW, Workload
from callbacks.signal_handler import Interrupted
from cli.compose import compose
from runs.format import pluralize

PROJECT = Path(__file__).parent.parent
# name -> overrides; epochs of the project and of the bare loop in a round; fraction of the data
WORKLOADS = {
    "mnist_cnn": (["experiment=mnist_cnn"], 3, 1.0),
    "mnist_mlp": (["experiment=mnist_mlp"], 3, 1.0),
    "mnist_mlp, batch 512": (["experiment=mnist_mlp", "data.batch_size=512"], 10, 1.0),
    "mnist_dropout_cnn": (["experiment=mnist_dropout_cnn", "validate_before_training=false"], 3, 1.0),
    "cifar10_lenet": (["experiment=cifar10_lenet"], 2, 0.25),
    "blobs": (["experiment=blobs", "validate_before_training=false"], 10, 1.0),
    "mnist_99": (["experiment=mnist_99"], 1, 1.0),
    "mnist_cnn, beside a busy program": (["experiment=mnist_cnn"], 1, 0.2),
    "mnist_vae": (["experiment=mnist_vae"], 2, 1.0),
    "mnist_gan": (["experiment=mnist_gan", "data.val_size=0"], 2, 1.0),
}
GENERATIVE = {"mnist_vae": VAE, "mnist_gan": GAN}
GPU_WORKLOADS = {
    f"{name}, batch {size}": ([f"experiment={name}", f"data.batch_size={size}"], epochs, 1.0)
    for name in ("mnist_cnn", "mnist_mlp", "cifar10_lenet")
    for size, epochs in ((64, 2), (2048, 20))
} | {"mnist_99": WORKLOADS["mnist_99"]}
WHOLE = "whole process, mnist_cnn, 10 epochs"
RATIOS = ("tutorial / project", "plain Lightning / project", "project / bare")  # in the table
VARIANTS = ("project", "bare", "tutorial", "tutorial, 2 workers", "plain Lightning")


def time_epochs(name: str, accelerator: str, rounds: int) -> dict[str, Any]:
    """Return the seconds per epoch of all variants of a workload."""
    workload = GENERATIVE.get(name, Workload)(accelerator, *workloads(accelerator)[name])
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
    busy = name.endswith("busy program")
    if busy:
        del variants["bare"]
    with busy_program() if busy else contextlib.nullcontext():
        seconds = time_interleaved(variants, rounds)
    for variant, times in seconds.items():
        factor = 1 / workload.epochs if variant in ("project", "bare") else SLOW * tutorial_epochs
        seconds[variant] = [factor * time for time in times]
    peaks = {variant: peak_memory(name, variant) for variant in variants} if accelerator == "cpu" else {}
    return summarize(seconds) | {"peak_mb": peaks}


@contextlib.contextmanager
def busy_program() -> Iterator[None]:
    """Run another program that computes on one core without a pause."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


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


def peak_memory(name: str, variant: str) -> float:
    """Return the peak resident size, in MB, of a process that runs one variant of a workload, without its workers."""
    command = [sys.executable, __file__, "--peak", variant, name]
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


def print_peak_memory(name: str, variant: str) -> None:
    """Run one variant, and print the peak resident size of this process in MB."""
    GENERATIVE.get(name, Workload)("cpu", WORKLOADS[name][0], 1, 1.0).variants()[variant]()
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
        print_peak_memory(arguments.rows[0], arguments.peak)
        return
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {pl.__version__}"
    about = f"{machine()}, {pluralize(torch.get_num_threads(), 'thread')}; {versions}"
    if arguments.accelerator == "gpu":
        about = f"{torch.cuda.get_device_name()}, {about}"
    print(f"{about}\nmedians and ranges of {pluralize(arguments.rounds, 'round')}\n")
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
    try:
        main()
    except (KeyboardInterrupt, Interrupted):
        sys.exit(130)
