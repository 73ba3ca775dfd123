"""The table at the end of a run."""

import math
from pathlib import Path
from typing import Any

from runs.expectations import Comparison
from runs.format import format_metric, format_metrics, pluralize, text_columns

# The plot to open first.
MAIN_PLOTS = ("predictions", "boundary", "line", "generated", "reconstructions", "continuation", "loss")


def summary_line(result: dict[str, Any]) -> str:
    """Return the result of a run in one line, for a job of a sweep."""
    known = [f"{stage}/{metric}" for stage in ("val", "test") for metric in ("acc", "loss")]
    names = dict.fromkeys([*filter(None, [result.get("monitor")]), *known])
    metrics = {name: value for name in names if (value := result["metrics"].get(name)) is not None}
    return "  ".join(filter(None, [format_metrics(metrics), f"{result['seconds']['total']:.1f} s"]))


def summary_table(result: dict[str, Any], run_dir: Path, comparisons: list[Comparison], changed: list[str]) -> str:
    """Return the table for the end of a run.

    Args:
        result: the content of ``result.json``.
        run_dir: the directory of the run.
        comparisons: with what the experiment expects.
        changed: overrides that change what is measured; the expected figures do not apply then.
    """
    seconds = result["seconds"]
    rows = [(result["name"], f"seed {result['seed']}, {result['params']:,} parameters, {result['device']}")]
    rows += _metric_rows(result["metrics"])
    optimizers = result.get("optimizers", 1)
    of_each = f" of {optimizers} optimizers" if optimizers > 1 else ""
    length = f"{pluralize(result['epochs'], 'epoch')}, {pluralize(result['steps'], 'step')}{of_each}"
    since = " since it was resumed" if result["resumed"] else ""
    rows += [
        ("training", f"{length}, {seconds['fit']:.1f} s{since}"),
        ("whole run", f"{seconds['total']:.1f} s{since}"),
    ]
    if result["status"] != "finished":
        rows.append(("status", result["status"]))
    if changed:
        rows.append(("not compared", f"with the published figures, because of these overrides: {', '.join(changed)}"))
    if run_dir.is_relative_to(Path.cwd()):
        run_dir = run_dir.relative_to(Path.cwd())
    rows.append(("output directory", str(run_dir)))
    files = [run_dir / "pictures" / f"{name}.png" for name in MAIN_PLOTS]
    rows += [("plot", str(file)) for file in files if file.exists()][:1]
    if (run_dir / "dashboard.txt").exists():
        rows.append(("tensorboard", "tensorboard --logdir outputs"))
    lines = text_columns(rows)
    if comparisons and not changed:
        lines += ["", *text_columns([("metric", "published", "expected", "got", ""), *(c.row() for c in comparisons)])]
    return "\n".join(lines)


def _metric_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the test metrics, and of metrics without a stage such as the coefficients of a line."""
    rows = []
    if metrics.get("test/acc") is not None:
        rows.append(("test accuracy", f"{100 * metrics['test/acc']:.2f} %"))
    by_class = [(name.removeprefix("test/acc/"), value) for name, value in metrics.items() if "test/acc/" in name]
    for start in range(0, len(by_class), 5):
        known = [(name, math.nan if value is None else value) for name, value in by_class[start : start + 5]]
        shown = [(name, "no example" if math.isnan(value) else f"{100 * value:.1f} %") for name, value in known]
        accuracies = "  ".join(map(" ".join, shown))
        rows.append(("" if start else "of each class", accuracies))
    if metrics.get("test/loss") is not None:
        rows.append(("test loss", f"{metrics['test/loss']:.4g}"))
    others = [name for name in metrics if name.startswith("test/") and name not in ("test/acc", "test/loss")]
    for name in (name for name in others if name.count("/") == 1 and metrics[name] is not None):
        rows.append((name.replace("/", " "), format_metric(name, metrics[name])))
    rows += [(name, f"{value:.6g}") for name, value in metrics.items() if "/" not in name and value is not None]
    return rows
