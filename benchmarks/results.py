"""Runs experiments over several seeds and writes the table of the README: ours beside the published figures.

    python benchmarks/results.py                                    all experiments that have a test accuracy, 3 seeds
    python benchmarks/results.py --seeds 1 2 mnist_mlp mnist_cnn    these, with these seeds

One run after the other, each as ``python train.py experiment=NAME seed=N`` in a folder of its own; what is finished is
not run again. The table goes to standard output, and into README.md with --readme.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
EXPERIMENTS = {  # name -> further settings, and the published accuracy
    "logistic": ("", ""),
    "deep_logistic": ("", ""),
    "blobs": ("", ""),
    "blobs_logits": ("", ""),
    "mnist_mlp": ("", "97 %"),
    "mnist_cnn": ("", "98 %"),
    "mnist_residual": ("", "99 %"),
    "mnist_dropout_cnn": ("trainer.max_epochs=8", ""),
    "lenet_mnist": ("", "99.05 %"),
    "cifar10_lenet": ("", "53-57 %"),
}


def run(experiment: str, settings: str, seed: int, folder: Path) -> dict:
    """The result of one run, from its folder when it is there."""
    result = folder / "result.json"
    if not result.exists() or json.loads(result.read_text())["status"] != "finished":
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "train.py", f"experiment={experiment}", f"seed={seed}", f"hydra.run.dir={folder}"]
        subprocess.run([*command, *settings.split()], cwd=PROJECT, stdout=subprocess.DEVNULL, check=True)
    return json.loads(result.read_text())


def row(experiment: str, results: list[dict], published: str) -> str:
    """One line of the table."""
    accuracies = [100 * result["metrics"]["test/acc"] for result in results]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    seconds = statistics.median(result["seconds"]["fit"] for result in results)
    accuracy = f"{statistics.mean(accuracies):.2f}{spread} % ({len(accuracies)})"
    parameters, epochs = f"{results[0]['params']:,}", results[0]["epochs"]
    return f"| `{experiment}` | {parameters} | {epochs} | {published} | {accuracy} | {seconds:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), help="names (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "results", help="where the runs are kept")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.experiments) - set(EXPERIMENTS):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")

    lines = [
        "| experiment | parameters | epochs | published | test accuracy (n) | training |",
        "|---|---|---|---|---|---|",
    ]
    results: list[dict] = []
    for experiment in arguments.experiments:
        settings, published = EXPERIMENTS[experiment]
        results = []
        for seed in arguments.seeds:
            results.append(run(experiment, settings, seed, arguments.folder.resolve() / experiment / str(seed)))
        lines.append(row(experiment, results, published))
        print(lines[-1], file=sys.stderr, flush=True)
    versions = results[0]["versions"]
    lines += ["", f"Mean ± standard deviation over n seeds; {results[0]['device']}, torch {versions['torch']}."]
    table = "\n".join(lines)
    print(table)
    if arguments.readme:
        readme = PROJECT / "README.md"
        marked = r"(<!-- results -->\n).*?(\n<!-- /results -->)"
        readme.write_text(
            re.sub(marked, lambda match: match[1] + table + match[2], readme.read_text(), flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
