"""Run experiments over several seeds, and write the README's table: ours beside the published figures.

    python benchmarks/results.py                                    those of the table, 3 seeds or more
    python benchmarks/results.py --seeds 1 2 mnist_mlp mnist_vae    these, with these seeds

A row has the test accuracy, where there is one, and each figure that the experiment expects (``expect:``). The runs
follow each other, each as ``python train.py experiment=NAME seed=N`` in a directory of its own. A run that has ended
there is not repeated. The rows are printed; with --readme all of them go into both READMEs.
"""

import argparse
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import ListConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from cli import CONF
from cli.compose import compose
from runs.format import format_metric, is_accuracy
from runs.result import ENDED, read_result

PROJECT = Path(__file__).parent.parent
# Those of the README's table, in its order, with overrides beyond the experiment's own.
EXPERIMENTS: dict[str, list[str]] = {
    "line_diverging": [],
    "line_slow": [],
    "line_rescaled": [],
    "logistic": [],
    "deep_logistic": [],
    "blobs": [],
    "blobs_logits": [],
    "mnist_mlp": [],
    "mnist_cnn": [],
    "mnist_residual": [],
    "mnist_dropout_cnn": ["trainer.max_epochs=8"],
    "lenet_mnist": [],
    "cifar10_lenet": [],
    "mnist_99": [],
}
TEACHERS = {"cifar10_distillation": "cifar10_teacher"}  # with the same seed, beside it
NUM_SEEDS = {"mnist_99": 20}  # 3 for the others


def run(experiment: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the result of one run; train it unless its directory has one."""
    result = read_result(folder)
    if result is None or result["status"] not in ENDED:
        folder.mkdir(parents=True, exist_ok=True)
        more = list(EXPERIMENTS.get(experiment, ()))
        if teacher := TEACHERS.get(experiment):
            run(teacher, seed, taught_by := folder.parent.parent / teacher / str(seed))
            more.append(f"model.teacher={taught_by}")
        command = [sys.executable, str(PROJECT / "train.py"), f"experiment={experiment}", f"seed={seed}"]
        command += [f"hydra.run.dir={folder}", *more]
        ended = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit code {ended.returncode}")
        result = read_result(folder)
    if result is None:
        raise SystemExit(f"{folder} has no result.json")
    return result


def row(experiment: str, results: list[dict[str, Any]]) -> str:
    """Return one line of the table."""
    expect: dict[str, Any] = compose(f"experiment={experiment}").expect or {}
    if any(isinstance(how.get("published"), ListConfig) for how in expect.values()):  # the loss of every step of a line
        published = f"ten losses, to {expect['train/loss'].published[-1]:,.2f}"
        measured = "the same ten, to 2e-6" if all(result["as_expected"] for result in results) else "different losses"
    else:
        names = dict.fromkeys(["test/acc", *expect])
        found = {name: [one["metrics"][name] for one in results if name in one["metrics"]] for name in names}
        measured = "; ".join(f"{_label(name)}{_mean(name, values)}" for name, values in found.items() if values)
        known = {name: how.published for name, how in expect.items() if how.get("published") is not None}
        published = "; ".join(f"{_label(name)}{_short(name, value)}" for name, value in known.items())
    parameters, epochs = f"{results[0]['params']:,}", results[0]["epochs"]
    seconds = statistics.median(result["seconds"]["fit"] for result in results)
    return f"| `{experiment}` | {parameters} | {epochs} | {published} | {measured} | {seconds:.1f} s |"


def _label(name: str) -> str:
    """Return what precedes a figure; nothing for the test accuracy, which the header names."""
    return "" if name == "test/acc" else f"{name.replace('/', ' ')} "


def _short(name: str, value: float) -> str:
    return f"{100 * value:g} %" if is_accuracy(name) else f"{value:g}"


def _mean(name: str, values: list[float]) -> str:
    """Return mean ± standard deviation (n). Of anything but an accuracy, the deviation has one digit."""
    factor, unit = (100, " %") if is_accuracy(name) else (1, "")
    mean, spread = factor * statistics.mean(values), factor * statistics.stdev(values) if len(values) > 1 else 0.0
    if not unit and not spread:
        return f"{format_metric(name, mean)} ({len(values)})"
    digits = 2 if unit else max(-math.floor(math.log10(spread)), 0)
    deviation = f" ± {spread:,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{deviation}{unit} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), help="names (default: those of the table)")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1 2 3; for mnist_99 1 to 20")
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "results", help="directory of the runs")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md and README.zh-CN.md")
    arguments = parser.parse_args()
    known = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
    if unknown := sorted(set(arguments.experiments) - set(known)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")

    if arguments.readme and (arguments.experiments != list(EXPERIMENTS) or arguments.seeds):
        parser.error("--readme needs all experiments, each with its own seeds")

    rows = []
    results: list[dict[str, Any]] = []
    for experiment in arguments.experiments:
        seeds = arguments.seeds or range(1, NUM_SEEDS.get(experiment, 3) + 1)
        results = [run(experiment, seed, arguments.folder.resolve() / experiment / str(seed)) for seed in seeds]
        rows.append(row(experiment, results))
        print(rows[-1], flush=True)
    versions = results[0]["versions"]
    print(f"\nMean ± standard deviation over n seeds; {results[0]['device']}, torch {versions['torch']}.")
    for name in ("README.md", "README.zh-CN.md") if arguments.readme else ():
        readme = PROJECT / name
        head, marked, rest = re.split(
            r"(<!-- results -->\n.*\n.*\n)", readme.read_text(encoding="utf-8")
        )  # with the table's header
        _, blank, tail = rest.partition("\n\n")
        readme.write_text(head + marked + "\n".join(rows) + blank + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
