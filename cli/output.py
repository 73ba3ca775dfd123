"""Standard output and the logs: escape characters that a terminal lacks, and detect lines that were not written."""

import contextlib
import errno
import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from runs.files import READ_ONLY, check_locks, unlink_other_names
from runs.format import printable

_incomplete: set[str] = set()  # outputs with lost lines
# The packages of this project, whose warnings PYTHONWARNINGS= may turn into errors.
OWN_MODULES = ("cli", "callbacks", "datamodules", "hydra_plugins", "lit_models", "loggers", "plots", "runs", "sweeps")


def prepare_output() -> None:
    """Escape characters that the encoding of the terminal lacks, and report logs that lose lines."""
    _open_closed_streams()
    _keep_warnings_of_libraries()
    warnings.filterwarnings("ignore", "The `srun` command is available")  # Lightning, on each machine of a cluster
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ± becomes \xb1 where the terminal has ASCII only
    logging.Handler.handleError = _report_lost_line  # type: ignore[method-assign, assignment]  # of all


def _open_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed, as after ``2>&-``.

    The next file that is opened would otherwise have its number, and what a library prints would go there.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        file: int | str = number
        try:
            os.fstat(number)
            file = os.devnull  # the number is that of another file already
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        stream = open(file, mode, encoding="utf-8", closefd=isinstance(file, str))  # noqa: SIM115  it stays open
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _keep_warnings_of_libraries() -> None:
    """Let ``PYTHONWARNINGS=error`` make errors of the warnings in this project alone: a user cannot mend a library."""
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.filterwarnings("default", module=rf"(?!({'|'.join(OWN_MODULES)})\b)")


def _report_lost_line(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Report once for each output that it has lost lines. A run continues when its terminal or pipe is closed."""
    error = sys.exc_info()[1]
    if isinstance(handler, logging.FileHandler):
        name = handler.baseFilename
    elif isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):  # EIO: the terminal was closed
        return
    else:
        name = "standard output"
    if name not in _incomplete:
        _incomplete.add(name)
        _print("error", f"{name} is incomplete: {error}")


class PrintableFormatter(logging.Formatter):
    """Escapes control characters on the terminal and in logs. They may come from the files of a run or of the data."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


class LogFile(logging.FileHandler):
    """Appends to the log of a run, but to no other file: the log of an untrusted run may be a hard link.

    Of a run that may be read and not written no log is kept, and a line says so. Lines are held back until the run
    begins: a refused process does not touch the log of the running one.
    """

    is_kept = True

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "delay": True})
        self.held: list[logging.LogRecord] | None = []

    def begin(self) -> None:
        """Write the lines that were held back, and from now on each at once."""
        held, self.held = self.held or [], None
        for record in held:
            self.handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        if self.held is not None:
            self.held.append(record)
            return
        if self.stream is None and self.is_kept:  # it is opened now
            try:
                check_locks(Path(self.baseFilename))
                unlink_other_names(Path(self.baseFilename))
                self.stream = self._open()
            except ValueError:  # the directory may be another run's; this one ends with an error
                self.is_kept = False
            except OSError as error:
                if error.errno not in READ_ONLY:
                    self.handleError(record)
                    return
                self.is_kept = False
                _print("note", f"{os.path.relpath(self.baseFilename)} cannot be written, so no log is kept")
        if self.stream is not None:
            super().emit(record)


def begin_log() -> None:
    """Let the log of this run begin."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.begin()


def flush_output() -> bool:
    """Flush standard output, and return whether it and all logs are complete."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        if "standard output" not in _incomplete:
            _incomplete.add("standard output")
            _print("error", f"standard output is incomplete: {error}")
    return not _incomplete


def _print(level: str, message: str) -> None:
    with contextlib.suppress(OSError):  # the disk of stderr may be full too
        print(f"{level}: {printable(message)}", file=sys.stderr, flush=True)
