"""What a run would overwrite in its directory: refused, unless it is of the same run."""

import csv
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig

from cli.job import is_multirun, task_overrides
from runs.checkpoint import CHECKPOINT_GROUPS, MUTABLE_DATA_KEYS, find_checkpoint, load_checkpoint
from runs.files import RUN_DIRS, RUN_FILES, check_folder, is_leftover, is_within, read_yaml
from runs.migrate import RENAMED_TARGETS
from runs.overrides import last_of_each, typed_setting
from runs.result import read_result
from sweeps.jobs import is_sweep

AFTER_EPOCH = ("evaluations", "predictions")  # what only a run has whose first epoch has ended
_RUN_KEYS = {*CHECKPOINT_GROUPS, "trainer", "seed"}  # of the config of each run, of an earlier version too
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: ")  # the format of conf/hydra/job_logging


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
    if file and file.parent.name == "checkpoints" and folder.resolve() == resumed and is_run_of(folder, file):
        _check_newest(folder, file)
        return
    if is_sweep(folder) and not is_multirun():
        raise ValueError(f"{folder} is the directory of a sweep: hydra.run.dir=… names another directory")
    found = overwritten(folder)
    if found and not died_early(folder, _stored_overrides(file), resume):
        has_run = not resume and (folder / "checkpoints" / "last.ckpt").is_file()
        hint = f", {typed_setting('resume', str(folder))} resumes a run" if has_run else ""
        if file and folder.resolve() == resumed:
            hint = f"; they are damaged, or not those of {file.name}"
        raise ValueError(
            f"{folder} has {', '.join(found)} in it, which this run would overwrite: hydra.run.dir=… names another "
            f"directory{hint}"
        )
    check_folder(folder, begins=True)


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


def overwritten(folder: Path) -> list[str]:
    """Return the names of what a training would overwrite in a directory, or a command that asks the run later."""
    return [name for name in (*RUN_FILES, *RUN_DIRS, *AFTER_EPOCH) if os.path.lexists(folder / name)]


def _stored_overrides(file: Path | None) -> list[str]:
    """Return the overrides of this command, on top of those of the checkpoint that it resumes."""
    typed = [override for override in task_overrides() if not override.startswith("resume=")]
    stored = load_checkpoint(file)["config"]["choices"]["overrides"] if file else []
    return list((last_of_each(stored) | last_of_each(typed)).values()) if file else typed


def is_run_of(folder: Path, file: Path) -> bool:
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
    callbacks = checkpoint.get("callbacks")
    state = callbacks.get("MetricsHistory") if isinstance(callbacks, dict) else None
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


def died_early(folder: Path, overrides: list[str], resume: str | None = None) -> bool:
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
        has_dashboard = os.path.lexists(dashboard)
        events_dir = Path(dashboard.read_text(encoding="utf-8").removesuffix("\n")) if has_dashboard else None
    except (OSError, ValueError):
        return False
    config = read_yaml(folder / "config.yaml")
    if not set(config) >= _RUN_KEYS or _dump(config) != text or config.get("resume") != resume:  # with notes in it
        return False
    choices = config.get("choices")
    if not _is_same(choices.get("overrides") if isinstance(choices, dict) else None, overrides):
        return False
    has_ended = result and (result["status"] == "finished" or result.get("epochs"))  # it may have no epochs to train
    if result and (has_ended or not _is_same(result["overrides"], overrides)):
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
