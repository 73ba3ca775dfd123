"""Ask Hydra about the running job: its overrides, and whether it belongs to a sweep."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

# The options of a resumed run that precede the overrides which were typed: see cli.resumed_run.stored_choices.
resumed_choices: list[str] = []


def task_overrides() -> list[str]:
    """Return the overrides of this run, or of this job of a sweep, without those of the sweep as a whole."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = [override for override in overrides if override not in resumed_choices]
    return [override for override in typed if not override.startswith(("sweep=", "sweep_resume="))]


def is_debug_run() -> bool:
    """Return whether this run uses part of the data only. ``outputs/last`` must not point at it."""
    return bool({f"debug={name}" for name in ("fast", "limit", "lr", "overfit", "profile")} & set(task_overrides()))


def is_range_test() -> bool:
    """Return whether this command tests learning rates, and keeps no run."""
    return "debug=lr" in task_overrides()


def is_multirun() -> bool:
    """Return whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
