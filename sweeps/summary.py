"""The end of a sweep: every run of it in one table, ranked, and a picture. A callback of Hydra, not of Lightning."""

import contextlib
import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runs.files import atomic_write, update_symlink
from runs.format import markdown_table, text_columns
from runs.monitor import MONITORS
from runs.overrides import override_values
from runs.result import read_result
from sweeps import study

ORDER = {"max": "highest", "min": "lowest"}
# Settings that make a run a replicate of another: the table has the mean over them.
REPLICATE_KEYS = ("seed", "data.fold")


class SweepSummary(Callback):
    """Writes ``summary.csv``, ``summary.md`` and ``summary.png`` into the folder of the sweep and prints the table.

    After every job, so that an interrupted sweep has a summary too; the picture and the print come at the end.
    """

    folder: ClassVar[Path | None] = None  # of the sweep of this process
    failed: ClassVar[int] = 0  # jobs of it

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(OmegaConfBaseException):  # no such folder: Hydra hears that too, and says so
            SweepSummary.folder = Path(config.hydra.sweep.dir)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode.name == "MULTIRUN":
            update_symlink(Path("outputs", "last_sweep"), Path(config.hydra.sweep.dir))

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        if config.hydra.mode.name == "MULTIRUN":
            summary = Summary(Path(config.hydra.sweep.dir))
            if summary.results:
                summary.write()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        summary = Summary(Path(config.hydra.sweep.dir))
        SweepSummary.failed = len(summary.failed())
        if summary.results:
            summary.write()
            summary.draw()
            print(f"\n{summary}")


class Summary:
    """The results in a sweep's folder.

    Attributes:
        results: of all jobs, the best one first.
        keys: the settings that differ between the jobs, without those of ``REPLICATE_KEYS``.
        groups: the results of each combination of ``keys``, the best combination first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        jobs = sorted(folder.glob("*/result.json"), key=lambda path: (len(path.parent.name), path.parent.name))
        self.results = [read_result(path.parent) or {} for path in jobs]  # the first job first
        measured = [result["metrics"] for result in self.results]
        self.monitor = next((name for name in MONITORS if any(name in metrics for metrics in measured)), "val/loss")
        self._sign = -1 if MONITORS[self.monitor] == "max" else 1
        self.settings = {id(result): override_values(result["overrides"]) for result in self.results}
        names = dict.fromkeys(key for settings in self.settings.values() for key in settings)
        swept = [key for key in names if len({settings.get(key) for settings in self.settings.values()}) > 1]
        self.keys = [key for key in swept if key not in REPLICATE_KEYS]
        self.sampled = [key for key in swept if key in REPLICATE_KEYS]
        self.results.sort(
            key=lambda result: self._badness([result])
        )  # of those as good as each other the first is best
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for result in self.results:
            values = tuple(self.settings[id(result)].get(key, "") for key in self.keys)
            groups.setdefault(values, []).append(result)
        self.groups = dict(sorted(groups.items(), key=lambda item: self._badness(item[1])))

    def scores(self, results: Iterable[dict[str, Any]], metric: str | None = None) -> list[float]:
        """Of the runs that came to their end."""
        ended = [result for result in results if result["status"] in ("finished", "diverged")]
        values = [result["metrics"].get(metric or self.monitor) for result in ended]
        return [value for value in values if value is not None]

    def failed(self) -> list[dict[str, Any]]:
        """Those that were not what they were to be, such as a failed check."""
        wrong = [result for result in self.results if result["status"] == "failed" or "reason" in result]
        return [result for result in wrong if result["status"] != "pruned"]

    def _badness(self, results: list[dict[str, Any]]) -> float:
        scores = self.scores(results)
        return self._sign * statistics.mean(scores) if scores else math.inf

    # --- tables ---------------------------------------------------------------------------------------------------

    def jobs(self) -> list[dict[str, str]]:
        """A row for each job."""
        metrics = [name for result in self.results for name in result["metrics"] if name.count("/") == 1]
        rows = []
        for rank, result in enumerate(self.results, 1):
            settings = self.settings[id(result)]
            row = {"rank": str(rank)} | {key: settings.get(key, "") for key in (*self.keys, *self.sampled)}
            for name in dict.fromkeys([self.monitor, *metrics]):
                value = result["metrics"].get(name)
                row[name] = "" if value is None else f"{value:.6g}"
            rows.append(row | {"status": result["status"], "reason": result.get("reason", "")})
        return rows

    def means(self) -> list[dict[str, str]]:
        """A row for each combination of settings, with mean ± standard deviation over the seeds and folds."""
        metrics = [self.monitor, *(name for name in ("test/acc", "test/loss") if name != self.monitor)]
        rows = []
        for rank, (values, results) in enumerate(self.groups.items(), 1):
            row = {"rank": str(rank)} | dict(zip(self.keys, values, strict=True))
            for name in metrics:
                if scores := self.scores(results, name):
                    spread = f" ± {statistics.stdev(scores):.2g}" if len(scores) > 1 else ""
                    row[name] = f"{statistics.mean(scores):.6g}{spread}"
                elif any(self.scores(self.results, name)):
                    row[name] = ""
            rows.append(row | {"n": str(len(self.scores(results)))})
        return rows

    def write(self) -> None:
        rows = self.jobs()
        lines = []
        if self.scores(self.results):
            lines += [f"Ranked by {self.monitor}, the {ORDER[MONITORS[self.monitor]]} first. The best again:", ""]
            lines += [f"    {self.best()['command']}", ""]
        if importance := self.importance():
            lines += [importance, ""]
        if self.sampled:
            lines += [*markdown_table(self.means()), ""]
        lines += [*markdown_table(rows), ""]
        with atomic_write(self.folder / "summary.csv") as file, open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        with atomic_write(self.folder / "summary.md") as file:
            file.write_text("\n".join(lines))

    def importance(self) -> str:
        """Of the settings of a search, in a line."""
        if not (self.folder / "study.db").exists():
            return ""
        shares = study.importances(study.open_study(self.folder))
        return "importance: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()) if shares else ""

    def best(self) -> dict[str, Any]:
        """The best job of the best combination."""
        return next(iter(self.groups.values()))[0]

    def __str__(self) -> str:
        rows = self.means() if self.sampled else self.jobs()
        rows = [{key: value for key, value in row.items() if key != "reason"} for row in rows]
        rows = rows if self.scores(self.results) else []
        shown = [list(rows[0]), *(list(row.values()) for row in rows[:12])] if rows else []
        lines = text_columns(shown) if shown else []
        if len(rows) > 12:
            lines.append(f"  … and {len(rows) - 12} more in {self.folder / 'summary.csv'}")
        reasons: dict[str, list[str]] = {}
        for result in self.failed():
            settings = [f"{key}={self.settings[id(result)].get(key, '')}" for key in (*self.keys, *self.sampled)]
            reasons.setdefault(result.get("reason", "killed"), []).append(" ".join(settings))
        for reason, (first, *others) in reasons.items():
            which = f"{first} and {len(others)} more" if others else first
            lines.append(f"  failed: {': '.join(filter(None, (which, reason)))}")
        pruned = [result for result in self.results if result["status"] == "pruned"]
        counts = {"failed": len(self.failed()), "pruned": len(pruned)}
        number = f"{len(self.results)} run" + "s" * (len(self.results) > 1)
        count = "".join([number, *(f", {n} {what}" for what, n in counts.items() if n)])
        lines += ["", f"  {count}, in {self.folder}"]
        if self.scores(self.results):
            lines.append(f"  best: {self.best()['command']}")
        if importance := self.importance():
            lines.append(f"  {importance}")
        return "\n".join(lines)

    # --- the picture ----------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """``summary.png``: of a search its study; else the metric over the one or two settings of the sweep; else the
        best combinations."""
        if (self.folder / "study.db").exists():
            study.draw(self.folder, self.monitor, self.folder / "summary.png")
            return
        groups = {values: scores for values, results in self.groups.items() if (scores := self.scores(results))}
        if not groups:
            return
        from plots.charts import TRAIN, VAL, WRONG, new_figure, plain, save  # slow to import

        numbers = [_numbers([values[place] for values in groups]) for place in range(len(self.keys))]
        if len(self.keys) == 2 and len(groups) > 3:
            figure = self._heat_map(groups)
        elif len(self.keys) == 1 and numbers[0]:
            figure = new_figure(6.4, 4)
            axes = plain(figure.subplots(), self.keys[0], self.monitor)
            points = sorted(zip(numbers[0], groups.values(), strict=True))
            x, means = [x for x, _ in points], [statistics.mean(scores) for _, scores in points]
            if self.sampled:
                spreads = [statistics.stdev(scores) if len(scores) > 1 else 0.0 for _, scores in points]
                axes.errorbar(x, means, spreads, color=TRAIN, marker="o", markersize=4, linewidth=1.2, capsize=3)
            else:
                axes.plot(x, means, color=TRAIN, marker="o", markersize=4, linewidth=1.2)
            best = next(iter(groups))
            mark = (numbers[0][0], statistics.mean(groups[best]))
            label = f"best: {self.keys[0]} = {best[0]}"
            axes.plot(*mark, marker="o", markersize=9, linestyle="none", color=WRONG, label=label)
            if min(x) > 0 and max(x) >= 30 * min(x):
                axes.set_xscale("log")
            axes.legend(frameon=False)
        else:
            shown = list(groups.items())[:20]
            figure = new_figure(7, 1.2 + 0.32 * len(shown))
            mean = f" (bar: mean over {', '.join(self.sampled)})" if self.sampled else ""
            axes = plain(figure.subplots(), self.monitor + mean, "")
            for place, (_, scores) in enumerate(shown):
                axes.plot(scores, [place] * len(scores), "o", color=TRAIN, markersize=4, alpha=0.5)
                axes.plot(statistics.mean(scores), place, "|", color=VAL, markersize=14, markeredgewidth=2.5)
            keys = [key.rpartition(".")[2] for key in self.keys]
            names = [" ".join(map("=".join, zip(keys, values, strict=True))) for values, _ in shown]
            axes.set_yticks(range(len(shown)), [name or "all" for name in names])
            axes.set_ylim(len(shown) - 0.5, -0.5)
        save(figure, self.folder / "summary.png")

    def _heat_map(self, groups: dict[tuple[str, ...], list[float]]) -> Any:
        from plots.charts import new_figure

        sides = []
        for place in range(2):
            values = list(dict.fromkeys(group[place] for group in groups))
            numbers = dict(zip(values, _numbers(values) or range(len(values)), strict=True))
            sides.append(sorted(values, key=numbers.__getitem__))
        rows, columns = sides
        table = [
            [statistics.mean(groups[row, column]) if (row, column) in groups else math.nan for column in columns]
            for row in rows
        ]
        figure = new_figure(2.5 + 0.75 * len(columns), 1.6 + 0.5 * len(rows))
        axes = figure.subplots()
        shown: Any = axes.imshow(table, cmap="Blues" if self._sign < 0 else "Blues_r", aspect="auto")
        figure.colorbar(shown, label=self.monitor)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(self.keys[1])
        axes.set_ylabel(self.keys[0])
        for y, cells in enumerate(table):
            for x, value in enumerate(cells):
                if not math.isnan(value):
                    dark = shown.norm(value) > 0.6 if self._sign < 0 else shown.norm(value) < 0.4
                    colour = "white" if dark else "black"
                    axes.text(x, y, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=8)
        return figure


def _numbers(values: Sequence[str]) -> list[float]:
    """The values as numbers; none if one is a name."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return []
