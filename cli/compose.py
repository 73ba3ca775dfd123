"""Compose configs in Python, and the resolvers that conf/ calls."""

import os
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cli import CONF, PROJECT, help, job_dir, run_dir
from cli.job import resumed_choices
from cli.paths import quote_paths
from cli.resumed_run import is_option, option_names, stored_choices
from runs.checkpoint import find_checkpoint
from runs.migrate import upgrade_overrides
from runs.overrides import override_key, override_values

# Settings that do not change what an experiment measures.
COSMETIC_KEYS = (
    *("experiment", "seed", "check", "expect", "resume", "threads", "compile", "name", "logger", "record", "tags"),
    *("callbacks.progress", "callbacks.per_class", "callbacks.predicted_labels", "callbacks.pictures"),
    *("checkpoint.every_n_steps", "monitor", "mode", "metrics"),
    *("data.root", "data.eval_batch_size", "trainer.accelerator", "trainer.log_every_n_steps", "trainer.profiler"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
)
# Callbacks that look at a training and change nothing in it.
OBSERVERS = "default|judge|predicted_labels|tensorboard_extras"


def register_resolvers() -> None:
    """Register the functions that conf/ calls."""
    resolvers: dict[str, Callable[..., object]] = {
        "run_name": run_dir.run_name,
        "run_title": run_title,
        "chosen_loggers": chosen_loggers,
        "chosen_callbacks": chosen_callbacks,
        "job_dir": job_dir.job_dir,
        "run_dir_of": lambda run: str(find_checkpoint(run)[0]),
        "data_root": data_root,
        "steps_per_full_batch": lambda batch_size: 1000 if batch_size is None else 1,
        "options": help.list_options,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    # These make a directory. The cache calls them once for each config.
    for name in ("new_or_resumed_run_dir", "new_or_resumed_sweep_dir"):
        OmegaConf.register_new_resolver(name, getattr(run_dir, name), use_cache=True, replace=True)


def compose(*overrides: str) -> DictConfig:
    """Return the config of ``python train.py OVERRIDES``, for programs that call ``train`` themselves."""
    register_resolvers()
    resumed_choices[:], current = stored_choices(quote_paths(upgrade_overrides(overrides)[0]))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [*resumed_choices, *current], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def data_root() -> str:
    """Return the directory of the data sets: the environment variable DATA_ROOT, else ``data`` in the project."""
    return run_dir.not_missing(os.environ.get("DATA_ROOT") or str(PROJECT / "data"))


def chosen_loggers(*, _root_: DictConfig) -> str | list[str]:
    """Return the options of ``logger=``: one, ``none``, or a list of several, of which Hydra keeps no record."""
    settings = _root_.get("logger") or {}
    names = [str(name) for name in settings if settings[name] is not None and is_option("logger", str(name))]
    return names if len(names) > 1 else next(iter(names), "none")


def chosen_callbacks() -> str | list[str] | None:
    """Return the option of ``callbacks=``, or the list of several, of which Hydra keeps no record."""
    hydra_cfg = HydraConfig.get()
    if name := hydra_cfg.runtime.choices.get("callbacks"):
        return str(name)
    return option_names(override_values(hydra_cfg.overrides.task).get("callbacks", ""))


def relevant_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that change what a run measures, without those of COSMETIC_KEYS and what is below them."""
    keys = "|".join(map(re.escape, COSMETIC_KEYS))
    observers = rf"callbacks\.({OBSERVERS})\b|callbacks=\[?({OBSERVERS})(, *({OBSERVERS}))*\]?$"
    cosmetic = rf"[+~]*(({keys})([.=]|$)|{observers})|debug=traceback$"
    return [override for override in overrides if not re.match(cosmetic, override)]


def incomparable_overrides(cfg: DictConfig, *ignore: str) -> list[str]:
    """Return the overrides because of which a run is not compared with what its experiment expects.

    Args:
        cfg: config of the run.
        *ignore: further keys, or patterns of keys, beside those of ``ignore_overrides``.
    """
    found = relevant_overrides(cfg.choices.overrides)
    if cfg.checkpoint.get("tested") == "best":  # these two tell which weights are tested
        found += [override for override in cfg.choices.overrides if override_key(override) in ("monitor", "mode")]
    ignored = (*cfg.ignore_overrides, *ignore)
    return [one for one in found if not any(fnmatchcase(override_key(one), pattern) for pattern in ignored)]


def run_title(name: str, overrides: list[str], seed: int) -> str:
    """Return a path that names a run by its overrides and seed: ``mnist_cnn/lr=0.1 seed=2``."""
    in_name: tuple[str, ...] = ("experiment", "seed")
    if not any(override.startswith("experiment=") for override in overrides):
        in_name += ("model", "data")
    settings = [override.lstrip("+").partition("=") for override in relevant_overrides(overrides)]
    shown = [f"{key.rpartition('.')[2]}={value}" for key, _, value in settings if key not in in_name]
    # The name and the overrides may come from a checkpoint, and must not lead out of outputs/.
    parts = [part for part in str(name).split("/") if part.strip(" .")]
    title = [
        re.sub(r"[^-\w .,=+()\[\]{}]", "_", part)[:120] for part in (*parts[:3], " ".join([*shown, f"seed={seed}"]))
    ]
    return "/".join(part.encode()[:240].decode(errors="ignore") for part in title)  # a file name has 255 bytes
