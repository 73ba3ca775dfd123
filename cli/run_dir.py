"""Run and sweep directories: make, lock, take up again, remove when nothing happened."""

import contextlib
import hashlib
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cli.job import task_overrides
from runs.checkpoint import find_checkpoint
from runs.files import make_unique_dir
from runs.result import read_result, write_result

log = logging.getLogger(__name__)


def new_or_resumed_run_dir(resume: str | None, name: str) -> str:
    """Return the directory of the run to resume, or make a new one."""
    return str(find_checkpoint(resume)[0]) if resume else make_unique_dir(name)


def new_or_resumed_sweep_dir(sweep_resume: str | None, name: str) -> str:
    """Return the directory of the sweep to resume, or make a new one."""
    if sweep_resume is None:
        return make_unique_dir(name)
    folder = Path("outputs/last_sweep" if sweep_resume == "last" else sweep_resume)
    if not folder.is_dir():
        missing = (
            "there is no sweep yet in outputs/" if sweep_resume == "last" else f"{folder} is not a sweep directory"
        )
        raise FileNotFoundError(f"{missing}; python train.py -m model=mlp,cnn makes one")
    return os.path.relpath(folder.resolve())


def job_dir(sweep_dir: str, number: int, *, _root_: DictConfig) -> str:
    """Return ``3-1f0c9a2b``, the number of a job and a hash of its config, so that the same job finds its directory."""
    keys = [str(key) for key in _root_ if key not in ("hydra", "resume", "sweep_resume")]
    config = OmegaConf.to_container(OmegaConf.masked_copy(_root_, keys), resolve=True)
    digest = hashlib.blake2b(repr(config).encode(), digest_size=4).hexdigest()
    return next((path.name for path in Path(sweep_dir).glob(f"*-{digest}")), f"{number}-{digest}")


@contextlib.contextmanager
def lock_run_dir(folder: Path, wait: bool) -> Iterator[None]:
    """Keep other processes from training in the same directory."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=-1 if wait else 0):
            yield
    except Timeout:
        raise ValueError(f"another process is training in {folder}") from None


def load_result_or_resume(folder: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """Return the result of a sweep's job that ended before; let one that was interrupted resume."""
    result = read_result(folder) or {}
    if result.get("status") in ("finished", "diverged", "pruned"):
        log.info("%s: done before", " ".join(task_overrides()))
        return result
    log.info(" ".join(task_overrides()))
    if (folder / "checkpoints" / "last.ckpt").exists():
        cfg.resume = str(folder)
    return None


def remove_run_dir_if_empty(folder: Path) -> None:
    """Remove the directory of a run that never started: its log is in it and nothing else."""
    log_file, lock = folder / f"{HydraConfig.get().job.name}.log", folder / ".lock"
    for handler in logging.getLogger().handlers:
        handler.close()
    if set(folder.iterdir()) - {log_file, lock}:
        if not (folder / "config.yaml").exists():  # somebody's directory, in which there was nothing to resume
            lock.unlink(missing_ok=True)
        if log_file.exists() and not log_file.stat().st_size:
            log_file.unlink()
        return
    for file in (log_file, lock):
        file.unlink(missing_ok=True)
    _remove_empty_dirs(folder)  # outputs/name/date_time


def remove_sweep_dir_if_empty(folder: Path) -> None:
    """Remove the directory of a sweep none of whose jobs has begun, unless something else is in it."""
    if not folder.is_dir() or any(path.is_dir() for path in folder.iterdir()):
        return
    for name in ("multirun.yaml", ".study.lock"):  # what the sweepers write before the first job
        (folder / name).unlink(missing_ok=True)
    _remove_empty_dirs(folder)  # outputs/sweep/date_time


def _remove_empty_dirs(folder: Path) -> None:
    for path in (folder, *folder.parents[:2]):
        try:
            path.rmdir()
        except OSError:  # something else is in it
            break


def record_failure(folder: Path, reason: str) -> dict[str, Any]:
    """Write why a job of a sweep failed into its result.json; a job that never started gets one."""
    overrides = task_overrides()
    result: dict[str, Any] = {"command": shlex.join(["python", "train.py", *overrides]), "overrides": overrides}
    result |= {"status": "failed", "metrics": {}}
    with contextlib.suppress(ValueError):  # a broken result.json
        result = read_result(folder) or result
    result |= {"reason": reason}
    try:
        write_result(folder, result)
    except OSError as error:  # the reason is printed, and the other jobs of the sweep still run
        log.warning("result.json could not be written: %s", error)
    return result
