"""Run and sweep directories: make them, lock them, go on in them, and remove them where nothing has begun.

Only what this process has made may be removed by it: a mistake costs nobody a file, and a process that is refused
leaves the running one alone.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cli.job import is_multirun, task_overrides
from runs.checkpoint import find_checkpoint
from runs.files import RUN_DIRS, RUN_FILES, check_folder, is_within, make_dirs, make_unique_dir
from runs.overrides import train_command
from runs.result import read_result, write_result
from sweeps.jobs import JOB_DIR

log = logging.getLogger(__name__)

_made: list[Path] = []  # directories that this process has made, the innermost first
_before: dict[str, set[str]] = {}  # directory -> the names in it when this process began to use it
# What the sweepers write before the first job.
SWEEP_FILES = {"multirun.yaml", ".study.lock"}


class SharedJobDir(ValueError):
    """Two jobs of a sweep have one directory, so nothing can be recorded there for the second."""


class RecordDirs(Callback):
    """Makes the directory of a run or of a sweep in place of Hydra, to know what of it this process has made."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the name; Hydra does it after this
        self._make(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._make(config, "hydra.sweep.dir")

    def _make(self, config: DictConfig, key: str) -> None:
        # What is wrong is raised again, where Hydra makes the directory: of a callback it would only warn.
        with contextlib.suppress(OmegaConfBaseException, OSError):
            _use(make_dirs(folder := Path(str(OmegaConf.select(config, key)))), folder)


def _use(made: list[Path], folder: Path) -> None:
    _made[:0] = [path.absolute() for path in made]
    _before.setdefault(os.path.abspath(folder), set(os.listdir(folder)))


def _make_unique(name: str) -> str:
    made = make_unique_dir(name)
    _use(made, made[0])
    return str(made[0])


def new_or_resumed_run_dir(resume: str | None, name: str) -> str:
    """Return the directory of the run to resume, or make a new one."""
    return str(find_checkpoint(resume)[0]) if resume else _make_unique(name)


def new_or_resumed_sweep_dir(sweep_resume: str | None, name: str) -> str:
    """Return the directory of the sweep to resume, or make a new one."""
    if sweep_resume is None:
        return _make_unique(name)
    folder = Path("outputs/last_sweep" if sweep_resume == "last" else sweep_resume)
    if not folder.is_dir():
        missing = (
            "there is no sweep yet in outputs/" if sweep_resume == "last" else f"{folder} is not a sweep directory"
        )
        raise FileNotFoundError(f"{missing}; python train.py -m model=mlp,cnn makes one")
    check_folder(folder)
    return os.path.relpath(folder.resolve())


def job_dir(sweep_dir: str, number: int, *, _root_: DictConfig) -> str:
    """Make the directory of a job and return its name.

    ``3-1f0c9a2b`` is the number of a job and a hash of its config, so that the same job finds its directory.
    """
    keys = [str(key) for key in _root_ if key not in ("hydra", "resume", "sweep_resume")]
    config = OmegaConf.to_container(OmegaConf.masked_copy(_root_, keys), resolve=True)
    digest = hashlib.blake2b(repr(config).encode(), digest_size=4).hexdigest()
    name = next((path.name for path in Path(sweep_dir).glob(f"*-{digest}")), f"{number}-{digest}")
    _use(make_dirs(folder := Path(sweep_dir, name)), folder)
    if not is_within(folder, Path(sweep_dir)):
        raise ValueError(f"{folder} is refused: it is a link to {os.readlink(folder)}, outside of the sweep")
    check_folder(folder)
    return name


@contextlib.contextmanager
def lock_run_dir(folder: Path, wait: bool) -> Iterator[None]:
    """Keep other processes from training in the same directory.

    The lock file stays: a process that waits for it has it open. It is removed with a directory in which nothing has
    begun, by the process that holds it and has made it.

    Raises:
        ValueError: another process is training there, and this one does not wait.
    """
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(folder / ".lock").acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise ValueError(f"another process is training in {folder}") from None
    with lock:
        try:
            yield
        except BaseException as error:
            if not is_recorded(error):
                for logger in (logging.getLogger(), logging.getLogger("py.warnings")):
                    for handler in [one for one in logger.handlers if isinstance(one, logging.FileHandler)]:
                        handler.close()
                        logger.removeHandler(handler)  # torch logs at exit, which would open the file again
                _remove_files(folder, {f"{HydraConfig.get().job.name}.log", ".lock"})
            raise


def check_unused(folder: Path, resume: str | None) -> None:
    """Raise ValueError for a directory with files that a training would overwrite, unless they are of the resumed run.

    A directory without checkpoints, in which only the resumed checkpoint lies, is not that of a run.
    """
    resumed, file = find_checkpoint(resume) if resume else (None, None)
    if resumed and file and file.parent.name == "checkpoints" and folder.resolve() == resumed:
        return
    if found := [name for name in (*RUN_FILES, *RUN_DIRS) if os.path.lexists(folder / name)]:
        raise ValueError(
            f"{folder} has {', '.join(found)} in it, which this run would overwrite: hydra.run.dir=… names another "
            f"directory, resume={folder} goes on with a run"
        )


def is_recorded(error: BaseException) -> bool:
    """Return whether an error ends one job of a sweep, whose result.json says why, and not the sweep."""
    ends_job = isinstance(error, Exception) and not isinstance(error, SharedJobDir)
    return is_multirun() and ends_job and getattr(error, "exit_code", 1) < 128


def load_result_or_resume(folder: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """Return the result of a sweep's job that ended before; let one that was interrupted resume.

    Raises:
        SharedJobDir: ``hydra.sweep.subdir`` names the same directory for another job.
    """
    result = read_result(folder) or {}
    by_settings = JOB_DIR.fullmatch(folder.name)  # the same ones may have been typed in another way
    if result and not by_settings and set(result["overrides"]) != set(task_overrides()):
        raise SharedJobDir(
            f"{folder} has the result of another job, {train_command(result['overrides'])}: "
            "hydra.sweep.subdir must name a directory for each job"
        )
    if result.get("status") in ("finished", "diverged", "pruned"):
        log.info("%s: done before", " ".join(task_overrides()))
        return result
    log.info(" ".join(task_overrides()))
    if (folder / "checkpoints" / "last.ckpt").exists():
        cfg.resume = str(folder)
    return None


def _new_names(folder: Path) -> set[str]:
    """Return what has come into a directory since this process began to use it."""
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    return names - _before.get(os.path.abspath(folder), names)


def _remove_files(folder: Path, names: set[str]) -> None:
    """Remove the new ones of these files from a directory, unless there is anything else that is new."""
    if (new := _new_names(folder)) <= names:
        for name in new:
            (folder / name).unlink()


def remove_sweep_files(folder: Path) -> None:
    """Remove what the sweepers write before the first job, where no job has begun and no other process searches."""
    from filelock import FileLock, Timeout

    if (new := _new_names(folder)) and new <= SWEEP_FILES:
        with contextlib.suppress(Timeout, OSError), FileLock(folder / ".study.lock", timeout=0):
            _remove_files(folder, SWEEP_FILES)


def remove_empty_dirs() -> None:
    """Remove the directories that this process has made and in which nothing is."""
    for path in _made:
        with contextlib.suppress(OSError):  # something is in it, or it has gone
            path.rmdir()


def record_failure(folder: Path, reason: str) -> dict[str, Any]:
    """Write why a job of a sweep failed into its result.json; a job that never started gets one."""
    overrides = task_overrides()
    result: dict[str, Any] = {"command": train_command(overrides), "overrides": overrides}
    result |= {"status": "failed", "metrics": {}}
    with contextlib.suppress(ValueError):  # a broken result.json
        result = read_result(folder) or result
    result |= {"reason": reason}
    try:
        write_result(folder, result)
    except OSError as error:  # the reason is printed, and the other jobs of the sweep still run
        log.warning("result.json could not be written: %s", error)
    return result
