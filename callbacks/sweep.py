"""The end of a sweep: every run of it in one table, ranked, and a picture. A callback of Hydra, not of Lightning."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger(__name__)

# What runs are ranked by: the first of these that they measured. The test set ranks nothing.
MONITORS = {"val/acc": "highest", "val/loss": "lowest", "train/loss": "lowest"}


class SweepSummary(Callback):
    """Writes ``summary.csv``, ``summary.md`` and ``summary.png`` into the folder of the sweep and prints the table."""

    def on_job_end(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode.name == "MULTIRUN":
            write(Path(config.hydra.sweep.dir))  # after each job, so that an interrupted sweep has one too

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if rows := write(folder):
            if len(swept := [key for key in rows[0] if "/" not in key and key not in ("rank", "status")]) == 1:
                draw(rows, swept[0], folder / "summary.png")
            log.info("\n%s\n\n  %d runs in %s", "\n".join(_lines(rows)), len(rows), folder)


def write(folder: Path) -> list[dict[str, str]]:
    """Writes the summary of the runs in a sweep's folder; returns its rows, the best one first."""
    results = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    if not results:
        return []
    monitor = next((name for name in MONITORS if any(name in result["metrics"] for result in results)), "val/loss")
    sign = -1 if MONITORS[monitor] == "highest" else 1
    scores = {id(result): result["metrics"].get(monitor) for result in results}
    results.sort(key=lambda r: (scores[id(r)] is None, sign * (scores[id(r)] or 0.0), r["command"]))
    overrides = [dict(part.split("=", 1) for part in result["overrides"] if "=" in part) for result in results]
    swept = [key for key in overrides[0] if len({other.get(key) for other in overrides}) > 1]
    metrics = list(dict.fromkeys([monitor, *(name for r in results for name in r["metrics"] if name.count("/") == 1)]))
    rows = [
        {"rank": str(rank)}
        | {key: chosen.get(key, "") for key in swept}
        | {name: "" if (value := result["metrics"].get(name)) is None else f"{value:.6g}" for name in metrics}
        | {"status": result["status"]}
        for rank, (result, chosen) in enumerate(zip(results, overrides, strict=True), 1)
    ]
    with open(folder / "summary.csv", "w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    best = results[0]
    table = [
        "| " + " | ".join(cells) + " |" for cells in (rows[0], ["---"] * len(rows[0]), *(r.values() for r in rows))
    ]
    text = f"Ranked by {monitor}, the {MONITORS[monitor]} first. The best again:\n\n    {best['command']}\n\n"
    (folder / "summary.md").write_text(text + "\n".join(table) + "\n")
    return rows


def draw(rows: list[dict[str, str]], setting: str, path: Path) -> None:
    """The metric that ranks against the setting that was swept, where that is a number."""
    metric = next(key for key in rows[0] if "/" in key)
    try:
        points = [(float(row[setting]), float(row[metric])) for row in rows if row[metric]]
    except ValueError:  # names were swept
        return
    if not points:
        return
    from callbacks.pictures import new_figure, plain, save  # slow to import

    figure = new_figure(6.4, 4)
    axes = plain(figure.subplots(), setting, metric)
    axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, linewidth=1.2)
    best = f"best: {setting} = {rows[0][setting]}"
    axes.plot(*points[0], marker="o", markersize=9, linestyle="none", color="tab:red", label=best)
    axes.legend(frameon=False)
    save(figure, path)


def _lines(rows: list[dict[str, str]], most: int = 12) -> list[str]:
    cells = [list(rows[0]), *(list(row.values()) for row in rows[:most])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    return lines + ([f"  … and {len(rows) - most} more in summary.csv"] if len(rows) > most else [])
