"""Measure the peak memory of predictions: of 1,000 image files, and of 50,000.

    python benchmarks/memory.py

Needs MNIST. The files are digits of its test set; the peak is the resident size of a process that predicts them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from omegaconf import OmegaConf

from cli.compose import compose

COUNTS = (1_000, 50_000)


def write_digits(folder: Path, count: int) -> None:
    """Write the first 1,000 test digits as PNG files, and hard links to them under other names."""
    from hydra.utils import instantiate
    from PIL import Image

    _, (images, _) = instantiate(compose("data=mnist").data).load()
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:05}.png"
        if number < 1000:
            Image.fromarray(images[number, 0].numpy()).save(path)
        else:
            os.link(folder / f"{number % 1000:05}.png", path)


def predict_and_print(run: Path, images: Path) -> None:
    """Predict in this process; print the seconds and the peak resident size in MB."""
    import predict

    settings = {
        "run": str(run),
        "checkpoint": "last",
        "images": str(images),
        "csv": None,
        "split": None,
        "samples": None,
    }
    start = time.perf_counter()
    predict.predict_config(OmegaConf.create(settings | {"output": f"{images}_predictions"}), run)
    seconds = time.perf_counter() - start
    # Not getrusage: its value begins with that of the parent process.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    print(f"{seconds:.1f} s, {peak:.0f} MB at most")


def main() -> None:
    import train

    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        run.mkdir()
        short = ("trainer.max_epochs=1", "trainer.limit_train_batches=50", "logger=none", "callbacks.pictures=null")
        os.chdir(folder)  # for outputs/last
        train.train_config(compose("experiment=mnist_cnn", *short, "trainer.accelerator=cpu"), run)
        for count in COUNTS:
            write_digits(images := Path(folder, str(count)), count)
            command = [sys.executable, str(Path(__file__).resolve()), str(run), str(images)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(f"{count:,} files: {answer.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:  # in a process of its own
        predict_and_print(*map(Path, sys.argv[1:]))
    else:
        main()
