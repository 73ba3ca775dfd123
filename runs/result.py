"""``result.json``: the result of a run, for machines."""

import functools
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs.files import atomic_write_text
from runs.safety import stored_command

ENDED = ("finished", "diverged")  # statuses of a run that trained to its end


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Return the result of a run, or None where it has none.

    The run may come from anyone. Its ``command``, which users copy, is therefore rebuilt from the overrides, or says
    why it is not shown.

    Raises:
        ValueError: ``result.json`` is damaged or was not written by this project.
    """
    file = run_dir / "result.json"
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        overrides, metrics, status = result["overrides"], result["metrics"], result["status"]
        known = all(isinstance(override, str) for override in overrides) and isinstance(overrides, list)
        known = known and isinstance(metrics, dict) and isinstance(status, str)
        if not known or not all(value is None or isinstance(value, int | float) for value in metrics.values()):
            raise ValueError("unexpected content")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged or not of this project ({error})") from error
    return result | {"command": stored_command(overrides)}


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write ``result.json``; JSON has no nan or inf, so a metric that is not finite becomes null."""
    metrics = finite_metrics(result["metrics"])
    atomic_write_text(run_dir / "result.json", json.dumps(result | {"metrics": metrics}, indent=1) + "\n")


def finite_metrics(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return metrics for JSON, which has no nan or inf: null stands for them."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}


def has_diverged(rows: list[dict[str, float]], metrics: Mapping[str, float | None] | None = None) -> bool:
    """Return whether training made the loss worse: at its end more than twice what it was in the first epoch.

    The training loss of a step is that before it. So the last step shows in the losses of validation and test alone.

    Args:
        rows: of ``metrics.csv``.
        metrics: at the end of the run.
    """
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    after = [(metrics or {}).get(f"{stage}/loss") for stage in ("val", "test")]
    if not all(loss is None or math.isfinite(loss) for loss in after):
        return True
    return bool(losses) and not (math.isfinite(losses[-1]) and losses[-1] <= 2 * abs(losses[0]))


@functools.cache
def git_revision() -> str | None:
    """Return the commit of this project, with ``-dirty`` when files differ from it; None outside a git checkout.

    ``git describe --dirty`` would lock the index, and a command of the user's would fail beside it.
    """
    try:
        revision = _ask_git("describe", "--always", "--abbrev=12")
        return f"{revision}-dirty" if _ask_git("status", "--porcelain", "--untracked-files=no") else revision or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _ask_git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10).stdout.strip()


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a run's result depends on."""
    import lightning.pytorch as pl
    import torch
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": pl.__version__,
    }
