"""Measure what grows with the number of jobs, trials, files and epochs: the table of docs/scale.md.

python benchmarks/scale.py
python benchmarks/scale.py --jobs 50 --trials 50 --files 5000 --epochs 500
"""

import argparse
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SHORT = (
    *("model=blobs_mlp", "model.steps_per_batch=1", "data=blobs"),
    *("trainer.accelerator=cpu", "threads=1", "callbacks.pictures=null"),
)


def watch(folder: Path, arguments: tuple[str, ...], count: Callable[[], int], marks: list[int]) -> list[str]:
    """Run ``train.py`` and return a table row for each mark: memory, open handles, and seconds per unit before it."""
    command = [sys.executable, str(PROJECT / "train.py"), *SHORT, *arguments]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    rows, last, since = [], 0, time.perf_counter()
    while process.poll() is None:
        if marks and (now := count()) >= marks[0]:
            proc = Path(f"/proc/{process.pid}")
            memory = int(proc.joinpath("status").read_text().partition("VmRSS:")[2].split()[0]) / 1024
            seconds = (time.perf_counter() - since) / (now - last)
            rows.append(f"| {now:,} | {memory:.0f} MB | {len(os.listdir(proc / 'fd'))} | {seconds:.3f} s |")
            last, since = now, time.perf_counter()
            marks = [mark for mark in marks if mark > now]
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"error: {(folder / 'log').read_text()[-300:]}")
    return rows


def steps(total: int) -> list[int]:
    """Return numbers at which to look: a tenth, a half, and almost the end."""
    return sorted({max(total // 10, 1), total // 2, total - max(total // 50, 1)})


def sweep(folder: Path, jobs: int) -> list[str]:
    settings = ("-m", "trainer.max_epochs=1", "logger=none", f"seed=range({jobs})", "hydra.sweep.dir=sweep")
    marks = sorted({2, 10, *steps(jobs)[1:]})  # the start-up is in the first row
    return watch(folder, settings, lambda: len(list(folder.glob("sweep/*/result.json"))), marks)


def search(folder: Path, trials: int) -> list[str]:
    settings = (
        *("-m", "trainer.max_epochs=1", "logger=none", "data.val_size=20", "hydra/sweeper=optuna"),
        *(f"hydra.sweeper.n_trials={trials}", "optimizer.lr=tag(log, interval(1e-4, 1e-1))", "hydra.sweep.dir=sweep"),
    )
    study = folder / "sweep" / "study.db"

    def completed() -> int:
        """Return the number of trials. One that repeats an earlier one takes its result, and has no directory."""
        if study.exists():
            with contextlib.closing(sqlite3.connect(study)) as database, contextlib.suppress(sqlite3.OperationalError):
                found: int = database.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
                return found
        return 0

    return watch(folder, settings, completed, steps(trials))


def epochs(folder: Path, number: int) -> list[str]:
    def trained() -> int:
        file = folder / "run/metrics.csv"
        return sum(1 for _ in open(file)) - 1 if file.exists() else 0

    settings = (f"trainer.max_epochs={number}", "hydra.run.dir=run")
    rows = watch(folder, settings, trained, steps(number))
    events = sum(file.stat().st_size for file in folder.rglob("events.out*"))
    sizes = {"metrics.csv": (folder / "run/metrics.csv").stat().st_size, "event files": events}
    sizes["last.ckpt"] = (folder / "run/checkpoints/last.ckpt").stat().st_size
    return [*rows, *(f"| {name} | {size / 1024:,.0f} kB | | |" for name, size in sizes.items())]


FOLDER = """
import resource, time
start = time.perf_counter()
from datamodules.image_folder import ImageFolder
from hydra.utils import instantiate
from cli.compose import compose
data = instantiate(compose("data=image_folder", "data.root=pictures", "data.image=[3,8,8]").data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
data.setup()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{(after - before) / 1024:.0f} MB | {time.perf_counter() - start:.2f} s")
"""


def image_folder(folder: Path, files: int) -> list[str]:
    from PIL import Image

    rows = []
    made = 0
    Image.new("L", (8, 8), 9).save(folder / "one.png")
    picture = (folder / "one.png").read_bytes()
    for total in (files // 10, files):
        for number in range(made, total):
            place = folder / "pictures" / str(number % 10) / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture)
        made = total
        env = {**os.environ, "PYTHONPATH": str(PROJECT)}
        answer = subprocess.run([sys.executable, "-c", FOLDER], cwd=folder, env=env, capture_output=True, text=True)
        rows.append(f"| {total:,} | {answer.stdout.strip() or answer.stderr[-300:]} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("jobs", 500), ("trials", 1000), ("epochs", 10_000), ("files", 200_000)):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default: {number:,}; 0 leaves it out")
    chosen = parser.parse_args()
    measured = {"jobs": sweep, "trials": search, "epochs": epochs, "files": image_folder}
    for name, measure in measured.items():
        if number := getattr(chosen, name):
            with tempfile.TemporaryDirectory() as folder:
                print(f"\n{name}", *measure(Path(folder), number), sep="\n", flush=True)


if __name__ == "__main__":
    main()
