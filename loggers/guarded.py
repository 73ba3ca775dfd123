"""What the loggers of services share: a failure costs their records, and not the training."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from runs.files import atomic_write_text
from runs.format import printable

log = logging.getLogger(__name__)


class Guarded(Logger):
    """Writes until something fails. A line then says so, nothing more is written, and the training continues.

    Precedes a logger of Lightning's among the base classes. Its steps are gradient steps; those that Lightning passes
    are batches.
    """

    title: str  # in messages
    write_error: OSError | None = None  # after which nothing more is written
    _trainer: Any = None  # from the start of the training

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        self._trainer = model.trainer  # Lightning calls this at the start

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if metrics:
            self._guard(lambda: self._write_metrics(dict(metrics), self._gradient_step(step)))

    def _write_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        super().log_metrics(metrics, step)  # type: ignore[safe-super]

    def _gradient_step(self, step: int | None) -> int | None:
        is_training = self._trainer is not None and self._trainer.state.fn == "fit"
        return self._trainer.global_step if is_training else step

    def begin(self) -> None:
        """Begin the run at the service, or find the one to continue. Nothing is written to the run directory."""

    def abandon(self) -> None:
        """Undo :meth:`begin`, because the training does not start."""

    def log_config(self, config: dict[str, Any], text: str) -> None:
        """Record the settings of the run: as values, and as the text of config.yaml."""
        self._guard(lambda: self.log_hyperparams(config))

    def save(self) -> None:
        self._guard(lambda: super(Guarded, self).save())

    def finalize(self, status: str) -> None:
        self._guard(lambda: super(Guarded, self).finalize(status))

    def _guard(self, write: Callable[[], Any]) -> None:
        if self.write_error:
            return
        try:
            write()
        except Exception as error:
            reason = first_line(error)
            self.write_error = error if isinstance(error, OSError) else OSError(f"{self.title}: {reason}")
            log.warning("no more is written to %s: %s; the training continues", self.title, reason)


def begin_loggers(loggers: Sequence[Logger]) -> None:
    """Begin the run at each service; where one refuses, undo what has begun."""
    with contextlib.ExitStack() as begun:
        for logger in loggers:
            if isinstance(logger, Guarded):
                logger.begin()
                begun.callback(logger.abandon)
        begun.pop_all()


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something. Those of services go on with a request or a stack."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    first = next((line for line in lines if not line.startswith("(raised as a result of")), lines[0])  # SQLAlchemy
    return first.rstrip(".")[:300]


def read_run_id(file: Path) -> list[str]:
    """Return the lines of the file that names the run at a service; none where there is no such file."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8").splitlines()
    return []


def write_run_id(file: Path, *lines: str) -> None:
    """Write the file by which a resumed run finds its run at a service."""
    atomic_write_text(file, "".join(f"{line}\n" for line in lines))


def is_resumed(run_dir: str) -> bool:
    """Return whether the run in this directory began before. Asked before the loggers begin."""
    return Path(run_dir, "config.yaml").is_file()


def check_place(stored: str, given: str, is_default: bool, service: str, setting: str) -> None:
    """Raise ValueError where the run to resume is elsewhere at a service, and the command does not say where.

    A run may come from anyone: what its file names is compared and shown, and never used.
    """
    if is_default and stored != given:
        raise ValueError(
            f"resume: this run is in {service} at {printable(stored)[:200]}, an address that is not taken from a run: "
            f"{setting}=… continues it there, logger=none continues without {service}"
        )


def check_no_link(path: Path) -> None:
    """Raise ValueError for a link that records would be written through. It may have come with a run."""
    if path.is_symlink():
        raise ValueError(f"{path} is refused: it is a link to {os.readlink(path)}, and records would go there")
