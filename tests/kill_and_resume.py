"""Kill a small MNIST run at random moments with SIGKILL and resume it: its final state must be identical to the bit.

    python -m tests.kill_and_resume --kills 100
    python -m tests.kill_and_resume --kills 100 mnist_gan
    python -m tests.kill_and_resume --kills 3 --all

The run is a short one, of mnist_dropout_cnn by default, with a checkpoint every few steps, so many kills hit a save.
With --all there is one of each training procedure.
"""

import argparse
import contextlib
import csv
import math
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

COMMAND = (
    "trainer.max_epochs=3", "trainer.limit_train_batches=30", "trainer.accelerator=cpu",
    "trainer.limit_val_batches=2", "trainer.limit_test_batches=1", "checkpoint.every_n_steps=4", "logger=none",
    "threads=1",
)  # fmt: skip

# An experiment of each other training procedure, and the teacher of one, made short.
SHORTER: dict[str, tuple[str, ...]] = {
    "mnist_autoencoder": (),
    "mnist_vae": (),
    "mnist_gan": (),
    "mnist_dcgan": ("trainer.limit_train_batches=12", "model.generator.width=4", "model.discriminator.width=4"),
    "mnist_siamese": (
        "trainer.limit_train_batches=6", "trainer.limit_val_batches=1", "data.batch_size=4", "data.eval_batch_size=16",
    ),
    "mnist_forward_forward": (
        "data.batch_size=32", "model.steps_per_batch=1", "model.epochs_per_layer=2",
        "trainer.check_val_every_n_epoch=1",
    ),
    "cifar10_teacher": ("trainer.limit_train_batches=1", "trainer.max_epochs=1", "model.net.groups=[[4],[4]]"),
    "cifar10_distillation": ("trainer.limit_train_batches=12", "data.batch_size=16", "model.teacher=teacher"),
    "sines_lstm": (
        "data.size=40", "data.length=60", "data.batch_size=6", "model.net.hidden_size=8", "trainer.precision=64-true",
        "checkpoint.every_n_steps=2",
    ),
}  # fmt: skip


PROCEDURES = [name for name in SHORTER if name != "cifar10_teacher"]


def job(folder: Path, *overrides: str) -> None:
    """Run ``train.py`` in this process."""
    import train
    from cli.compose import compose

    os.chdir(folder.parent)
    experiment = next((one.partition("=")[2] for one in overrides if one.startswith("experiment=")), "")
    own = SHORTER.get(experiment, ())
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    folder.mkdir(exist_ok=True)
    train.train_config(compose(*overrides, *COMMAND, *own), folder)


def run(folder: Path, *overrides: str, saves: float = math.inf, seconds: float = 0) -> list[float]:
    """Run a job in a new process until it ends or is killed. Return the times of its start, checkpoints and end.

    Args:
        folder: run directory.
        *overrides: the experiment, and the run to resume.
        saves: number of checkpoints after which the run is killed.
        seconds: time between the last of these checkpoints and the kill. Time alone would not do: how far a run gets
            in a given time depends on the load of the machine.
    """
    # The fork server has imported everything and computes nothing itself, so a fork of it starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "lightning.pytorch", "lit_models", "datamodules", "callbacks.run_summary"])
    process = context.Process(target=job, args=(folder, *overrides))
    start = time.time()
    process.start()
    seen: set[float] = set()
    while process.is_alive() and len(seen) < saves:
        with contextlib.suppress(FileNotFoundError):
            seen.add((folder / "checkpoints/last.ckpt").stat().st_mtime)
        process.join(0.001)
    if saves < math.inf:
        process.join(seconds)
        process.kill()
    process.join()
    if saves == math.inf and process.exitcode != 0:
        raise AssertionError(folder.with_suffix(".log").read_text())
    return [start, *sorted(seen), time.time()]


def final_state(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return the last checkpoint of a run and the rows of its metrics.csv, without the seconds."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    with open(folder / "metrics.csv", newline="") as lines:
        rows = [row | {"seconds": ""} for row in csv.DictReader(lines)]
    return checkpoint, rows


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Return where two checkpoints differ, except for times, the config, and the validation before training."""
    if path.endswith(("seconds", "elapsed", ".config", ".validate_loop")):
        return []
    if isinstance(ours, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [path]
    if isinstance(ours, dict):
        keys = ours.keys() | theirs.keys()
        return [d for key in keys for d in differences(ours.get(key), theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [path]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for number, pair in pairs for d in differences(*pair, f"{path}.{number}")]
    return [] if ours == theirs else [f"{path}: {ours} and {theirs}"]


def kill_and_resume(kills: int, seed: int, folder: Path, experiment: str = "mnist_dropout_cnn") -> list[str]:
    """Return one line for each kill. Raise AssertionError for the first final state that differs."""
    whole, chosen = folder / "whole", f"experiment={experiment}"
    if experiment == "cifar10_distillation":
        run(folder / "teacher", "experiment=cifar10_teacher")
    run(whole, chosen)  # the first run also waits for the imports of the fork server
    times = run(folder / "timed", chosen)
    expected, lines = final_state(whole), []
    assert not differences(expected, final_state(folder / "timed"))
    moments = random.Random(seed)
    for number in range(kills):
        killed = folder / str(number)
        saves = moments.randrange(len(times) - 1)  # 0 is before the first checkpoint; after the last comes the test
        seconds = moments.random() * (times[saves + 1] - times[saves])
        moment = f"{saves} checkpoints and {seconds:.3f} s"
        run(killed, chosen, saves=saves, seconds=seconds)
        last = killed / "checkpoints/last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"] if last.exists() else None
        if (killed / "result.json").exists():
            lines.append(f"{number}: finished before the kill, after {moment}")
        else:  # a run without any checkpoint is started again
            run(killed, chosen, *([f"resume={killed}"] if last.exists() else []))
            lines.append(f"{number}: killed after {moment}, resumed from step {step}")
        found = differences(expected, final_state(killed))
        assert not found, f"kill {number} after {moment}, resumed from step {step}: {found[:5]}"
        leftovers = [path.name for path in killed.rglob("*.tmp")]
        assert not leftovers, leftovers
        shutil.rmtree(killed)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("experiment", nargs="?", default="mnist_dropout_cnn")
    arguments = parser.parse_args()
    for experiment in PROCEDURES if arguments.all else [arguments.experiment]:
        with tempfile.TemporaryDirectory() as folder:
            report = kill_and_resume(arguments.kills, arguments.seed, Path(folder), experiment)
        print("\n".join(report))
        print(f"{experiment}: {arguments.kills} of {arguments.kills} final states are identical to the bit", flush=True)
