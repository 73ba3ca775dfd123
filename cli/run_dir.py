"""Run and sweep directories: make, lock and resume them, and remove those in which no run has begun.

A process removes only what it has made itself. A mistyped command therefore deletes no file, and a process that is
refused does not disturb the one that is running.
"""

import contextlib
import csv
import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from cli.job import is_multirun, task_overrides
from runs.checkpoint import CHECKPOINT_GROUPS, MUTABLE_DATA_KEYS, find_checkpoint, load_checkpoint
from runs.files import (
    RUN_DIRS,
    RUN_FILES,
    check_folder,
    is_leftover,
    is_within,
    make_dirs,
    make_unique_dir,
    read_yaml,
)
from runs.migrate import RENAMED_TARGETS
from runs.overrides import last_of_each, train_command, typed_setting
from runs.result import read_result, write_result
from runs.safety import stored_command
from sweeps.jobs import JOB_DIR, is_sweep

log = logging.getLogger(__name__)

_made_dirs: list[Path] = []  # directories that this process has made, the innermost first
_names_before: dict[str, set[str]] = {}  # directory -> the names in it when this process began to use it
_named_by_settings: set[str] = set()  # the directories of jobs whose names :func:`job_dir` has chosen
AFTER_EPOCH = ("evaluations", "predictions")  # what only a run has whose first epoch has ended
_RUN_KEYS = {*CHECKPOINT_GROUPS, "trainer", "seed"}  # of the config of each run, of an earlier version too
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: ")  # the format of conf/hydra/job_logging
SUBMITIT_FOLDER = "${hydra.sweep.dir}/.submitit/%j"  # the default of Hydra's launcher


class JobDirError(ValueError):
    """A job of a sweep cannot have this directory, so nothing can be recorded there."""


class SweepStopped(Exception):
    """Another job of the sweep has failed, and the sweep ends at the first failure. This job leaves nothing behind."""


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
            _track(make_dirs(directory := Path(str(OmegaConf.select(config, key)))), directory)


def _track(made: list[Path], directory: Path) -> None:
    _made_dirs[:0] = [path.absolute() for path in made]
    _names_before.setdefault(os.path.abspath(directory), set(os.listdir(directory)))


def _make_unique(name: str) -> str:
    made = make_unique_dir(name)
    _track(made, made[0])
    return str(made[0])


def new_or_resumed_run_dir(resume: str | None, name: str) -> str:
    """Return the directory of the run to resume, or make a new one."""
    return str(find_checkpoint(resume)[0]) if resume else _make_unique(name)


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
    directory = Path(os.path.relpath(directory.resolve()))  # once: the link outputs/last_sweep may change
    check_folder(directory)
    if any(directory.iterdir()) and not is_sweep(directory):
        raise error
    return not_missing(str(directory))


def not_missing(directory: str) -> str:
    """Return ``./???`` for a directory named ``???``, which in a config means that a value is missing."""
    return "./???" if directory == "???" else directory


def job_dir(sweep_dir: str, number: int, *, _root_: DictConfig) -> str:
    """Make the directory of a job and return its name, such as ``3-1f0c9a2b``.

    That is the number of the job and a hash of its config, by which a resumed sweep finds the directory.
    """
    keys = [str(key) for key in _root_ if key not in ("hydra", "resume", "sweep_resume", "sweep_fail_fast")]
    config = OmegaConf.to_container(OmegaConf.masked_copy(_root_, keys), resolve=True)
    digest = hashlib.blake2b(repr(config).encode(), digest_size=4).hexdigest()
    made = [path.name for path in Path(sweep_dir).glob(f"*-{digest}") if JOB_DIR.fullmatch(path.name)]
    name = next(iter(made), f"{number}-{digest}")
    _track(make_dirs(directory := Path(sweep_dir, name)), directory)
    if not is_within(directory, Path(sweep_dir)):
        raise ValueError(f"{directory} is refused: it is a link to {os.readlink(directory)}, outside of the sweep")
    check_folder(directory)
    _named_by_settings.add(os.path.abspath(directory))
    return name


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
    with lock:
        try:
            yield
        except BaseException as error:
            if not is_recorded(error):
                for logger in (logging.getLogger(), logging.getLogger("py.warnings")):
                    for handler in [one for one in logger.handlers if isinstance(one, logging.FileHandler)]:
                        handler.close()
                        logger.removeHandler(handler)  # torch logs at exit, which would open the file again
                _remove_files(directory, {f"{HydraConfig.get().job.name}.log", ".lock"})
            raise


def _acquire(file: Path, timeout: float) -> Any:
    """Lock a file. Its directory is made again where another process, in which no run has begun, has removed it."""
    from filelock import FileLock

    while True:
        if made := make_dirs(file.parent):
            _names_before.pop(os.path.abspath(file.parent), None)
            _track(made, file.parent)
        try:
            return FileLock(file).acquire(timeout=timeout)
        except FileNotFoundError:
            if os.path.lexists(file):  # a link that leads nowhere
                raise


def check_log(file: Path) -> None:
    """Raise ValueError for a file of the user's that has the name of a log, to which this command would add lines."""
    if not _is_log(file):
        raise ValueError(f"{file} is not the log of a run, and this command would add its lines to it: move it")


def _is_log(file: Path) -> bool:
    """Return whether a log is empty, of this project, or not there. Links are refused by :func:`check_folder`."""
    if not stat.S_ISREG(file.lstat().st_mode if os.path.lexists(file) else stat.S_IFREG):
        return True
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            start = lines.readline(200)
    except FileNotFoundError:
        return True
    return not start or bool(LOG_LINE.match(start))


def check_unused(folder: Path, resume: str | None) -> None:
    """Raise ValueError for a directory with files that a training would overwrite, unless they are of the resumed run.

    A checkpoint may have been copied into the directory. They are of its run if their ``config.yaml`` and their
    ``metrics.csv`` are.
    """
    resumed, file = find_checkpoint(resume) if resume else (None, None)
    if file and file.parent.name == "checkpoints" and folder.resolve() == resumed and _is_run_of(folder, file):
        _check_newest(folder, file)
        return
    found = _overwritten(folder)
    if found and not _died_early(folder, _stored_overrides(file), resume):
        has_run = not resume and (folder / "checkpoints" / "last.ckpt").is_file()
        hint = f", {typed_setting('resume', str(folder))} resumes a run" if has_run else ""
        raise ValueError(
            f"{folder} has {', '.join(found)} in it, which this run would overwrite: hydra.run.dir=… names another "
            f"directory{hint}"
        )
    check_folder(folder)


def _check_newest(folder: Path, file: Path) -> None:
    """Raise ValueError for a checkpoint that lies behind ``last.ckpt``: the steps since then would be lost."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file() or last.samefile(file):
        return
    step, newest = (load_checkpoint(one).get("global_step", 0) for one in (file, last))
    if isinstance(step, int) and isinstance(newest, int) and step < newest:
        raise ValueError(
            f"{file.name} is of step {step:,}, and last.ckpt in the same directory of step {newest:,}, which would be "
            f"lost: {typed_setting('resume', str(folder))} continues from there, and hydra.run.dir=… another run from "
            f"{file.name}"
        )


def _overwritten(folder: Path) -> list[str]:
    """Return the names of what a training would overwrite in a directory."""
    return [name for name in (*RUN_FILES, *RUN_DIRS) if os.path.lexists(folder / name)]


def _stored_overrides(file: Path | None) -> list[str]:
    """Return the overrides of this command, on top of those of the checkpoint that it resumes."""
    typed = [override for override in task_overrides() if not override.startswith("resume=")]
    stored = load_checkpoint(file)["config"]["choices"]["overrides"] if file else []
    return list((last_of_each(stored) | last_of_each(typed)).values()) if file else typed


def _is_run_of(folder: Path, file: Path) -> bool:
    """Return whether a checkpoint is of the run in a directory.

    Its config must agree with ``config.yaml`` in what no resumed run can change, and its rows with ``metrics.csv``,
    which has the seconds of each epoch.
    """
    config = read_yaml(folder / "config.yaml")
    if not set(config) >= _RUN_KEYS:
        return False
    checkpoint = load_checkpoint(file)
    stored = checkpoint["config"]
    fixed = {name: stored[name] for name in CHECKPOINT_GROUPS}
    fixed["data"] = {key: value for key, value in stored["data"].items() if f"data.{key}" not in MUTABLE_DATA_KEYS}
    is_same = bool(config["seed"] == stored["seed"]) and _agrees(config, fixed)
    return is_same and _has_rows_of(folder / "metrics.csv", checkpoint)


def _agrees(found: Any, fixed: Any) -> bool:
    """Return whether no setting that both have differs. Null is none: a resumed run has no file of initial weights."""
    if found is None or fixed is None:
        return True
    if isinstance(fixed, dict):
        return isinstance(found, dict) and all(_agrees(found.get(name), value) for name, value in fixed.items())
    if isinstance(fixed, list | tuple):
        return list(found) == list(fixed) if isinstance(found, list | tuple) else False
    return bool((RENAMED_TARGETS.get(found, found) if isinstance(found, str) else found) == fixed)


def _has_rows_of(metrics: Path, checkpoint: dict[str, Any]) -> bool:
    """Return whether the epochs in ``metrics.csv`` that a checkpoint has too are the same, to the millisecond."""
    state = checkpoint.get("callbacks", {}).get("MetricsHistory")
    stored = state.get("rows") if isinstance(state, dict) else None
    if not os.path.lexists(metrics) or not isinstance(stored, list):
        return True
    if (rows := _read_metrics(metrics)) is None:
        return False
    ended = {row["epoch"]: row for row in rows if row["seconds"]}
    pairs = (
        (row, ended.get(str(row.get("epoch")), {})) for row in stored if isinstance(row, dict) and "seconds" in row
    )
    return all(found.get(name, str(value)) == str(value) for row, found in pairs for name, value in row.items())


def _read_metrics(file: Path) -> list[dict[str, str]] | None:
    """Return the rows of a ``metrics.csv``, or None where it is that of another program."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return None
        header, *lines = csv.reader(file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError, csv.Error):
        return None
    if header[:2] != ["epoch", "step"] or header[-1] != "seconds" or any(len(line) != len(header) for line in lines):
        return None
    return [dict(zip(header, line, strict=True)) for line in lines]


def _died_early(folder: Path, overrides: list[str], resume: str | None = None) -> bool:
    """Return whether all that a run would overwrite here was left by a run of the same command before its first epoch.

    The same command may then begin anew.

    Args:
        folder: the directory.
        overrides: those of this command.
        resume: what this command resumes.
    """
    try:
        check_folder(folder)
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        result = read_result(folder)
        dashboard = folder / "dashboard.txt"
        events_dir = Path(dashboard.read_text(encoding="utf-8").strip()) if os.path.lexists(dashboard) else None
    except (OSError, ValueError):
        return False
    config = read_yaml(folder / "config.yaml")
    if not set(config) >= _RUN_KEYS or _dump(config) != text or config.get("resume") != resume:  # with notes in it
        return False
    choices = config.get("choices")
    if not _is_same(choices.get("overrides") if isinstance(choices, dict) else None, overrides):
        return False
    if result and (result.get("epochs") or not _is_same(result["overrides"], overrides)):
        return False
    # Rows of an epoch have its seconds; epoch 0 is a validation before any training.
    rows = _read_metrics(folder / "metrics.csv") if os.path.lexists(folder / "metrics.csv") else []
    if rows is None or any(row["seconds"] and row["epoch"] != "0" for row in rows):
        return False
    if events_dir is not None and events_dir.parts[:1] != ("outputs",) and not is_within(events_dir, folder):
        return False
    kept = [path for name in (*RUN_DIRS, *AFTER_EPOCH) for path in folder.glob(f"{name}/*")]
    return all(map(is_leftover, kept)) and _is_log(folder / f"{HydraConfig.get().job.name}.log")


def _is_same(found: Any, overrides: list[str]) -> bool:
    """Return whether stored overrides are those of a command, in any order."""
    is_list = isinstance(found, list) and all(isinstance(override, str) for override in found)
    return is_list and set(found) == set(overrides)


def _dump(config: dict[str, Any]) -> str | None:
    try:
        return yaml.safe_dump(config, sort_keys=False)
    except yaml.YAMLError:
        return None


def is_recorded(error: BaseException) -> bool:
    """Return whether an error ends one job of a sweep, not the sweep. The job's result.json then has the reason."""
    ends_job = isinstance(error, Exception) and not isinstance(error, JobDirError | SweepStopped)
    return is_multirun() and ends_job and getattr(error, "exit_code", 1) < 128


def check_job_dir(directory: Path) -> None:
    """Raise JobDirError for a directory, named by ``hydra.sweep.subdir``, that has the files of anything but this job.

    That may be another job, a run of its own, or files of the user's. The directories of :func:`job_dir` are named by
    the settings of the job, which may have been typed in another way.
    """
    if os.path.abspath(directory) in _named_by_settings:
        return
    hint = "hydra.sweep.subdir must name a directory for each job"
    if directory.resolve().parent != (sweep_dir := Path(HydraConfig.get().sweep.dir)).resolve():
        raise JobDirError(f"{directory} does not lie directly in {sweep_dir}, the directory of the sweep: {hint}")
    try:
        check_folder(directory)
        check_log(directory / f"{HydraConfig.get().job.name}.log")
    except ValueError as error:
        raise JobDirError(str(error)) from error
    found = _overwritten(directory)
    overrides = _overrides_of(directory) if found else None
    if overrides is not None and set(overrides) != set(task_overrides()):
        raise JobDirError(f"{directory} has the result of another job, {stored_command(overrides)}: {hint}")
    if found and (overrides is None or not _may_continue(directory, overrides)):
        raise JobDirError(f"{directory} has {', '.join(found)} in it, which this job would overwrite: {hint}")


def _may_continue(directory: Path, overrides: list[str]) -> bool:
    """Return whether the files in a directory are of a job that is done, can be resumed, or has died early."""
    last = directory / "checkpoints" / "last.ckpt"
    with contextlib.suppress(ValueError):  # it is no checkpoint of this project
        if _is_done(directory) or (last.is_file() and _is_run_of(directory, last)):
            return True
    return _died_early(directory, overrides)


def _is_done(directory: Path) -> bool:
    return (read_result(directory) or {}).get("status") in ("finished", "diverged", "pruned")


def _overrides_of(directory: Path) -> list[str] | None:
    """Return the overrides of the run in a directory, or None where it has no run of this project."""
    if os.path.lexists(directory / "result.json"):
        with contextlib.suppress(ValueError):
            return (read_result(directory) or {}).get("overrides")
        return None
    choices = read_yaml(directory / "config.yaml").get("choices")
    overrides = choices.get("overrides") if isinstance(choices, dict) else None
    is_ours = isinstance(overrides, list) and all(isinstance(override, str) for override in overrides)
    return overrides if is_ours else None


def load_result_or_resume(directory: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """Return the result of a job that an earlier command finished; let an interrupted job resume.

    Raises:
        JobDirError: see :func:`check_job_dir`.
    """
    check_job_dir(directory)
    if _is_done(directory):
        log.info("%s: done before", " ".join(task_overrides()))
        return read_result(directory)
    log.info(" ".join(task_overrides()))
    if (directory / "checkpoints" / "last.ckpt").exists():
        cfg.resume = str(directory)
    return None


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


def record_failure(directory: Path, reason: str) -> dict[str, Any]:
    """Write why a job of a sweep failed into its result.json, which is created for a job that never started.

    A result.json of anything else is kept.
    """
    overrides = task_overrides()
    result: dict[str, Any] = {"command": train_command(overrides), "overrides": overrides}
    result |= {"status": "failed", "metrics": {}}
    if os.path.lexists(directory / "result.json"):
        found = _overrides_of(directory)
        by_settings = os.path.abspath(directory) in _named_by_settings
        if found is None or not (by_settings or set(found) == set(overrides)):
            return result | {"reason": reason}  # it is not ours to replace
        result = (read_result(directory) or result) | {"command": result["command"], "overrides": overrides}
    result |= {"reason": reason}
    try:
        write_result(directory, result)
    except OSError as error:  # the reason is printed, and the other jobs of the sweep still run
        log.warning("result.json could not be written: %s", error)
    return result
