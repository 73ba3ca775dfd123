"""The Hydra callback that summarizes a sweep."""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runs.files import is_same_directory, update_symlink, write_png
from runs.format import printable
from sweeps import study
from sweeps.summary import Summary


class SweepSummary(Callback):
    """Writes ``summary.csv``, ``summary.md`` and ``summary.png`` to the sweep directory, and prints the table.

    The tables are written after jobs too, so that an interrupted sweep has them. They are of all jobs, so each takes
    longer than the one before: from the fiftieth job on they take a twentieth of the time at most. The figure is drawn
    and the table printed at the end. Hydra would only log an exception of a callback, so errors are printed here and
    set the exit code.
    """

    sweep_dir: ClassVar[Path | None] = None  # directory of the sweep that this process runs
    failed: ClassVar[int] = 0  # number of failed jobs
    left: ClassVar[int] = 0  # number of jobs that did not begin, in a sweep that ends at its first failure
    complete: ClassVar[bool] = True  # whether the summary was written, and every failed job could record its failure
    _next_write: ClassVar[float] = 0.0  # the time of the next summary after a job

    @classmethod
    def exit_code(cls) -> int:
        """Return 1 for a sweep with a failed job or an incomplete summary, else 0."""
        return int(cls.failed > 0 or not cls.complete)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(OmegaConfBaseException):  # Hydra raises it again
            SweepSummary.sweep_dir = Path(config.hydra.sweep.dir)

    @classmethod
    def has_begun(cls) -> bool:
        """Return whether a job of the sweep has left something, so that the sweep can be resumed."""
        if cls.sweep_dir is None and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            cls.sweep_dir = Path(HydraConfig.get().sweep.dir)  # in a process that a launcher has started for jobs
        with contextlib.suppress(OSError):  # it cannot be looked at, which is reported
            return cls.sweep_dir is not None and any(
                next(cls.sweep_dir.glob(f"*/{name}"), None) for name in ("config.yaml", "result.json")
            )
        return False

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        start = time.monotonic()
        if config.hydra.mode.name != "MULTIRUN" or not is_same_directory(Path(config.hydra.sweep.dir)):
            return
        if config.hydra.job.num < 50 or start >= self._next_write:
            with _report_errors("the summary of the sweep"):
                summary = _summarize(Path(config.hydra.sweep.dir))
                if summary.jobs:
                    link_last_sweep(summary.sweep_dir)
                    summary.write()
            SweepSummary._next_write = (end := time.monotonic()) + 20 * (end - start)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        with _report_errors("the summary of the sweep"):
            if not is_same_directory(Path(config.hydra.sweep.dir)):
                raise ValueError(f"{config.hydra.sweep.dir} was removed while this sweep ran")
            summary = _summarize(Path(config.hydra.sweep.dir))
            SweepSummary.failed = len(summary.failed())
            if not summary.jobs:
                return
            with _report_errors("the summary of the sweep"):
                summary.write()
            with _report_errors("summary.png"):
                from plots.figure import to_pixels  # slow to import
                from sweeps.figures import summary_figure

                if figure := summary_figure(summary):
                    write_png(summary.sweep_dir / "summary.png", to_pixels(figure))
            _print(f"\n{summary}")


def link_last_sweep(sweep_dir: Path) -> None:
    """Let ``outputs/last_sweep`` point at a sweep of which a job has begun. A refused sweep leaves the link."""
    try:
        update_symlink(Path("outputs", "last_sweep"), sweep_dir)
    except OSError as error:  # the sweep does not need the link
        _print_once("warning", f"outputs/last_sweep does not point at this sweep: {error}")


def _summarize(sweep_dir: Path) -> Summary:
    summary = Summary(sweep_dir)
    with _report_errors("study.db"):
        if study.exists(sweep_dir):
            with study.storage_errors(sweep_dir):
                importances = study.importances(study.open_study(sweep_dir))
            texts = [f"{printable(name)} {importance:.2f}" for name, importance in importances.items()]
            summary.importance = f"importance: {', '.join(texts)}" if texts else ""
    return summary


@contextlib.contextmanager
def _report_errors(what: str) -> Iterator[None]:
    """Print an exception in one line, and record it for the exit code."""
    try:
        yield
    except Exception as error:
        SweepSummary.complete = False
        _print_once("error", f"{what}: {error or type(error).__name__}")


@functools.cache
def _print_once(level: str, text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"{level}: {printable(' '.join(text.split()))}", file=sys.stderr, flush=True)


def _print(text: str) -> None:
    """Print, with one ``?`` for each character that the terminal lacks, which keeps the columns of a table aligned."""
    encoding = sys.stdout.encoding or "utf-8"
    with contextlib.suppress(BrokenPipeError):  # stdout is closed
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
