"""Run and sweep directories: make, lock and resume them, and remove those in which no run has begun.

A process removes only what it has made itself. A mistyped command therefore deletes no file, and a process that is
refused does not disturb the one that is running.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from cli.job import is_recorded
from runs.checkpoint import find_checkpoint
from runs.files import (
    check_folder,
    check_last,
    check_name_in_outputs,
    check_outputs,
    forget_directories,
    hold_lock,
    holds_lock,
    make_dirs,
    make_unique_dir,
)
from sweeps.jobs import is_sweep

_made_dirs: list[Path] = []  # directories that this process has made, the innermost first
_names_before: dict[str, set[str]] = {}  # directory -> the names in it when this process began to use it
SUBMITIT_FOLDER = "${hydra.sweep.dir}/.submitit/%j"  # the default of Hydra's launcher


class RecordDirs(Callback):
    """Makes the directory of a run or a sweep before Hydra does, to record which directories this process has made.

    Submitit unpickles the files in its directory and appends to its logs there. A sweep may come from anyone, so each
    command gets a new one.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the name; Hydra does it after this
        self._make(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._make(config, "hydra.sweep.dir")
        launcher: Any = OmegaConf.to_container(config.hydra.launcher, resolve=False)
        if launcher.get("submitit_folder") == SUBMITIT_FOLDER:
            with read_write(config.hydra):
                config.hydra.launcher.submitit_folder = SUBMITIT_FOLDER.replace("%j", f"{secrets.token_hex(8)}/%j")

    def _make(self, config: DictConfig, key: str) -> None:
        # Hydra raises these errors again when it makes the directory itself. From a callback it would only log them.
        with contextlib.suppress(OmegaConfBaseException, OSError):
            track(make_dirs(directory := Path(str(OmegaConf.select(config, key)))), directory)


def track(made: list[Path], directory: Path) -> None:
    """Record directories that this process has made, and the names in the one that it will use."""
    _made_dirs[:0] = [path.absolute() for path in made]
    _names_before.setdefault(os.path.abspath(directory), set(os.listdir(directory)))


def _make_unique(name: str) -> str:
    made = make_unique_dir(name)
    track(made, made[0])
    return str(made[0])


def run_name(experiment: str | None, data: str, model: str) -> str:
    """Return the name of a run, by which its directory and its dashboards call it."""
    return experiment or f"{model}_on_{data}"


def new_or_resumed_run_dir(resume: str | None, name: str) -> str:
    """Return the directory of the run to resume, or make a new one."""
    if not resume:
        check_name_in_outputs(os.path.dirname(name), f"name={os.path.relpath(os.path.dirname(name), 'outputs')}")
        return _make_unique(name)
    directory = find_checkpoint(resume)[0]
    check_outputs(directory)
    return str(directory)


def new_or_resumed_sweep_dir(sweep_resume: str | None, name: str) -> str:
    """Return the directory of the sweep to resume, or make a new one."""
    if sweep_resume is None:
        return _make_unique(name)
    # A directory's name may look like a number.
    directory = Path("outputs/last_sweep" if sweep_resume == "last" else str(sweep_resume))
    missing = "there is no sweep yet in outputs/" if sweep_resume == "last" else f"{directory} is not a sweep directory"
    error = FileNotFoundError(f"{missing}; python train.py -m model=mlp,cnn makes one")
    if not directory.is_dir():
        raise error
    if sweep_resume == "last":
        check_last("outputs/last_sweep", directory)
    directory = Path(os.path.relpath(directory.resolve()))  # once: the link outputs/last_sweep may change
    check_folder(directory)
    check_outputs(directory)
    if any(directory.iterdir()) and not is_sweep(directory):
        raise error
    return not_missing(str(directory))


def not_missing(directory: str) -> str:
    """Return ``./???`` for a directory named ``???``, which in a config means that a value is missing."""
    return "./???" if directory == "???" else directory


@contextlib.contextmanager
def lock_run_dir(directory: Path, wait: bool) -> Iterator[None]:
    """Keep other processes from training in the same directory.

    The lock file stays, because a process that waits for it has it open. It is removed only with a directory in which
    no run has begun, by the process that holds the lock and has made the directory.

    Raises:
        ValueError: another process is training there, and this one does not wait.
    """
    from filelock import Timeout

    try:
        lock = _acquire(directory / ".lock", timeout=-1 if wait else 0)
    except Timeout:
        raise ValueError(f"another process is training in {directory}") from None
    with lock, hold_lock(directory / ".lock"):
        try:
            yield
        except BaseException as error:
            if not is_recorded(error):
                names = {".lock"}
                for logger in (logging.getLogger(), logging.getLogger("py.warnings")):
                    for handler in [one for one in logger.handlers if isinstance(one, logging.FileHandler)]:
                        if handler.stream is not None:  # else the log is not of this process
                            names.add(f"{HydraConfig.get().job.name}.log")
                        handler.close()
                        logger.removeHandler(handler)  # torch logs at exit, which would open the file again
                if holds_lock(directory):
                    _remove_files(directory, names)
            raise


def _acquire(file: Path, timeout: float) -> Any:
    """Lock a file. Its directory is made again where another process, in which no run has begun, has removed it."""
    from filelock import FileLock

    while True:
        if made := make_dirs(file.parent):
            _names_before.pop(os.path.abspath(file.parent), None)
            track(made, file.parent)
        try:
            return FileLock(file).acquire(timeout=timeout)
        except FileNotFoundError:
            if os.path.lexists(file):  # a link that leads nowhere
                raise


def _new_names(directory: Path) -> set[str]:
    """Return the names that were added to a directory since this process began to use it."""
    names = set(os.listdir(directory)) if directory.is_dir() else set()
    return names - _names_before.get(os.path.abspath(directory), names)


def _remove_files(directory: Path, names: set[str]) -> None:
    """Remove those of these files that are new in a directory, unless anything else in it is new."""
    if (new := _new_names(directory)) <= names:
        for name in new:
            (directory / name).unlink()


def remove_empty_dirs() -> None:
    """Remove the empty directories among those that this process has made."""
    for path in _made_dirs:
        with contextlib.suppress(OSError):  # it is not empty, or another process has removed it
            path.rmdir()


def forget_dirs() -> None:
    """Forget which directories this process has made, after a command of several: a user may use them since."""
    _made_dirs.clear()
    _names_before.clear()
    forget_directories()
