"""Refuse a stored config that would run, read or write something when it is used.

A run may come from anyone. Its checkpoint may hold numbers, words and the names of a few classes, but no path that is
written to, no name of a config file, and nothing that is evaluated.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from runs.format import printable
from runs.overrides import override_key, train_command

Keys = tuple[str, ...]

# Modules whose classes a stored config may name. Every other class is refused.
MODULES = (
    "lit_models",
    "datamodules",
    "torch.nn.modules",
    "torch.optim",
    "lightning.pytorch.trainer",
    "loggers.profiler",
    "torchmetrics.classification",
    "torchmetrics.regression",
)
# Modules that may be imported to look a name up.
IMPORTABLE: tuple[str, ...] = (
    "lit_models.",
    "datamodules.",
    "torch.nn.",
    "torch.optim.",
    "lightning.pytorch.",
    "loggers.profiler.",
)
IMPORTABLE += ("torchmetrics.classification.", "torchmetrics.regression.")

# Instructions of Hydra that this project's configs do not use.
UNUSED_INSTRUCTIONS = ("_args_", "_recursive_", "_convert_")
INSTRUCTIONS = ("_target_", "_partial_", *UNUSED_INSTRUCTIONS)
# Groups of settings that every run has, and those that it may have.
REQUIRED_GROUPS = ("model", "data", "trainer")
OTHER_GROUPS = ("optimizer", "scheduler", "metrics", "callbacks", "logger", "checkpoint", "record", "expect")
# Callbacks and the logger are made from the present command; the stored ones are never instantiated.
NOT_INSTANTIATED = ("callbacks", "logger")
# Arguments of the Trainer that may be a word. All others are numbers, so that a checkpoint names no file and no
# service. train.py sets those of TRAINER_REPLACED itself and ignores the stored ones.
TRAINER_WORDS = ("accelerator", "devices", "gradient_clip_algorithm", "max_time", "precision", "profiler", "strategy")
PRINTING_PROFILERS = ("simple", "advanced")  # the others write files, and are not taken from a checkpoint
TRAINER_REPLACED = ("default_root_dir", "callbacks", "logger", "plugins")
# Settings of loggers that are taken from a run: names of it. Where it is at a service must be typed again.
LOGGER_WORDS = ("title", "name", "run_name")


def check_safe(config: dict[str, Any], origin: str) -> None:
    """Raise ValueError for a stored config that would run, read or write something when it is used."""
    _check_keys(config, f"{origin} is refused: config")
    for group in (*REQUIRED_GROUPS, *OTHER_GROUPS):
        if not isinstance(settings := config.get(group), dict) and (settings is not None or group in REQUIRED_GROUPS):
            raise ValueError(f"{origin} is refused: config.{group} holds no settings")
    for path, value in walk(config):
        place = printable(".".join(("config", *path)))
        _check_printable(path, value, f"{origin} is refused: {place}")
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise ValueError(f"{origin} is refused: {place} holds {value[:80]!r}, which would be evaluated")
        if path[-1] in UNUSED_INSTRUCTIONS:
            raise ValueError(f"{origin} is refused: {place} is not used by this project")
        if path[-1] == "_partial_" and not isinstance(value, bool):
            raise ValueError(f"{origin} is refused: {place} is neither true nor false")
        if path[-1] == "_target_" and path[0] not in NOT_INSTANTIATED:
            _check_target(str(value), path, f"{origin} is refused: {place}={str(value)[:80]}")
        if path[0] == "trainer" and path[-1] != "_target_" and isinstance(value, str):
            _check_trainer_word(path, value, f"{origin} is refused: {place}={value[:80]!r}")
    _check_choices(config["choices"], f"{origin} is refused: config.choices")


def check_words(checkpoint: dict[str, Any], origin: str) -> None:
    """Raise ValueError for a key or a word that would print lines of its own or move the cursor, outside the config."""
    for path, value in walk({name: value for name, value in checkpoint.items() if name != "config"}):
        # Runs from before names were put in one line may have such a metric of a class. metrics.csv does it then.
        keep = "\r\n" if path[:2] == ("callbacks", "MetricsHistory") else ""
        for text in (path[-1], value):
            if isinstance(text, str) and text != printable(text, keep):
                raise ValueError(f"{origin} is refused: it holds {text[:80]!r}, which has control characters")


def refusal(config: dict[str, Any]) -> str | None:
    """Return why the checkpoints of a run with this config would be refused, or None if they would not."""
    try:
        check_safe(config, "")
    except ValueError as error:
        return str(error).removeprefix(" is refused: ")
    return None


def stored_command(overrides: list[str]) -> str:
    """Return the command with these stored overrides, or why it is not shown. Users paste it.

    It could run anything with a ``_target_``, an option of Hydra's, a config file elsewhere, or an interpolation. Where
    a run is at a service is left out, because its logger would send the key of the user there, and so is a name for a
    logger that leads to a directory elsewhere.
    """
    try:
        for override in overrides:
            _check_override(override, repr(override[:80]))
    except ValueError as error:
        return printable(f"its command is not shown: {error}")
    return printable(train_command([text for text in overrides if not _is_place(text)]))


def _is_place(override: str) -> bool:
    key, value = override_key(override), override.partition("=")[2]
    return key.startswith("logger.") and not is_logger_name(key.rpartition(".")[2], value.strip("'\""))


def is_logger_name(setting: str, value: str) -> bool:
    """Return whether a stored setting of a logger is what the run is called there, a path that leads no way up."""
    return setting in LOGGER_WORDS and bool(re.fullmatch(r"(\w[\w .,=+-]*(/(?!$)|$))+", value))


def _check_override(override: str, message: str) -> None:
    match = re.fullmatch(r"(~|\+{0,2}(?=[^=]*=))([A-Za-z]\w*(?:\.\w+)*)(?:=(.*))?", override, re.DOTALL)
    if not match or match[2].split(".")[0] in ("hydra", "resume", "sweep_resume"):
        raise ValueError(f"{message} is not a setting of a run")
    path, value = tuple(match[2].split(".")), match[3] or ""
    text = value.replace("\\", "")  # Hydra drops the backslash of $\{ and then evaluates it
    if "${" in text or any(name in text for name in INSTRUCTIONS):
        raise ValueError(f"{message} would be evaluated")
    if any(name.startswith("_") for name in path[:-1]) or (path[-1].startswith("_") and path[-1] != "_target_"):
        raise ValueError(f"{message} is an instruction to Hydra")
    if path[:2] == ("trainer", "profiler") and path[-1] != "_target_" and len(path) > 2:
        raise ValueError(f"{message} could name a file to write")
    if path[-1] == "_target_":
        if path[0] in NOT_INSTANTIATED:  # they get arguments of any kind
            raise ValueError(f"{message} could run anything")
        _check_target(value, path, message)
    if len(path) == 1 and re.search(r"\.\.|\\|:/|(?<!\w)[/~]", value):
        raise ValueError(f"{message} is not the name of an option")


def walk(node: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield all values in nested dicts and lists, each with its keys as words."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield (*path, str(key)), value
        yield from walk(value, (*path, str(key)))


def _check_keys(node: Any, message: str) -> None:
    """Raise ValueError for a name that is no word. Where no class gets it as an argument it may be a whole number."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str) and (not isinstance(key, int) or "_target_" in node):
                raise ValueError(f"{message} has the key {key!r:.80}, which is no word")
            _check_keys(value, f"{message}.{printable(str(key))}")
    elif isinstance(node, list | tuple):
        for value in node:
            _check_keys(value, message)


def _check_printable(path: Keys, value: Any, message: str) -> None:
    """Raise ValueError for a key or a word that would print lines of its own or move the cursor."""
    if path[-1] != printable(path[-1]):
        raise ValueError(f"{message} has control characters in its name")
    # Runs from before names were put in one line hold the line breaks of a table's header. The table does it then.
    of_table = path[:-1] in (("data", "fitted_state", "columns"), ("data", "fitted_state", "class_names"))
    if isinstance(value, str) and value != printable(value, keep="\r\n" if of_table else ""):
        raise ValueError(f"{message} holds {value[:80]!r}, which has control characters")


def check_metric(target: str, message: str) -> None:
    """Raise ValueError, which begins with the message, for a ``_target_`` that is no metric of a kind known here."""
    _check_target(target, ("metrics", "name", "_target_"), message)


def _check_target(target: str, path: Keys, message: str) -> None:
    # Only modules of known packages are imported, and only a class that they define themselves is accepted: a path such
    # as torch.nn.functional.torch.load ends outside of them.
    module, _, name = target.rpartition(".")
    if not f"{module}.".startswith(IMPORTABLE):
        metrics = "torchmetrics.classification or torchmetrics.regression"
        raise ValueError(f"{message} is not of {metrics if path[0] == 'metrics' else 'this project'}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{message} does not exist") from error
    kind, title = _kind(path)
    if not (kind and inspect.isclass(found) and issubclass(found, kind) and found.__module__.startswith(MODULES)):
        raise ValueError(f"{message} is not a {title or 'part of a run'}")
    if found.__name__ == "ParameterDict":
        raise ValueError(f"{message} is not taken from a checkpoint: its keys may name any attribute of a module")
    if len(path) > 2 and issubclass(found, _kind(("model", "_target_"))[0] or ()):
        raise ValueError(f"{message} is a training procedure, which may read files: it is not a part of one")


def _kind(path: Keys) -> tuple[type | None, str]:
    """Return the base class of a ``_target_`` at this path, and its name in an error."""
    import lightning.pytorch as pl
    from lightning.pytorch.profilers import Profiler
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    if path[0] == "metrics":
        from torchmetrics import Metric

        return (Metric, "metric of torchmetrics") if len(path) == 3 else (None, "")
    if path[0] == "model" and len(path) > 2:  # its net and its loss
        return nn.Module, "net or loss"
    parts: dict[Keys, tuple[type, str]] = {
        ("model",): (pl.LightningModule, "model"),
        ("data",): (pl.LightningDataModule, "data set"),
        ("optimizer",): (Optimizer, "optimizer"),
        ("scheduler",): (LRScheduler, "scheduler"),
        ("trainer",): (pl.Trainer, "trainer"),
        ("trainer", "profiler"): (Profiler, "profiler"),
    }
    return parts.get(path[:-1], (None, ""))


def _check_trainer_word(path: Keys, value: str, message: str) -> None:
    if path[1] in TRAINER_REPLACED:
        return
    # Of the strategies FSDP reads a checkpoint itself, by unpickling it.
    words = r"auto|ddp\w*|single_\w+" if path[1] == "strategy" else r"[\w:,-]{1,40}"
    if len(path) > 2 or path[1] not in TRAINER_WORDS or not re.fullmatch(words, value):
        raise ValueError(f"{message} is not taken from a checkpoint")


def _check_choices(choices: Any, message: str) -> None:
    if not isinstance(choices, dict) or not isinstance(choices.get("overrides"), list):
        raise ValueError(f"{message} does not hold the chosen options and the overrides")
    for key, value in choices.items():
        if key == "overrides":
            if not all(isinstance(override, str) for override in value):
                raise ValueError(f"{message}.overrides does not hold overrides")
            continue
        for one in value if key in ("callbacks", "logger") and isinstance(value, list) else [value]:
            if one is None or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", str(one)):
                continue
            raise ValueError(f"{message}.{key}={str(value)[:80]!r} is not the name of an option")
