"""Renamed keys and classes: upgrade the checkpoints of earlier versions, and accept overrides with old names."""

import copy
import re
from collections.abc import Sequence
from typing import Any

# Conf keys, old -> new, with all keys below them. Those of a command alone begin with its name and a colon.
RENAMED_KEYS = {
    "validate_first": "validate_before_training",
    "may_change": "ignore_overrides",
    "ignore_groups": "ignore_overrides",
    "model.net.hidden": "model.net.hidden_sizes",
    "model.net.small_images": "model.net.cifar_stem",
    "model.net.views": "model.net.tta",
    "optimizer.iterations": "optimizer.ns_steps",
    "data.standardise": "data.standardize",
    "data.known": "data.fitted_state",
    "chosen": "choices",
    "logger.title": "logger.tensorboard.title",
    "logger.purge_step": "logger.tensorboard.purge_step",
    "predict:data": "split",
    "predict:n": "limit",
    "predict:to": "output",
    "export:to": "output",
}
# Keys that older configs lack, with the value that reproduces the older behavior.
ADDED_KEYS: dict[str, Any] = {"compile": False, "monitor": None, "mode": None, "metrics": {}, "tags": []}
# Keys that conf/ has now, and that were added with a plus before.
NEW_KEYS = ("callbacks.early_stopping.mode", "data.drop_last", "data.shuffle")
# Options of a group, (group, old) -> new.
RENAMED_OPTIONS = {("callbacks", "details"): "tensorboard_extras"}
# Classes in ``_target_``, and below them the keys of the callbacks' states in a checkpoint.
RENAMED_TARGETS = {
    "callbacks.profiling.Table": "loggers.profiler.TopProfiler",
    "lit_models.losses.CrossEntropyOfSoftmax": "lit_models.losses.DoubleSoftmaxCrossEntropy",
    "lit_models.muon.LinearDecay": "lit_models.optim.LinearDecay",
    "lit_models.muon.Muon": "lit_models.optim.Muon",
    "lit_models.nets.SpeedrunNet": "lit_models.nets.CifarNet",
    "lit_models.optimizers.GradientDescent": "lit_models.optim.PlainSGD",
}
RENAMED_STATES = {"Record": "MetricsHistory", "Pictures": "Plots"}
# Keys within the state of a callback, (callback, old) -> new.
RENAMED_STATE_KEYS = {("Plots", "way"): "weight_history"}


def upgrade_overrides(overrides: Sequence[str], command: str = "train") -> tuple[list[str], list[str]]:
    """Return the overrides with present names, and a note ``OLD is now NEW`` for each that was renamed."""
    upgraded, notes = [], []
    for override in overrides:
        match = re.fullmatch(r"([+~]*)([\w.]+)(?:=(.*))?", override, re.DOTALL)
        if not match:
            upgraded.append(override)
            continue
        signs, key, value = match.groups()
        new_key, new_value = _new_key(key, command), _new_value(key, value)
        signs = "++" if signs == "+" and new_key in NEW_KEYS else signs
        upgraded.append(f"{signs}{new_key}" + ("" if new_value is None else f"={new_value}"))
        if new_key != key:
            notes.append(f"{key} is now {new_key}")
        if new_value != value:
            notes.append(f"{key}={value} is now {new_key}={new_value}")
    return upgraded, notes


def _new_key(key: str, command: str) -> str:
    names = key.split(".")
    for end in range(len(names), 0, -1):  # the longest match: model.net.hidden before model.net
        old = ".".join(names[:end])
        # A command has a data.path too, and what was its data was a word.
        own = RENAMED_KEYS.get(f"{command}:{old}") if old == key else None
        new = own or (RENAMED_KEYS.get(old) if command == "train" else None)
        if new:
            return ".".join([new, *names[end:]])
    return key


def _new_value(key: str, value: str | None) -> str | None:
    if value is None:
        return None
    if key.endswith("._target_"):
        return RENAMED_TARGETS.get(value, value)
    if not any(key == group for group, _ in RENAMED_OPTIONS):
        return value
    return ",".join(RENAMED_OPTIONS.get((key, option), option) for option in value.split(","))  # a sweep has several


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Rename old keys and classes in the config and the callback states of a checkpoint, in place."""
    config = checkpoint.get("config")
    if isinstance(config, dict):
        for old, new in RENAMED_KEYS.items():
            if ":" not in old:
                _move(config, old, new)
        for key, value in ADDED_KEYS.items():
            parent, name = _parent(config, key)
            if parent is not None:
                parent.setdefault(name, copy.copy(value))
        _rename_targets(config)
        choices = config.get("choices")
        if isinstance(choices, dict):
            for (group, old), new in RENAMED_OPTIONS.items():
                if choices.get(group) == old:
                    choices[group] = new
            overrides = choices.get("overrides")
            if isinstance(overrides, list) and all(isinstance(override, str) for override in overrides):
                choices["overrides"], _ = upgrade_overrides(overrides)
        data = config.get("data")
        if isinstance(data, dict) and "class_names" in data:  # of a directory of images
            data["fitted_state"] = {"class_names": data.pop("class_names")}
    states = checkpoint.get("callbacks")
    if isinstance(states, dict):
        for old, new in RENAMED_STATES.items():
            if old in states:
                states[new] = states.pop(old)
        for (callback, old), new in RENAMED_STATE_KEYS.items():
            if isinstance(states.get(callback), dict):
                _move(states[callback], old, new)


def _move(config: dict[str, Any], old: str, new: str) -> None:
    """Move the value of the key ``old`` to ``new``, where both parts of the config exist."""
    source, old_name = _parent(config, old)
    target, new_name = _parent(config, new)
    if source is not None and target is not None and old_name in source:
        target[new_name] = source.pop(old_name)


def _parent(config: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """Return the part of a config that a key is in, if there is one, and its name there."""
    *parents, name = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), name


def _rename_targets(node: Any) -> None:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _rename_targets(value)
    if isinstance(node, dict) and isinstance(target := node.get("_target_"), str):
        node["_target_"] = RENAMED_TARGETS.get(target, target)
