"""Run experiments over several seeds, and write the README's table: ours beside the published figures.

    python benchmarks/results.py                                    all experiments, 3 seeds or more
    python benchmarks/results.py --seeds 1 2 mnist_mlp mnist_cnn    these, with these seeds

The runs follow each other, each as ``python train.py experiment=NAME seed=N`` in a directory of its own. A run that has
ended there is not repeated. The rows are printed; with --readme all of them go into both READMEs.
"""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cli.compose import compose
from runs.result import ENDED, read_result

PROJECT = Path(__file__).parent.parent
# In the order of the table, with overrides beyond the experiment's own.
EXPERIMENTS = {
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
NUM_SEEDS = {"mnist_99": 20}  # 3 for the others


def run(experiment: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the result of one run; train it unless its directory has one."""
    result = read_result(folder)
    if result is None or result["status"] not in ENDED:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(PROJECT / "train.py"), f"experiment={experiment}", f"seed={seed}", "check=true"]
        command += [f"hydra.run.dir={folder}", *EXPERIMENTS[experiment]]
        ended = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL)
        if ended.returncode not in (0, 3):  # 3: it missed what its experiment expects
            raise SystemExit(f"{' '.join(command)} ended with exit code {ended.returncode}")
        result = read_result(folder)
    if result is None:
        raise SystemExit(f"{folder} has no result.json")
    return result


def row(experiment: str, results: list[dict[str, Any]]) -> str:
    """Return one line of the table."""
    expect = compose(f"experiment={experiment}").expect
    accuracy = expect.get("test/acc", {}).get("published")
    published = f"{100 * accuracy:g} %" if accuracy else ""
    accuracies = [100 * result["metrics"]["test/acc"] for result in results if "test/acc" in result["metrics"]]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    measured = f"{statistics.mean(accuracies):.2f}{spread} % ({len(accuracies)})" if accuracies else ""
    if "train/loss" in expect:
        published = f"ten losses, to {expect['train/loss'].published[-1]:,.2f}"
        measured = "the same ten, to 2e-6" if all(result["as_expected"] for result in results) else "different losses"
    parameters, epochs = f"{results[0]['params']:,}", results[0]["epochs"]
    seconds = statistics.median(result["seconds"]["fit"] for result in results)
    return f"| `{experiment}` | {parameters} | {epochs} | {published} | {measured} | {seconds:.1f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), help="names (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1 2 3; for mnist_99 1 to 20")
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "results", help="directory of the runs")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md and README.zh-CN.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.experiments) - set(EXPERIMENTS):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")

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
