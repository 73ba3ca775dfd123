"""The directories of a sweep's jobs: name them, continue what an earlier command began, and record failures."""

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cli.job import JobDirError, task_overrides
from cli.overwrite import check_log, died_early, is_run_of, overwritten
from cli.run_dir import lock_run_dir, track
from runs.files import JOB_DIR, check_folder, is_same_directory, is_within, lost_lock, make_dirs, read_yaml
from runs.overrides import train_command
from runs.result import read_result, write_result
from runs.safety import stored_command
from sweeps.jobs import REFUSED

log = logging.getLogger(__name__)

_named_by_settings: set[str] = set()  # the directories of jobs whose names :func:`job_dir` has chosen
_begun: set[str] = set()  # the directories of jobs that this process has begun or continued


def job_dir(sweep_dir: str, number: int, *, _root_: DictConfig) -> str:
    """Make the directory of a job and return its name, such as ``3-1f0c9a2b``.

    That is the number of the job and a hash of its config, by which a resumed sweep finds the directory.
    """
    _check_sweep_dir(Path(sweep_dir))
    others = ("hydra", "sweep_resume", "sweep_fail_fast", *(() if _root_.get("resume") else ("resume",)))
    keys = [str(key) for key in _root_ if key not in others]
    config = OmegaConf.to_container(OmegaConf.masked_copy(_root_, keys), resolve=True)
    digest = hashlib.blake2b(repr(config).encode(), digest_size=4).hexdigest()
    made = [path.name for path in Path(sweep_dir).glob(f"*-{digest}") if JOB_DIR.fullmatch(path.name)]
    name = next(iter(made), f"{number}-{digest}")
    track(make_dirs(directory := Path(sweep_dir, name)), directory)
    if not is_within(directory, Path(sweep_dir)):
        raise ValueError(f"{directory} is refused: it is a link to {os.readlink(directory)}, outside of the sweep")
    check_folder(directory, begins=True)
    _named_by_settings.add(os.path.abspath(directory))
    return name


def _check_sweep_dir(directory: Path) -> None:
    if not is_same_directory(directory):
        raise JobDirError(f"{directory} was removed while this sweep ran; no other job begins")


def check_job_dir(directory: Path) -> None:
    """Raise JobDirError for a directory, named by ``hydra.sweep.subdir``, that has the files of anything but this job.

    That may be another job, a run of its own, or files of the user's. The directories of :func:`job_dir` are named by
    the settings of the job, which may have been typed in another way.
    """
    if os.path.abspath(directory) in _named_by_settings:
        return
    _check_sweep_dir(Path(HydraConfig.get().sweep.dir))
    hint = "hydra.sweep.subdir must name a directory for each job"
    if directory.resolve().parent != (sweep_dir := Path(HydraConfig.get().sweep.dir)).resolve():
        raise JobDirError(f"{directory} does not lie directly in {sweep_dir}, the directory of the sweep: {hint}")
    try:
        check_folder(directory, begins=True)
        check_log(directory / f"{HydraConfig.get().job.name}.log")
    except ValueError as error:
        raise JobDirError(str(error)) from error
    found = overwritten(directory)
    if found == ["result.json"] and _never_began(directory):
        return
    overrides = _overrides_of(directory) if found else None
    if overrides is not None and set(overrides) != set(task_overrides()):
        raise JobDirError(f"{directory} has the result of another job, {stored_command(overrides)}: {hint}")
    if found and (overrides is None or not _may_continue(directory, overrides)):
        raise JobDirError(f"{directory} has {', '.join(found)} in it, which this job would overwrite: {hint}")


def _may_continue(directory: Path, overrides: list[str]) -> bool:
    """Return whether the files in a directory are of a job that is done, can be resumed, or has died early."""
    last = directory / "checkpoints" / "last.ckpt"
    with contextlib.suppress(ValueError):  # it is no checkpoint of this project
        if _is_done(directory) or (last.is_file() and is_run_of(directory, last)):
            return True
    return died_early(directory, overrides)


def _is_done(directory: Path) -> bool:
    return (read_result(directory) or {}).get("status") in ("finished", "diverged", "pruned")


def _never_began(directory: Path) -> bool:
    """Return whether a result is that of a job that failed before it began, as after a mistyped command."""
    with contextlib.suppress(ValueError):
        result = read_result(directory) or {}
        return result.get("status") == "failed" and not result["metrics"] and "epochs" not in result
    return False


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
    _begun.add(os.path.abspath(directory))
    return None


def record_failure(directory: Path, reason: str) -> dict[str, Any]:
    """Write why a job of a sweep failed into its result.json.

    A job that has not begun is recorded only where its directory is empty and no other process uses it. An earlier
    command may have ended the job or left its checkpoint there, and another one may train.
    """
    overrides = task_overrides()
    result: dict[str, Any] = {"command": train_command(overrides), "overrides": overrides}
    failed = result | {"status": "failed", "metrics": {}, "reason": reason}
    has_begun = os.path.abspath(directory) in _begun
    if lost_lock(directory):
        return failed
    if not has_begun and overwritten(directory):
        return failed | {"status": REFUSED}
    try:
        with contextlib.nullcontext() if has_begun else lock_run_dir(directory, wait=False):
            if has_begun:
                failed = (read_result(directory) or failed) | result | {"reason": reason}
            write_result(directory, failed)
    except ValueError:  # another process trains there, or result.json is not ours to replace
        return failed | {"status": "failed" if has_begun else REFUSED}
    except OSError as error:  # the reason is printed, and the other jobs of the sweep still run
        log.warning("result.json could not be written: %s", error)
    return failed
