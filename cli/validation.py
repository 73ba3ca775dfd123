"""Check overrides before torch is loaded."""

import functools
import importlib.util
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from cli import LISTS
from cli.errors import suggest_nearest
from cli.job import task_overrides
from cli.resumed_run import option_names
from runs.expectations import check_expectations
from runs.format import check_positive_int, printable
from runs.monitor import check_setting
from runs.overrides import override_key


@functools.cache
def _default_config(groups: tuple[str, ...], config_name: str = "config") -> DictConfig:
    """Return the config of these choices with no value overridden. Cached, because jobs of a sweep share it."""
    return hydra.compose(config_name, list(groups))


def forget_defaults() -> None:
    """Forget the composed configs, for a process that runs several commands: conf/ may change between them."""
    _default_config.cache_clear()


# Checked here before torch is loaded, and again by the classes that take these settings.
MAY_BE_NEGATIVE = ("model.net.weight", "model.net.bias", "data.scale")
POSITIVE_INTS: tuple[str, ...] = ("data.batch_size", "data.eval_batch_size", "model.steps_per_batch", "threads")
POSITIVE_INTS += ("trainer.num_nodes", "trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch")
POSITIVE_INTS += ("checkpoint.every_n_steps", "record.every_n_batches", "callbacks.pictures.every_n_epochs")
POSITIVE_INTS += ("scheduler.step_size",)
# A number of batches, or a part of them.
BATCH_LIMITS = tuple(f"trainer.limit_{stage}_batches" for stage in ("train", "val", "test"))
BATCH_LIMITS += ("trainer.overfit_batches",)
CHOICES = {
    "data.validate_on": ("val", "test", "train"),
    "logger.wandb.mode": ("None", "online", "offline", "disabled"),
    "checkpoint.tested": ("last", "best"),
    "trainer.deterministic": ("None", "True", "False", "warn"),
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
LOGGER_PACKAGES = ("mlflow", "wandb")  # logger= names the package
SECRET = re.compile("api_?key|token|password|secret", re.IGNORECASE)
# null takes a part out of these groups.
PART_GROUPS = ("callbacks", "metrics", "logger")
# null is Lightning's own value of the Trainer's other arguments.
NEVER_NULL = ("max_steps", "devices", "num_nodes", "strategy", "accumulate_grad_batches")
# All at once; torch's own choice; no normalization to undo.
MAY_BE_NULL: tuple[str, ...] = (
    "data.batch_size",
    "data.eval_batch_size",
    "optimizer.fused",
    "optimizer.line_search_fn",
)
MAY_BE_NULL += ("model.mean", "model.std")


def check_without_effect(key: str, needed: str) -> None:
    """Raise ValueError where a setting was typed that has an effect only with another one, which was not."""
    if any(override_key(override) == key for override in task_overrides()):
        raise ValueError(f"{key}= has an effect with {needed} only")


def check_expect(cfg: DictConfig) -> None:
    """Raise ValueError for an ``expect:``, typed or stored, that no run can be compared with."""
    expect = cfg.expect
    check_expectations(OmegaConf.to_container(expect, resolve=True) if OmegaConf.is_config(expect) else expect)


def check_overrides(cfg: DictConfig) -> None:
    """Raise ValueError for an override that is out of range or of another type than the value in conf/."""
    for group in ("model", "data", "optimizer", "trainer"):
        if cfg.get(group) is None:
            raise ValueError(f"{group} cannot be left out")
    check_setting(cfg.monitor, cfg.mode)
    check_expect(cfg)
    check_loggers(cfg)
    if not all(isinstance(name, str) for name in cfg.ignore_overrides or ()):
        raise ValueError(f"ignore_overrides={cfg.ignore_overrides} must be a list of settings, such as [optimizer.lr]")
    check_values(cfg)
    for key in ("trainer.max_epochs", "trainer.max_steps"):
        if OmegaConf.select(cfg, key) == 0 and not cfg.validate_before_training:
            raise ValueError(f"{key}=0 leaves nothing to train")
    if cfg.trainer.get("enable_checkpointing", True) is False:
        raise ValueError("trainer.enable_checkpointing=false must be left out: a run always keeps its last weights")


def check_loggers(cfg: DictConfig) -> None:
    """Raise ValueError for loggers that need a package, and for secrets, which would be stored with the run."""
    for key, value in itertools.chain.from_iterable(map(_typed_values, HydraConfig.get().overrides.task)):
        if key in LISTS:
            _check_list(key, value)
        elif key.startswith("logger.") and SECRET.search(key):
            raise ValueError(f"{key}=… would be stored with the run: secrets are read from the environment")
        elif key.startswith("logger.") and re.search("//[^/]*@", value):
            raise ValueError(
                f"{key}=… has a user or a password in it, which would be stored with the run: give them as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
    tags = cfg.tags if isinstance(cfg.tags, ListConfig) else [None]
    if not all(isinstance(tag, str | int) and str(tag) == printable(str(tag)) for tag in tags):
        raise ValueError(f"tags={cfg.tags} must be a list of words, such as [baseline]")
    for name in LOGGER_PACKAGES:
        if (cfg.get("logger") or {}).get(name) and not importlib.util.find_spec(name):
            raise ValueError(f"logger={name} needs a package: pip install {name}")


def _check_list(group: str, value: str) -> None:
    """Raise ValueError for a list of options that is empty, or names one twice, or no logger among others."""
    if (names := option_names(value)) is None:
        return
    if not names:
        raise ValueError(f"{group}={value} names none; there is {group}={'none' if group == 'logger' else 'default'}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{group}={value} has {twice[0]} twice")
    if group == "logger" and "none" in names and len(names) > 1:
        others = ",".join(name for name in names if name != "none")
        raise ValueError(f"logger={value}: none is no logger; did you mean logger=[{others}]?")


def check_values(cfg: DictConfig, config_name: str = "config") -> None:
    """Raise ValueError for a typed value that is out of range or of another type than the one in conf/.

    Args:
        cfg: the config of a command.
        config_name: its primary config in ``conf/``.
    """
    hydra_cfg = HydraConfig.get()
    settings = {key: text for text in hydra_cfg.overrides.task if text[0] != "~" for key, _ in _typed_values(text)}
    groups = {*hydra_cfg.runtime.choices, *LISTS}  # Hydra leaves out a group with a list of options
    parts = tuple(text for key, text in settings.items() if key.partition("@")[0] in groups)
    for key in settings:
        if key.partition("@")[0] in groups:
            continue
        defaults = _default_config(parts, config_name)
        value, default = OmegaConf.select(cfg, key), OmegaConf.select(defaults, key)
        typed = "null" if value is None else value
        if value is None and _is_required(key, defaults):
            raise ValueError(f"{key}=… is required, and null is none")
        if key == "trainer.max_epochs" and value == -1:  # no end
            continue
        if key in CHOICES and str(value) not in CHOICES[key]:
            choices = ", ".join(CHOICES[key]).replace("None", "null").replace("True, False", "true, false")
            raise ValueError(f"{key}={typed} must be one of {choices}{suggest_nearest(str(value), list(CHOICES[key]))}")
        if key == "trainer.max_time" and not re.fullmatch(r"None|(?=.*[1-9])\d+(:\d+){3}", str(value)):
            raise ValueError(f"{key}={value} must be a time, DD:HH:MM:SS, such as 00:01:30:00")
        if key == "seed" and isinstance(value, int) and value >= 2**32:
            raise ValueError(f"seed={value} must be at most {2**32 - 1}")
        if key in POSITIVE_INTS and value is not None:
            check_positive_int(key, value)
        if key in BATCH_LIMITS and not _is_batch_limit(value):
            raise ValueError(f"{key}={typed} must be a number of batches, or a part of them from 0 to 1")
        if key == "trainer.gradient_clip_val" and not (value is None or (_is_number(value) and value >= 0)):
            raise ValueError(f"{key}={typed} must be a number of at least 0, or null")
        if key not in CHOICES and (expected := _expected(key, value, default)):
            example = "" if isinstance(default, bool | DictConfig) else f", such as {default}"
            raise ValueError(f"{key}={typed} must be {expected}{example}")


def _typed_values(override: str) -> list[tuple[str, str]]:
    """Return the key and the value of an override as texts, and those of each setting in braces."""
    key, text = override_key(override), override.partition("=")[2]
    value = OverridesParser.create().parse_override(override).value() if "{" in text else text
    return [(key, text), *_nested(key, value)]


def _nested(key: str, value: Any) -> Iterator[tuple[str, str]]:
    for name, one in value.items() if isinstance(value, dict) else ():
        yield f"{key}.{name}", str(one)
        yield from _nested(f"{key}.{name}", one)


def _is_required(key: str, defaults: DictConfig) -> bool:
    """Return whether conf/ has ``???`` in place of this value."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(defaults, parent) if parent else defaults
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _expected(key: str, value: Any, default: Any) -> str | None:
    """Return what a value must be to replace the default, or None if it is valid."""
    if default is None or (value is None and _may_be_null(key, default)):  # checked by the class that takes it
        return None
    if key == "trainer.devices":  # numbers or words, which Lightning checks
        return None if value is not None else "a number of devices, or auto"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        is_int = isinstance(default, int)
        expected = "a whole number" if is_int else "a number"
        valid = _is_number(value) and math.isfinite(value) and (isinstance(value, int) or not is_int)
        if default >= 0 and key not in MAY_BE_NEGATIVE:
            expected, valid = f"{expected} of at least 0", valid and value >= 0
        return None if valid else expected
    if isinstance(default, str):
        return None if (isinstance(value, str) and value) or _is_number(value) else "a string"
    kinds = {DictConfig: "a mapping", ListConfig: "a list"}
    return next((words for kind, words in kinds.items() if isinstance(default, kind) > isinstance(value, kind)), None)


def _may_be_null(key: str, default: Any) -> bool:
    """Return whether null means something as the value of a setting that is not null in conf/."""
    group, _, name = key.partition(".")
    if group in PART_GROUPS and isinstance(default, DictConfig) and "." not in name:
        return True
    if name.endswith("_target_"):
        return False
    if group == "metrics":  # torchmetrics has a meaning for null
        return True
    return key in MAY_BE_NULL or group == "hydra" or (group == "trainer" and name not in NEVER_NULL)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_batch_limit(value: Any) -> bool:
    return value is None or (_is_number(value) and value >= 0 and (isinstance(value, int) or value <= 1))
