"""Run experiments over several seeds, keep their figures in docs/results.csv, and write the README's tables from it.

    python benchmarks/results.py                             all seeds that docs/results.csv lacks: days
    python benchmarks/results.py --seeds 1 2 mnist_mlp xor   these experiments, with these seeds
    python benchmarks/results.py --readme                    trains nothing; writes the tables into both READMEs

The runs follow each other, each as ``python train.py experiment=NAME seed=N``. A run whose figures are in the file is
not repeated, and one that was interrupted goes on where it was: stop the program and start it again as often as needed.
To measure anew, delete lines of docs/results.csv and the runs in outputs/results.

The file has a line for each figure of a run: the test accuracy, and what the experiment expects (``expect:``), with one
value for each epoch where one is published for each; the test loss where there is neither. A sweep has such lines for
each of its jobs.
"""

import argparse
import csv
import functools
import io
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.speed import machine
from cli import CONF
from cli.compose import compose
from cli.help import SHELVES
from runs.files import atomic_write_text
from runs.format import format_metric, is_percentage
from runs.result import ENDED, read_result
from runs.run import read_rows

PROJECT = Path(__file__).parent.parent
TABLE = PROJECT / "docs" / "results.csv"
COLUMNS = ("experiment", "seed", "job", "figure", "value", "epochs", "params", "seconds", "processor", "device")
VERSIONS = ("python", "torch", "lightning")
# How many seeds each has, in the order in which one learns. None are measured of those with 0: a sweep without figures,
# single steps, and what needs a GPU.
SEEDS = {
    **{"line_diverging": 3, "line_slow": 3, "line_rescaled": 3, "line_scan": 0},
    **{"logistic": 3, "deep_logistic": 3, "blobs": 3, "blobs_logits": 3, "xor": 20},
    **{"mnist_mlp": 3, "mnist_hello_lightning": 10, "mnist_cnn": 3, "mnist_residual": 3, "mnist_dropout_cnn": 3},
    **{"lenet_one_step": 0, "lenet_mnist": 3, "mnist_conv_dropout": 3, "mnist_rnn": 3, "mnist_spatial_transformer": 3},
    **{"mnist_siamese": 3, "mnist_forward_forward": 3, "mnist_99": 20},
    **{"fashion_quickstart": 3, "fashion_lenet": 3, "fashion_activations": 3, "fashion_optimizers": 3},
    **{"cifar10_lenet": 3, "cifar10_teacher": 3, "cifar10_student": 10, "cifar10_distillation": 3},
    **{
        "resnet18_one_step": 0,
        "cifar10_resnet18_5_epochs": 4,
        "cifar10_94": 5,
        "cifar10_resnet18": 0,
        "cifar10_vit": 0,
    },
    **{"mnist_autoencoder": 3, "mnist_vae": 3, "mnist_gan": 3, "mnist_dcgan": 3, "sines_lstm": 3},
}
MORE_OVERRIDES = {"mnist_dropout_cnn": ["trainer.max_epochs=8"]}  # the tutorial's three epochs and five more
TEACHERS = {"cifar10_distillation": "cifar10_teacher"}  # with the same seed
LANGUAGES: dict[str, tuple[str, dict[str, str]]] = {  # README -> the header of its tables, and the names of shelves
    "README.md": (
        "experiment | what it teaches | published | measured (n) | | parameters | epochs | training",
        {},
    ),
    "README.zh-CN.md": (
        "实验 | 内容与出处 | 已发表 | 测得 (n) | | 参数 | 轮数 | 训练",
        dict(zip(SHELVES, ("一条直线", "两个类别", "数字", "服装", "照片", "没有标签", "时间序列"), strict=False)),
    ),
}

Line = dict[str, Any]  # of the file


def read_table() -> list[Line]:
    if not TABLE.exists():
        return []
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(lines: Iterable[Line]) -> None:
    order = list(SEEDS)
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, *VERSIONS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(lines, key=lambda line: (order.index(line["experiment"]), int(line["seed"]))))
    atomic_write_text(TABLE, text.getvalue())


def measure(experiment: str, seed: int, folder: Path) -> None:
    """Train an experiment, or go on with its run in ``folder/EXPERIMENT/SEED``, and keep its figures."""
    directory = train(experiment, seed, folder)
    results = sorted(directory.glob("**/result.json")) if is_sweep(experiment) else [directory / "result.json"]
    lines = [line for file in results for line in figures(experiment, seed, file.parent)]
    others = [line for line in read_table() if (line["experiment"], int(line["seed"])) != (experiment, seed)]
    write_table([*others, *lines])


def train(experiment: str, seed: int, folder: Path) -> Path:
    """Return the directory of an experiment that has ended."""
    directory = folder / experiment / str(seed)
    result = read_result(directory)
    if result and result["status"] in ENDED:
        return directory
    overrides = [f"experiment={experiment}", f"seed={seed}", *MORE_OVERRIDES.get(experiment, ())]
    if teacher := TEACHERS.get(experiment):
        overrides.append(f"model.teacher={train(teacher, seed, folder)}")
    if not is_sweep(experiment):
        overrides += [f"hydra.run.dir={directory}", "resume=auto"]
    elif directory.exists():
        overrides += [f"sweep_resume={directory}"]
    else:
        overrides += [f"hydra.sweep.dir={directory}"]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(PROJECT / "train.py"), *overrides]
    if code := subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    return directory


def is_sweep(experiment: str) -> bool:
    compose(f"experiment={experiment}")
    return HydraConfig.get().mode == RunMode.MULTIRUN


def figures(experiment: str, seed: int, run: Path) -> list[Line]:
    """Return the lines of a run that has ended."""
    result = read_result(run)
    if result is None or result["status"] not in ENDED:
        raise SystemExit(f"{run} has no result")
    rows = read_rows(run / "metrics.csv")
    typed = (f"experiment={experiment}", f"seed={seed}")
    own = " ".join(override for override in result["overrides"] if override not in typed)
    job = own if is_sweep(experiment) else ""
    shared = {"experiment": experiment, "seed": seed, "job": job} | {key: result[key] for key in ("epochs", "params")}
    seconds = "" if result["resumed"] else result["seconds"]["fit"]  # those of a resumed run are of its last part
    shared |= {"seconds": seconds, "processor": machine(), "device": result["device"]}
    shared |= {name: result["versions"][name] for name in VERSIONS}
    expect = expected(experiment)
    lines = []
    for name in dict.fromkeys(["test/acc", *expect]):
        if isinstance(expect.get(name, {}).get("published"), list):
            value = " ".join(f"{row[name]:.9g}" for row in rows if name in row)
        elif name in result["metrics"]:
            value = f"{result['metrics'][name]:.9g}"
        else:
            continue
        lines.append(shared | {"figure": name, "value": value})
    return lines or [shared | {"figure": "test/loss", "value": f"{result['metrics']['test/loss']:.9g}"}]


@functools.cache  # for the table of the other language
def expected(experiment: str, job: str = "") -> dict[str, dict[str, Any]]:
    overrides = [f"experiment={experiment}", *job.split()]
    found: Any = OmegaConf.to_container(compose(*overrides).expect or OmegaConf.create(), resolve=True)
    return found


def row(experiment: str, lines: list[Line]) -> str:
    """Return one line of the README's table from those of the file."""
    about = describe(experiment)
    cells = [f"`{experiment}`", f"{about.purpose} {about.source}".strip(), about.published]
    if not lines:
        return f"| {' | '.join(cells)} |  |  |  |  |  |"
    jobs = dict.fromkeys(line["job"] for line in lines)
    found = {
        (job, name): [one["value"].split() for one in lines if (one["job"], one["figure"]) == (job, name)]
        for job in jobs
        for name in dict.fromkeys(line["figure"] for line in lines if line["job"] == job)
    }
    cells.append("; ".join(f"{_label(job, name)}{_mean(name, values)}" for (job, name), values in found.items()))
    verdicts = {
        job: verdict(expected(experiment, job), {name: found[of, name] for of, name in found if of == job})
        for job in jobs
    }
    differ = [f"{_label(job, 'test/acc')}{word}" for job, word in verdicts.items() if word not in ("", "as published")]
    cells.append("; ".join(differ) or max(verdicts.values()))
    cells += [f"{int(lines[0]['params']):,}", _span(int(line["epochs"]) for line in lines)]
    runs = {(line["seed"], line["job"]): line["seconds"] for line in lines}
    times = [[time for (number, _), time in runs.items() if number == seed] for seed in {seed for seed, _ in runs}]
    seconds = [sum(map(float, parts)) for parts in times if "" not in parts]
    cells.append(_duration(min(seconds)) if seconds else "")
    return f"| {' | '.join(cells)} |"


class About(NamedTuple):
    """What the header of an experiment's file says."""

    shelf: str
    purpose: str
    source: str
    published: str


def describe(experiment: str) -> About:
    """Return what the header of an experiment's file says."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    header = [line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line][1:]
    shelf = next(line.removeprefix("Shelf: ") for line in header if line.startswith("Shelf: "))
    paragraph = " ".join(header)
    source = re.search(r"(?:After|Readings:) .*?(?=, whose|, which|\. |\.?$)", paragraph)
    published = re.search(r"Published:? (.*?)\.? (?=Takes|After|Readings)", paragraph)
    return About(shelf, header[0], f"{source[0]}." if source else "", published[1] if published else "")


def verdict(expect: dict[str, dict[str, Any]], found: dict[str, list[list[str]]]) -> str:
    """Return how the means compare with what is published: within two standard deviations or a unit of its last digit.

    Of a curve the last value counts, since each value published is of one run; all count where rounding is the only
    difference (``rtol``). One seed alone is not compared.
    """
    verdicts = []
    for name, how in expect.items():
        published: Any = how.get("published")
        if published is None or len(found.get(name, ())) < 2:
            continue
        wanted = published if isinstance(published, list) else [published]
        pairs = list(zip(wanted, zip(*(map(float, values) for values in found[name]), strict=True), strict=False))
        for want, column in pairs if "rtol" in how else pairs[-1:]:
            digits = max(len(f"{want:.10g}".partition(".")[2]), 2 if is_percentage(name) else 0)
            near = max(2 * statistics.stdev(column), 10**-digits, how.get("rtol", 0.0) * abs(want))
            difference = statistics.mean(column) - want
            side = f"{_label('', name)}{'higher' if difference > 0 else 'lower'}"
            verdicts.append("as published" if abs(difference) <= near else side)
    differ = dict.fromkeys(word for word in verdicts if word != "as published")
    return "; ".join(differ) or (verdicts[0] if verdicts else "")


def _label(job: str, name: str) -> str:
    """Return what precedes a figure: the value of a job; nothing for the test accuracy, which is the rule."""
    return f"{job.rpartition('=')[2]} " if job else "" if name == "test/acc" else f"{name.replace('/', ' ')} "


def _mean(name: str, values: list[list[str]]) -> str:
    """Return mean ± standard deviation (n), or the means of a curve. Only an accuracy's deviation has two digits."""
    factor, unit = (100, " %") if is_percentage(name) else (1, "")
    columns = [[factor * float(number) for number in column] for column in zip(*values, strict=True)]
    if len(columns) > 1:
        if max(map(max, columns)) > 1000:
            return f"{columns[0][0]:,.0f} to {columns[-1][0]:,.0f} ({len(values)})"
        digits = 1 if unit else 3
        return f"{' '.join(f'{statistics.mean(column):.{digits}f}' for column in columns)}{unit} ({len(values)})"
    mean, spread = statistics.mean(columns[0]), statistics.stdev(columns[0]) if len(values) > 1 else 0.0
    if not unit and not spread:
        return f"{format_metric(name, mean)} ({len(values)})"
    digits = 2 if unit else max(-math.floor(math.log10(spread)), 0)
    deviation = f" ± {spread:,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{deviation}{unit} ({len(values)})"


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def tables(header: str, shelf_names: dict[str, str]) -> str:
    """Return a table for each shelf."""
    lines = read_table()
    shelves: dict[str, list[str]] = {shelf: [] for shelf in SHELVES}
    for experiment in SEEDS:
        found = [line for line in lines if line["experiment"] == experiment]
        shelves[describe(experiment).shelf].append(row(experiment, found))
    blocks = []
    for shelf, rows in shelves.items():
        if rows:
            title = shelf_names.get(shelf, shelf).capitalize()
            blocks.append("\n".join(["", f"**{title}**", "", f"| {header} |", f"{'|---' * 8}|", *rows, ""]))
    return "".join(blocks)


def write_readmes() -> None:
    for name, (header, shelf_names) in LANGUAGES.items():
        file = PROJECT / name
        before, begin, rest = file.read_text(encoding="utf-8").partition("<!-- results -->\n")
        _, end, after = rest.partition("<!-- end of results -->\n")
        atomic_write_text(file, before + begin + tables(header, shelf_names) + "\n" + end + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="names (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1 2 3, more or fewer for some")
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "results", help="directory of the runs")
    parser.add_argument(
        "--readme", action="store_true", help="only write the tables into README.md and README.zh-CN.md"
    )
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.experiments) - set(SEEDS)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(SEEDS)}")
    if arguments.readme and (arguments.experiments or arguments.seeds):
        parser.error("--readme writes all that was measured, and takes no names and no seeds")
    if arguments.readme:
        write_readmes()
        return
    for experiment in arguments.experiments or SEEDS:
        for seed in arguments.seeds or range(1, SEEDS[experiment] + 1):
            if not any((line["experiment"], line["seed"]) == (experiment, str(seed)) for line in read_table()):
                measure(experiment, seed, arguments.folder.resolve())
        print(row(experiment, [line for line in read_table() if line["experiment"] == experiment]), flush=True)


if __name__ == "__main__":
    main()
