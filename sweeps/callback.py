"""The Hydra callback that sums up a sweep."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runs.files import update_symlink, write_png
from runs.format import printable
from sweeps import study
from sweeps.summary import Summary


class SweepSummary(Callback):
    """Write ``summary.csv``, ``summary.md`` and ``summary.png`` into the directory of the sweep, and print the table.

    The tables are written after every job, so that an interrupted sweep has them too; the figure and the print come at
    the end. Hydra makes a warning in a log of whatever a callback raises. Here it is printed and remembered.
    """

    folder: ClassVar[Path | None] = None  # of the sweep of this process
    failed: ClassVar[int] = 0  # its jobs that failed
    complete: ClassVar[bool] = True  # whether all of it could be summed up and written

    @classmethod
    def exit_code(cls) -> int:
        """Return 1 for a sweep with a job that failed or a summary that is not complete, else 0."""
        return int(cls.failed > 0 or not cls.complete)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(OmegaConfBaseException):  # a directory that is not there: Hydra raises that itself
            SweepSummary.folder = Path(config.hydra.sweep.dir)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode.name == "MULTIRUN":
            try:
                update_symlink(Path("outputs", "last_sweep"), Path(config.hydra.sweep.dir))
            except OSError as error:  # the sweep is whole without it
                _print_once("warning", f"outputs/last_sweep does not point at this sweep: {error}")

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        if config.hydra.mode.name == "MULTIRUN":
            with _noticed("the summary of the sweep"):
                summary = _summarize(Path(config.hydra.sweep.dir))
                if summary.jobs:
                    summary.write()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        with _noticed("the summary of the sweep"):
            summary = _summarize(Path(config.hydra.sweep.dir))
            SweepSummary.failed = len(summary.failed())
            if not summary.jobs:
                return
            with _noticed("the summary of the sweep"):
                summary.write()
            with _noticed("summary.png"):
                from plots.figure import to_pixels  # slow to import
                from sweeps.figures import summary_figure

                if figure := summary_figure(summary):
                    write_png(summary.folder / "summary.png", to_pixels(figure))
            _print(f"\n{summary}")


def _summarize(folder: Path) -> Summary:
    summary = Summary(folder)
    with _noticed("study.db"):
        if study.exists(folder):
            with study.storage_errors(folder):
                importances = study.importances(study.open_study(folder))
            texts = [f"{name} {importance:.2f}" for name, importance in importances.items()]
            summary.importance = f"importance: {', '.join(texts)}" if texts else ""
    return summary


@contextlib.contextmanager
def _noticed(what: str) -> Iterator[None]:
    """Print what is raised in one line, and remember it for the exit code."""
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
    """Print on any terminal: what its encoding does not have is replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    with contextlib.suppress(BrokenPipeError):  # nobody reads it
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
