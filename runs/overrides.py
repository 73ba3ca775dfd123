"""Hydra overrides as text: ``optimizer.lr=0.1``, ``+trainer.min_epochs=2``, ``~callbacks.pictures``."""

import shlex
from collections.abc import Sequence


def override_key(override: str) -> str:
    """Return ``trainer.max_epochs`` for ``++trainer.max_epochs=3``."""
    return override.lstrip("+~").partition("=")[0]


def last_of_each(overrides: Sequence[str]) -> dict[str, str]:
    """Return each override by its key; of several with the same key, the last."""
    return {override.partition("=")[0]: override for override in overrides}


def override_values(overrides: Sequence[str]) -> dict[str, str]:
    """Return the value of each override as text, by its key."""
    return dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)


def train_command(overrides: Sequence[str]) -> str:
    """Return ``python train.py OVERRIDES``, quoted for a shell."""
    return shlex.join(["python", "train.py", *overrides])
