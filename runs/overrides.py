"""Hydra overrides as text: ``optimizer.lr=0.1``, ``+trainer.min_epochs=2``, ``~callbacks.pictures``."""

import re
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


def asks_for_sweep(arguments: Sequence[str]) -> bool:
    """Return whether the arguments of a command ask Hydra for a sweep. An experiment may be one without being asked."""
    options = any(argument.startswith(("-m", "--m")) for argument in arguments)  # --multirun may be shortened
    return options or "MULTIRUN" in override_values(arguments).get("hydra.mode", "")


def quote_value(text: str) -> str:
    """Return a text as the value of an override, in quotes where Hydra would not read it as this text without them."""
    is_name = re.fullmatch(r"[A-Za-z0-9_./-]+", text) and ("/" in text or re.match("[A-Za-z_]", text))
    if is_name and text.lower() not in ("true", "false", "null", "nan", "inf"):
        return text
    # A backslash is one of the text, except before a quote.
    escaped = re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + found[2].replace('"', r"\""), text)
    return f'"{escaped}"'  # a shell needs single quotes around them


def typed_setting(key: str, value: str | Sequence[str]) -> str:
    """Return ``KEY=VALUE``, or ``KEY=[VALUE,VALUE]``, as one word that a shell and Hydra read as these texts."""
    quoted = quote_value(value) if isinstance(value, str) else f"[{','.join(map(quote_value, value))}]"
    return shlex.quote(f"{key}={quoted}")


def train_command(overrides: Sequence[str]) -> str:
    """Return ``python train.py OVERRIDES``, quoted for a shell."""
    return shlex.join(["python", "train.py", *overrides])
