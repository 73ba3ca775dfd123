"""The folders of runs and sweeps: made, locked, taken up again, thrown away."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import runs
from callbacks.files import replacing

log = logging.getLogger(__name__)


def helps() -> bool:
    """Whether this is one of the other processes of a run (torchrun, SLURM and Lightning say which it is)."""
    return process() > 0


def process() -> int:
    """The number of this process: in the run where that is known, else of its machine or on it."""
    numbers = (int(os.environ.get(name) or 0) for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
    return next(filter(None, numbers), 0)


def typed() -> list[str]:
    """The overrides that were typed for this run, or that make it as a job of a sweep; not those that are about the
    sweep as a whole."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [override for override in overrides if not override.startswith(("sweep=", "sweep_resume="))]


def quick_look() -> bool:
    """Whether this run tries only a part of what it could, so that ``outputs/last`` is not to point at it."""
    return bool({f"debug={name}" for name in ("fast", "limit", "overfit", "profile")} & set(typed()))


def in_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_folder(resume: str | None, name: str) -> str:
    """The folder of the run that goes on, or a new one."""
    return str(runs.find(resume)[0]) if resume else new_folder(name)


def new_folder(name: str) -> str:
    """Makes the folder ``name``, or ``name-2`` … when it is taken, and says which: never one for two runs."""
    for number in itertools.count(1):
        folder = name if number == 1 else f"{name}-{number}"
        try:
            os.makedirs(folder)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def sweep_folder(sweep_resume: str | None, name: str) -> str:
    """The folder of the sweep that goes on, or a new one."""
    if sweep_resume is None:
        return new_folder(name)
    folder = Path("outputs/last_sweep" if sweep_resume == "last" else sweep_resume)
    if not folder.is_dir():
        missing = "there is no sweep yet in outputs/" if sweep_resume == "last" else f"{folder} is no folder of a sweep"
        raise FileNotFoundError(f"{missing}; python train.py -m model=mlp,cnn makes one")
    return os.path.relpath(folder.resolve())


def job_folder(sweep: str, number: int, *, _root_: DictConfig) -> str:
    """``3-1f0c9a2b``: the number of a job and what it is, so that the same job finds its folder again."""
    config = {key: _root_._get_node(key) for key in _root_ if key not in ("hydra", "resume", "sweep_resume")}
    plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    what = hashlib.blake2b(repr(plain).encode(), digest_size=4).hexdigest()
    return next((path.name for path in Path(sweep).glob(f"*-{what}")), f"{number}-{what}")


@contextlib.contextmanager
def alone_in(folder: Path, wait: bool) -> Iterator[None]:
    """No other run trains in the folder meanwhile."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=-1 if wait else 0):
            yield
    except Timeout:
        raise ValueError(f"another process is training in {folder}") from None


def take_up(folder: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """What a job of a sweep gave that was done before; lets one that was interrupted go on."""
    result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
    if result.get("status") in ("finished", "diverged", "pruned"):
        log.info("%s: done before", " ".join(typed()))
        return result
    log.info(" ".join(typed()))
    if (folder / "checkpoints" / "last.ckpt").exists():
        cfg.resume = str(folder)
    return None


def discard_if_unused(folder: Path) -> None:
    """Removes the folder of a run that never started: there is its log in it and nothing else."""
    log_file, lock = folder / f"{HydraConfig.get().job.name}.log", folder / ".lock"
    for handler in logging.getLogger().handlers:
        handler.close()
    if set(folder.iterdir()) - {log_file, lock}:
        if not (folder / "config.yaml").exists():  # somebody's folder, in which there was nothing to go on with
            lock.unlink(missing_ok=True)
        if log_file.exists() and not log_file.stat().st_size:
            log_file.unlink()
        return
    for file in (log_file, lock):
        file.unlink(missing_ok=True)
    for path in (folder, *folder.parents[:2]):  # outputs/name/date_time
        try:
            path.rmdir()
        except OSError:  # other runs are in it
            break


def discard_sweep_if_unused(folder: Path) -> None:
    """Removes the folder of a sweep none of whose jobs has begun, unless something else is in it."""
    if not folder.is_dir() or any(path.is_dir() for path in folder.iterdir()):
        return
    for name in ("multirun.yaml", ".study.lock"):  # what the sweepers write before the first job
        (folder / name).unlink(missing_ok=True)
    for path in (folder, *folder.parents[:2]):  # outputs/sweep/date_time
        try:
            path.rmdir()
        except OSError:
            break


def note_failure(folder: Path, reason: str) -> dict[str, Any]:
    """Lets the result.json of a sweep's job say why it failed; a job that never started gets one."""
    file = folder / "result.json"
    result: dict[str, Any] = {"command": shlex.join(["python", "train.py", *typed()]), "overrides": typed()}
    result |= {"status": "failed", "metrics": {}}
    if file.exists():
        result = json.loads(file.read_text())
    result["reason"] = reason
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result
