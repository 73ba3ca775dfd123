"""Refuse a stored config that would run or read something when it is instantiated."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

# A stored config may name classes that these modules define. Everything else is refused by name.
MODULES = (
    "lit_models",
    "datamodules",
    "torch.nn.modules",
    "torch.optim",
    "lightning.pytorch.trainer",
    "loggers.profiler",
)
# Modules that may be imported to look a name up.
IMPORTABLE = ("lit_models.", "datamodules.", "torch.nn.", "torch.optim.", "lightning.pytorch.", "loggers.profiler.")


def check_safe(config: dict[str, Any], origin: str) -> None:
    """Raise ValueError for a stored config that would run or read something when it is instantiated."""
    for place, key, value in _walk(config, "config"):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{origin} is refused: {place} holds {value!r}, which would be evaluated")
        if key in ("_args_", "_recursive_", "_convert_"):
            raise ValueError(f"{origin} is refused: {place} is not used by this project")
        # Callbacks and loggers are made from the present command; their stored config is never instantiated.
        if key == "_target_" and not place.startswith(("config.callbacks.", "config.logger.")):
            _check_target(str(value), f"{origin} is refused: {place}={value}")


def _walk(node: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield f"{place}.{key}", str(key), value
        yield from _walk(value, f"{place}.{key}")


def _check_target(target: str, message: str) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.profilers import Profiler
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    # Only modules of known packages are imported, and only a class that they define themselves is accepted: a path such
    # as torch.nn.functional.torch.load ends outside of them.
    module, _, name = target.rpartition(".")
    if not f"{module}.".startswith(IMPORTABLE):
        raise ValueError(f"{message} is not of this project")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{message} does not exist") from error
    kinds = (nn.Module, Optimizer, LRScheduler, pl.LightningDataModule, pl.Trainer, Profiler)
    if not (inspect.isclass(found) and issubclass(found, kinds) and found.__module__.startswith(MODULES)):
        raise ValueError(f"{message} is not a model, data set, optimizer, scheduler, trainer or profiler")
