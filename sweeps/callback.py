"""The Hydra callback that sums up a sweep."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runs.files import update_symlink, write_png
from sweeps import study
from sweeps.summary import Summary


class SweepSummary(Callback):
    """Write ``summary.csv``, ``summary.md`` and ``summary.png`` into the directory of the sweep, and print the table.

    The tables are written after every job, so that an interrupted sweep has them too; the figure and the print come at
    the end. Hydra makes a warning in a log of whatever a callback raises. Here it is printed and remembered.
    """

    folder: ClassVar[Path | None] = None  # of the sweep of this process
    failed: ClassVar[int] = 0  # its jobs that failed
    errors: ClassVar[list[str]] = []  # what could not be summed up or written

    @classmethod
    def exit_code(cls) -> int:
        """Return 0 for a sweep whose jobs and files are all there, and 1 for another."""
        return int(cls.failed > 0 or bool(cls.errors))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(OmegaConfBaseException):  # a directory that is not there: Hydra raises that itself
            SweepSummary.folder = Path(config.hydra.sweep.dir)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode.name == "MULTIRUN":
            with _noticed("outputs/last_sweep"):
                update_symlink(Path("outputs", "last_sweep"), Path(config.hydra.sweep.dir))

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
        if study.exists(folder) and (importances := study.importances(study.open_study(folder))):
            shares = ", ".join(f"{name} {importance:.2f}" for name, importance in importances.items())
            summary.importance = f"importance: {shares}"
    return summary


@contextlib.contextmanager
def _noticed(what: str) -> Iterator[None]:
    """Print what is raised in one line, once, and remember it for the exit code."""
    try:
        yield
    except Exception as error:
        text = " ".join(f"{what}: {error or type(error).__name__}".split())
        if text not in SweepSummary.errors:
            SweepSummary.errors.append(text)
            with contextlib.suppress(OSError):
                print(f"error: {text}", file=sys.stderr, flush=True)


def _print(text: str) -> None:
    """Print on any terminal: what its encoding does not have is replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    with contextlib.suppress(BrokenPipeError):  # nobody reads it
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
