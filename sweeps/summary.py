"""The summary of a sweep: tables of its jobs, the best first."""

import csv
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from runs.files import atomic_write, atomic_write_text
from runs.format import escape_markdown, is_percentage, markdown_table, pluralize, printable, text_columns
from runs.monitor import DEFAULTS
from sweeps.jobs import Job, read_jobs

ORDER = {"max": "highest", "min": "lowest"}
# Settings that make runs replicates of one another. The table has means over them.
REPLICATE_KEYS = ("seed", "data.fold")
MAX_ROWS = 12  # in the printed table


class Summary:
    """The jobs in a sweep's directory.

    Attributes:
        jobs: the best one first.
        keys: the settings that differ between the jobs, without those of ``REPLICATE_KEYS``.
        replicates: those of ``REPLICATE_KEYS`` that differ.
        groups: the jobs of each combination of ``keys``, the best combination first.
        importance: a line with the importance of each setting of a search; empty for other sweeps.
    """

    def __init__(self, sweep_dir: Path) -> None:
        self.sweep_dir = sweep_dir
        self.importance = ""
        jobs = read_jobs(sweep_dir)
        self.monitor, self.mode = _common_monitor(jobs)
        self.higher_is_better = self.mode == "max"
        known = [job.settings for job in jobs if job.settings]
        names = dict.fromkeys(key for settings in known for key in settings)
        swept = [key for key in names if len({settings.get(key) for settings in known}) > 1]
        self.keys = [key for key in swept if key not in REPLICATE_KEYS]
        self.replicates = [key for key in swept if key in REPLICATE_KEYS]
        self.jobs = sorted(
            jobs, key=lambda job: self._sort_key([job])
        )  # stable: of equally good jobs the first is best
        groups: dict[tuple[str, ...], list[Job]] = {}
        for job in self.jobs:
            groups.setdefault(tuple(job.settings.get(key, "") for key in self.keys), []).append(job)
        self._published = list(dict.fromkeys(name for job in self.jobs for name in job.published))
        self.groups = dict(sorted(groups.items(), key=lambda item: self._sort_key(item[1])))

    def scores(self, jobs: Iterable[Job], metric: str | None = None) -> list[float]:
        """Return the metric, by default the monitored one, of the jobs that ended."""
        metric = metric or self.monitor
        return [job.metrics[metric] for job in jobs if job.ended and metric in job.metrics]

    def best(self) -> Job:
        """Return the best job of the best combination of settings."""
        return next(iter(self.groups.values()))[0]

    def failed(self) -> list[Job]:
        return [job for job in self.jobs if job.failed]

    def _sort_key(self, jobs: list[Job]) -> float:
        if not (scores := self.scores(jobs)):
            return math.inf
        return -statistics.mean(scores) if self.higher_is_better else statistics.mean(scores)

    # --- tables ---------------------------------------------------------------------------------------------------

    def job_rows(self, percent: bool = False) -> list[dict[str, str]]:
        """Return a row for each job, with accuracies in percent where people read it."""
        measured = (name for job in self.jobs for name in job.metrics if name.count("/") == 1)
        names = list(dict.fromkeys([self.monitor, *measured]))
        rows = []
        for rank, job in enumerate(self.jobs, 1):
            row = {"rank": str(rank)} | {key: job.settings.get(key, "") for key in (*self.keys, *self.replicates)}
            row |= {name: _cell(name, [job.metrics[name]], percent) if name in job.metrics else "" for name in names}
            row |= self._published_cells(job, percent)
            rows.append(row | {"status": job.status, "reason": job.reason})
        return rows

    def mean_rows(self, percent: bool = False) -> list[dict[str, str]]:
        """Return a row for each combination of settings, with mean ± standard deviation over the replicates."""
        tested = f"test/{self.monitor.partition('/')[2]}"
        metrics = dict.fromkeys([self.monitor, tested, "test/acc", "test/loss"])
        measured = [name for name in metrics if self.scores(self.jobs, name)]
        rows = []
        for rank, (values, jobs) in enumerate(self.groups.items(), 1):
            row = {"rank": str(rank)} | dict(zip(self.keys, values, strict=True))
            for name in measured:
                row[name] = _cell(name, scores, percent) if (scores := self.scores(jobs, name)) else ""
            rows.append(row | self._published_cells(jobs[0], percent) | {"n": str(len(self.scores(jobs)))})
        return rows

    def _published_cells(self, job: Job, percent: bool) -> dict[str, str]:
        """Return the published figures of a job, for columns that all rows have if any job has such figures."""
        return {
            f"published {name}": _cell(name, [job.published[name]], percent) if name in job.published else ""
            for name in self._published
        }

    def write(self) -> None:
        """Write ``summary.csv`` and ``summary.md``."""
        rows = self.job_rows()
        with (
            atomic_write(self.sweep_dir / "summary.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        atomic_write_text(self.sweep_dir / "summary.md", self._markdown(self.job_rows(True)))

    def _markdown(self, rows: list[dict[str, str]]) -> str:
        lines = []
        if self.scores(self.jobs):
            monitor = escape_markdown(str(self.monitor))
            lines += [f"Ranked by {monitor}, the {ORDER[self.mode]} first. To repeat the best run:", ""]
            lines += [f"    {self.best().command}", ""]
        if self.importance:
            lines += [escape_markdown(self.importance), ""]
        for table in (self.mean_rows(True), rows) if self.replicates else (rows,):
            lines += [*markdown_table(table), ""]
        return "\n".join(lines)

    def __str__(self) -> str:
        sweep_dir = printable(str(self.sweep_dir))
        ranked = bool(self.scores(self.jobs))
        rows = (self.mean_rows(True) if self.replicates else self.job_rows(True)) if ranked else []
        rows = [{key: cell for key, cell in row.items() if key != "reason"} for row in rows]
        lines = text_columns([list(rows[0]), *(list(row.values()) for row in rows[:MAX_ROWS])]) if rows else []
        if len(rows) > MAX_ROWS:
            lines.append(f"  … and {len(rows) - MAX_ROWS} more in {sweep_dir}/summary.csv")
        lines += self._failure_lines()
        pruned = sum(job.status == "pruned" for job in self.jobs)
        counts = {"failed": len(self.failed()), "pruned": pruned}
        number = "".join([pluralize(len(self.jobs), "run"), *(f", {n} {what}" for what, n in counts.items() if n)])
        lines += ["", f"  {number}, in {sweep_dir}"]
        if ranked:
            lines.append(f"  best: {self.best().command}")
        if self.importance:
            lines.append(f"  {self.importance}")
        return "\n".join(lines)

    def _failure_lines(self) -> list[str]:
        """Return a line for each reason of a failure, with the first job that failed for it."""
        by_reason: dict[str, list[str]] = {}
        for job in self.failed():
            settings = " ".join(f"{key}={job.settings.get(key, '')}" for key in (*self.keys, *self.replicates))
            unknown = printable(str(job.run_dir / "result.json"))
            by_reason.setdefault(job.reason, []).append(settings if job.settings else unknown)
        lines = []
        for reason, (first, *others) in by_reason.items():
            which = f"{first} and {len(others)} more" if others else first
            parts = (reason,) if reason.startswith(which) else (which, reason)  # many a reason names the setting
            lines.append(f"  failed: {': '.join(filter(None, parts))}")
        return lines


def _cell(name: str, scores: list[float], percent: bool) -> str:
    """Return the mean of a metric over replicates, and its standard deviation where there are several."""
    mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else None
    if percent and is_percentage(name):
        return f"{100 * mean:.2f}{'' if spread is None else f' ± {100 * spread:.2f}'} %"
    return f"{mean:.6g}{'' if spread is None else f' ± {spread:.2g}'}"


def _common_monitor(jobs: Iterable[Job]) -> tuple[str, str]:
    """Return the metric that most of the jobs were monitored by, and its mode.

    Jobs of earlier versions do not say it. They count for the first of the usual metrics that they have.
    """
    found = Counter(monitor for job in jobs if (monitor := job.monitor or _usual_monitor(job.metrics)))
    order = list(DEFAULTS)
    ranked = sorted(found, key=lambda one: (-found[one], order.index(one[0]) if one[0] in order else 0))
    return ranked[0] if ranked else ("val/loss", "min")


def _usual_monitor(metrics: Iterable[str]) -> tuple[str, str] | None:
    return next(((name, mode) for name, mode in DEFAULTS.items() if name in metrics), None)
