"""Ask Hydra about the running job: its overrides, whether it belongs to a sweep, and whether an error ends it alone."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from runs.interrupts import early_signal

# The options of a resumed run that precede the overrides which were typed: see cli.resumed_run.stored_choices.
resumed_choices: list[str] = []


def task_overrides() -> list[str]:
    """Return the overrides of this run, or of this job of a sweep, without those of the sweep as a whole."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = [override for override in overrides if override not in resumed_choices]
    return [override for override in typed if not override.startswith(("sweep=", "sweep_resume=", "sweep_fail_fast="))]


def is_debug_run() -> bool:
    """Return whether this run uses part of the data only. ``outputs/last`` must not point at it."""
    return bool({f"debug={name}" for name in ("fast", "limit", "lr", "overfit", "profile")} & set(task_overrides()))


def is_range_test() -> bool:
    """Return whether this command tests learning rates, and keeps no run."""
    return "debug=lr" in task_overrides()


def is_multirun() -> bool:
    """Return whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_number() -> int | None:
    """Return the number of this job of a sweep. It is None in a run, and while Hydra composes a sweep."""
    hydra_cfg: Any = HydraConfig.get() if is_multirun() else None
    return None if hydra_cfg is None or OmegaConf.is_missing(hydra_cfg.job, "num") else hydra_cfg.job.num


class JobDirError(ValueError):
    """A job of a sweep cannot have this directory, so nothing can be recorded there."""


class SweepStopped(Exception):
    """Another job of the sweep has failed, and the sweep ends at the first failure. This job leaves nothing behind."""


def is_recorded(error: BaseException) -> bool:
    """Return whether an error ends one job of a sweep, not the sweep. The job's result.json then has the reason."""
    ends_job = isinstance(error, Exception) and not isinstance(error, JobDirError | SweepStopped)
    return is_multirun() and ends_job and getattr(error, "exit_code", 1) < 128 and not early_signal()
