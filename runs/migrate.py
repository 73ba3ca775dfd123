"""Names that have changed: read runs that were made before, and take what users are used to typing."""

import re
from collections.abc import Sequence
from typing import Any

# Conf keys, old -> new. Those of a command alone begin with its name and a colon.
RENAMED_KEYS = {
    "validate_first": "validate_before_training",
    "may_change": "ignore_groups",
    "predict:data": "split",
    "predict:n": "limit",
    "predict:to": "output",
    "export:to": "output",
}
# Options of a group.
RENAMED_OPTIONS = {("callbacks", "details"): "tensorboard_extras"}
# Classes that a stored config names, and the keys of callbacks' states in a checkpoint.
RENAMED_TARGETS = {"callbacks.profiling.Table": "loggers.profiler.TopProfiler"}
RENAMED_STATES = {"Record": "MetricsHistory", "Pictures": "Plots"}


def upgrade_overrides(overrides: Sequence[str], command: str = "train") -> tuple[list[str], list[str]]:
    """Return overrides in today's names, and a note ``OLD is now NEW`` for each that had an old one."""
    upgraded, notes = [], []
    for override in overrides:
        match = re.fullmatch(r"([+~]*)([\w.]+)(=.*)?", override, re.DOTALL)
        if not match:
            upgraded.append(override)
            continue
        signs, key, value = match[1], match[2], match[3] or ""
        new = RENAMED_KEYS.get(f"{command}:{key}") or (RENAMED_KEYS.get(key) if command == "train" else None) or key
        new_value = f"={RENAMED_OPTIONS[key, value[1:]]}" if (key, value[1:]) in RENAMED_OPTIONS else value
        upgraded.append(f"{signs}{new}{new_value}")
        if new != key:
            notes.append(f"{key} is now {new}")
        if new_value != value:
            notes.append(f"{key}{value} is now {key}{new_value}")
    return upgraded, notes


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Give the config and the states in a checkpoint today's names, in place."""
    config = checkpoint.get("config")
    if isinstance(config, dict):
        if "chosen" in config:
            config["choices"] = config.pop("chosen")
        for old, new in RENAMED_KEYS.items():
            _rename(config, old, new)
        _rename_targets(config)
        choices = config.get("choices")
        if isinstance(choices, dict):
            for (group, old), new in RENAMED_OPTIONS.items():
                if choices.get(group) == old:
                    choices[group] = new
            overrides = choices.get("overrides")
            if isinstance(overrides, list) and all(isinstance(override, str) for override in overrides):
                choices["overrides"], _ = upgrade_overrides(overrides)
    states = checkpoint.get("callbacks")
    if isinstance(states, dict):
        for old, new in RENAMED_STATES.items():
            if old in states:
                states[new] = states.pop(old)


def _rename(config: dict[str, Any], old: str, new: str) -> None:
    """Move the value at the path ``old`` to ``new``, which lies in the same part of the config."""
    *parents, key = old.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if isinstance(node, dict) and key in node:
        node[new.rpartition(".")[2]] = node.pop(key)


def _rename_targets(node: Any) -> None:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _rename_targets(value)
    if isinstance(node, dict) and node.get("_target_") in RENAMED_TARGETS:
        node["_target_"] = RENAMED_TARGETS[node["_target_"]]
