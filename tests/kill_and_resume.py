"""Kills a small MNIST run at random moments with SIGKILL and resumes it: the end must be the same to the bit.

    python -m tests.kill_and_resume --kills 100
    python -m tests.kill_and_resume --kills 100 mnist_gan

The run is an experiment made short, with a checkpoint every few steps, so that many kills hit a save.
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


def job(folder: Path, *overrides: str) -> None:
    """One ``python train.py`` in this process."""
    import train
    from cli.compose import compose

    os.chdir(folder.parent)
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    folder.mkdir(exist_ok=True)
    train.train(compose(*overrides, *COMMAND), folder)


def run(folder: Path, *overrides: str, saves: float = math.inf, seconds: float = 0) -> list[float]:
    """Runs a job in a fresh process to its end, or until a kill; returns the times of its start, checkpoints and end.

    Args:
        folder: of the run.
        *overrides: the experiment, and what to resume.
        saves: kills it after so many checkpoints and some ``seconds``. How far a run gets in seconds alone depends on
            what else the machine does.
    """
    # The server has everything imported and computes nothing itself, so that a fork of it starts at once.
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


def end(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What a run came to: its last checkpoint and its metrics, without the seconds."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    with open(folder / "metrics.csv", newline="") as lines:
        rows = [row | {"seconds": ""} for row in csv.DictReader(lines)]
    return checkpoint, rows


def differences(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Where two checkpoints differ, the clock, what was typed and the validation before any training aside."""
    if place.endswith(("seconds", "elapsed", ".config", ".validate_loop")):
        return []
    if isinstance(ours, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [place]
    if isinstance(ours, dict):
        keys = ours.keys() | theirs.keys()
        return [d for key in keys for d in differences(ours.get(key), theirs.get(key), f"{place}.{key}")]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [place]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for number, pair in pairs for d in differences(*pair, f"{place}.{number}")]
    return [] if ours == theirs else [f"{place}: {ours} and {theirs}"]


def kill_and_resume(kills: int, seed: int, folder: Path, experiment: str = "mnist_dropout_cnn") -> list[str]:
    """Returns one line for each kill; raises AssertionError for the first end that differs."""
    whole, chosen = folder / "whole", f"experiment={experiment}"
    run(whole, chosen)  # the first also pays for the imports of the server
    times = run(folder / "timed", chosen)
    expected, lines = end(whole), []
    assert not differences(expected, end(folder / "timed"))
    moments = random.Random(seed)
    for number in range(kills):
        killed = folder / str(number)
        saves = moments.randrange(len(times) - 1)  # also before the first, and in the test after the last
        seconds = moments.random() * (times[saves + 1] - times[saves])
        moment = f"{saves} checkpoints and {seconds:.3f} s"
        run(killed, chosen, saves=saves, seconds=seconds)
        last = killed / "checkpoints/last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"] if last.exists() else None
        if (killed / "result.json").exists():
            lines.append(f"{number}: had finished after {moment}")
        else:  # without any checkpoint it is started again
            run(killed, chosen, *([f"resume={killed}"] if last.exists() else []))
            lines.append(f"{number}: killed after {moment}, resumed from step {step}")
        found = differences(expected, end(killed))
        assert not found, f"kill {number} after {moment}, resumed from step {step}: {found[:5]}"
        leftovers = [path.name for path in killed.rglob("*.tmp")]
        assert not leftovers, leftovers
        shutil.rmtree(killed)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("experiment", nargs="?", default="mnist_dropout_cnn")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_and_resume(arguments.kills, arguments.seed, Path(folder), arguments.experiment)
    print("\n".join(report))
    print(f"{arguments.kills} of {arguments.kills} ends are the same to the bit")
