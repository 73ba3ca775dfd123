"""Check overrides before torch is loaded."""

import functools
import math
import re
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from cli.errors import suggest_nearest
from runs.format import check_positive_int
from runs.monitor import check_setting


@functools.cache
def _default_config(groups: tuple[str, ...]) -> DictConfig:
    """Return the config of these choices with no value overridden. Cached, because jobs of a sweep share it."""
    return hydra.compose("config", list(groups))


# Checked here before torch is loaded, and again by the classes that take these settings.
MAY_BE_NEGATIVE = ("model.net.weight", "model.net.bias", "data.scale")
POSITIVE_INTS: tuple[str, ...] = ("data.batch_size", "data.eval_batch_size", "model.steps_per_batch", "threads")
POSITIVE_INTS += ("trainer.num_nodes", "trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch")
POSITIVE_INTS += ("checkpoint.every_n_steps", "record.every_n_batches", "callbacks.pictures.every_n_epochs")
CHOICES = {
    "data.validate_on": ("val", "test", "train"),
    "checkpoint.tested": ("last", "best"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.precision": (
        "32-true",
        "bf16-mixed",
        "16-mixed",
        "64-true",
        "bf16-true",
        "16-true",
        "32",
        "64",
        "16",
        "bf16",
    ),
}
# null takes a part out of these groups, or Lightning's own value.
NULL_GROUPS = ("callbacks", "logger", "metrics", "trainer", "hydra")
# All at once; torch's own choice; no normalization to undo.
MAY_BE_NULL: tuple[str, ...] = (
    "data.batch_size",
    "data.eval_batch_size",
    "optimizer.fused",
    "optimizer.line_search_fn",
)
MAY_BE_NULL += ("model.mean", "model.std")
LIGHTNING_CHECKS = ("trainer.devices",)  # numbers or words


def check_overrides(cfg: DictConfig) -> None:
    """Raise ValueError for an override that is out of range or of another type than the value in conf/."""
    for group in ("model", "data", "optimizer", "trainer"):
        if cfg.get(group) is None:
            raise ValueError(f"{group} cannot be left out")
    check_setting(cfg.monitor, cfg.mode)
    hydra_cfg = HydraConfig.get()
    settings = {text.partition("=")[0]: text for text in hydra_cfg.overrides.task if text[0] not in "+~"}
    parts = tuple(text for key, text in settings.items() if key.partition("@")[0] in hydra_cfg.runtime.choices)
    for key in settings:
        if key.partition("@")[0] in hydra_cfg.runtime.choices or key in LIGHTNING_CHECKS:
            continue
        value, default = OmegaConf.select(cfg, key), OmegaConf.select(_default_config(parts), key)
        typed = "null" if value is None else value
        if value is None and _is_required(key, parts):
            raise ValueError(f"{key}=… is required, and null is none")
        if key == "trainer.max_epochs" and value == -1:  # no end
            continue
        if key in CHOICES and str(value) not in CHOICES[key]:
            choices = ", ".join(CHOICES[key])
            raise ValueError(f"{key}={typed} must be one of {choices}{suggest_nearest(str(value), list(CHOICES[key]))}")
        if key == "trainer.max_time" and not re.fullmatch(r"None|\d+(:\d+){3}", str(value)):
            raise ValueError(f"{key}={value} must be a time, DD:HH:MM:SS, such as 00:01:30:00")
        if key == "seed" and isinstance(value, int) and value >= 2**32:
            raise ValueError(f"seed={value} must be at most {2**32 - 1}")
        if key in POSITIVE_INTS and value is not None:
            check_positive_int(key, value)
        if key not in CHOICES and (expected := _expected(key, value, default)):
            example = "" if isinstance(default, bool | DictConfig) else f", such as {default}"
            raise ValueError(f"{key}={typed} must be {expected}{example}")


def _is_required(key: str, groups: tuple[str, ...]) -> bool:
    """Return whether conf/ has ``???`` in place of this value."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(_default_config(groups), parent) if parent else _default_config(groups)
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _expected(key: str, value: Any, default: Any) -> str | None:
    """Return what a value must be to replace the default, or None if it is valid."""
    may_be_null = key in MAY_BE_NULL or key.partition(".")[0] in NULL_GROUPS
    if default is None or (value is None and may_be_null):  # checked by the class that takes it
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        is_int = isinstance(default, int)
        expected = "a whole number" if is_int else "a number"
        valid = number and math.isfinite(value) and (isinstance(value, int) or not is_int)
        if default >= 0 and key not in MAY_BE_NEGATIVE:
            expected, valid = f"{expected} of at least 0", valid and value >= 0
        return None if valid else expected
    if isinstance(default, str):
        return None if (isinstance(value, str) and value) or number else "a string"
    kinds = {DictConfig: "a mapping", ListConfig: "a list"}
    return next((words for kind, words in kinds.items() if isinstance(default, kind) > isinstance(value, kind)), None)
