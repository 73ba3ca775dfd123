"""Runs on the disk: finding them, and rebuilding what they hold without running any code of theirs."""

import contextlib
import inspect
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

# What a stored config may build: classes of these modules, of these kinds. Everything else is refused by name.
MODULES: tuple[str, ...] = ("lit_models", "datamodules", "torch.nn.modules", "torch.optim", "lightning.pytorch.trainer")
MODULES += ("callbacks.profiling",)
GROUPS = ("model", "data", "optimizer", "scheduler")  # what a checkpoint's weights and state belong to
# Of the data only where it lies and how it is served may change in the middle, not what was held out or learnt from.
SERVED = [
    f"data.{name}" for name in ("root", "path", "test_path", "batch_size", "eval_batch_size", "num_workers", "augment")
]


def find(run: str, checkpoint: str = "last") -> tuple[Path, Path]:
    """The folder of a run and one of its checkpoints.

    Args:
        run: ``last``, the folder of a run, or a checkpoint file.
        checkpoint: ``last`` or ``best``, where ``run`` is not a file.

    Raises:
        ValueError, FileNotFoundError: that is no run, or it has no such checkpoint.
    """
    run = str(run)  # a folder's name may look like a number
    if "://" in run:
        raise ValueError(f"{run} is not a file on this machine; checkpoints are read from files only")
    if checkpoint not in ("last", "best"):
        raise ValueError(f"checkpoint={checkpoint} must be last or best")
    path = (Path("outputs", "last") if run == "last" else Path(run)).resolve()
    if path.is_file():
        if not zipfile.is_zipfile(path):  # said before torch is loaded
            raise ValueError(f"{path} is damaged or no checkpoint")
        return (path.parent.parent if path.parent.name == "checkpoints" else path.parent), path
    if not path.is_dir():
        missing = (
            "there is no run yet in outputs/" if run == "last" else f"{run} is neither a run's folder nor a checkpoint"
        )
        raise FileNotFoundError(f"{missing}; python train.py makes one")
    file = path / "checkpoints" / f"{checkpoint}.ckpt"
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} is not a run's folder: it has no config.yaml")
    if not file.is_file():
        raise FileNotFoundError(f"the run in {path} has no {checkpoint}.ckpt: it ended before its first epoch did")
    return path, file


def load(file: Path) -> dict[str, Any]:
    """A checkpoint of this project, read without running any code. Its ``config`` is trusted after this.

    Raises:
        ValueError: it is damaged, comes from elsewhere, or holds a config that would run something.
    """
    import torch

    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged or foreign file makes it stumble over
        reason = " ".join(str(error).split())
        if "Weights only load failed" in reason:
            raise ValueError(
                f"{file} holds more than numbers and plain values, which could run code: refused"
            ) from error
        raise ValueError(f"{file} is damaged or no checkpoint: {reason[:200]}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("config"), dict):
        lightning = checkpoint.get("pytorch-lightning_version") if isinstance(checkpoint, dict) else None
        origin = f" (Lightning {lightning} wrote it)" if lightning else ""
        raise ValueError(f"{file} is not a checkpoint of this project: it holds no config{origin}")
    if missing := {*GROUPS, "trainer", "seed", "threads", "chosen"} - set(checkpoint["config"]):
        made_by = checkpoint.get("made_by", "it does not say which")
        lacks = ", ".join(sorted(missing))
        raise ValueError(f"{file} was written by another version of this project ({made_by}): its config lacks {lacks}")
    refuse_code(checkpoint["config"], str(file))
    return checkpoint


def refuse_code(config: dict[str, Any], origin: str) -> None:
    """Raises ValueError for a stored config that would run or read something when it is instantiated."""
    for place, key, value in _walk(config, "config"):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{origin} is refused: {place} holds {value!r}, which would be evaluated")
        if key in ("_args_", "_recursive_", "_convert_"):
            raise ValueError(f"{origin} is refused: {place} is not used by this project")
        # What watches a run is made from the present command, so what is stored of it is never built.
        if key == "_target_" and not place.startswith(("config.callbacks.", "config.logger.")):
            _check_target(str(value), f"{origin} is refused: {place}={value}")


def _walk(node: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield f"{place}.{key}", str(key), value
        yield from _walk(value, f"{place}.{key}")


def _check_target(target: str, message: str) -> None:
    import importlib

    import lightning.pytorch as pl
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from callbacks.profiling import Table

    # Only modules of known packages are imported, and only a class that they define themselves is accepted: a path such
    # as torch.nn.functional.torch.load ends outside of them.
    module, _, name = target.rpartition(".")
    known = ("lit_models.", "datamodules.", "torch.nn.", "torch.optim.", "lightning.pytorch.", "callbacks.profiling.")
    if not f"{module}.".startswith(known):
        raise ValueError(f"{message} is not of this project")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{message} does not exist") from error
    kinds = (nn.Module, Optimizer, LRScheduler, pl.LightningDataModule, pl.Trainer, Table)
    if not (inspect.isclass(found) and issubclass(found, kinds) and found.__module__.startswith(MODULES)):
        raise ValueError(f"{message} is not a model, data set, optimizer, scheduler, trainer or profiler")


def data_root() -> str:
    """Where data sets are kept: the environment variable DATA_ROOT, else ``data`` in the project."""
    return os.environ.get("DATA_ROOT") or str(Path(__file__).parent / "data")


def own_config(checkpoint: dict[str, Any]) -> DictConfig:
    """The config in a checkpoint, with the data root of this machine when the stored one is not here."""
    cfg = OmegaConf.create(checkpoint["config"])
    if "weights" in cfg.model:
        cfg.model.weights = None  # those it started from; its own are in the checkpoint
    if "root" in cfg.data and "image" not in cfg.data and not Path(cfg.data.root).is_dir():  # a published data set's
        cfg.data.root = data_root()
    return cfg


def resumed(cfg: DictConfig, file: Path) -> DictConfig:
    """The config of a run that goes on: its own, with what was typed now on top.

    Args:
        cfg: composed from what was typed now; its callbacks and its logger are taken, with the values typed before.
        file: the checkpoint to go on from.

    Raises:
        ValueError: a part was typed that the checkpoint does not belong to, or there is nothing left to do.
    """
    checkpoint = load(file)
    stored, merged = checkpoint["config"], own_config(checkpoint)
    before = _by_key(stored["chosen"]["overrides"])
    kept = _plain_values(merged, [key for key in map(_path, before) if key.startswith("callbacks.")])
    typed = _by_key(cfg.chosen.overrides)
    for group in ("callbacks", "logger"):  # their classes are those that conf/ has now, not the stored ones
        name = cfg.chosen[group] if group in typed else stored["chosen"][group]
        merged[group] = cfg[group] if cfg.chosen[group] == name else option(group, name)
    if "trainer" in typed:
        merged.trainer = _trainer(merged.trainer, stored["chosen"].get("trainer", "default"), cfg.chosen.trainer)
    for key, value in kept.items():
        if OmegaConf.select(merged, key.rpartition(".")[0]):
            OmegaConf.update(merged, key, value, force_add=True)
    if "purge_step" in merged.logger:
        merged.logger.purge_step = checkpoint["global_step"] + 1
    overrides = [text for key, text in typed.items() if key != "resume" and text != before.get(key)]
    for override in overrides:
        key, value = _path(override), override.partition("=")[2]
        held = key == "seed" or (key.startswith(tuple(f"{group}." for group in GROUPS)) and key not in SERVED)
        if held and OmegaConf.select(cfg, key) != OmegaConf.select(merged, key):
            raise ValueError(f"resume: {key} belongs to what the checkpoint holds and cannot be changed in the middle")
        if key in (*GROUPS, "experiment"):
            if value != (was := str(stored["chosen"].get(key) or "null")):
                raise ValueError(f"resume: this run was made with {key}={was} and cannot go on with {key}={value}")
        elif key in ("trainer", "callbacks", "logger"):
            merged.chosen[key] = value
        else:
            OmegaConf.update(merged, key, OmegaConf.select(cfg, key), force_add=True)
    merged.chosen.overrides = list((before | _by_key(overrides)).values())
    merged.resume = cfg.resume
    _check_limits(merged, checkpoint, file)
    return merged


def _check_limits(cfg: DictConfig, checkpoint: dict[str, Any], file: Path) -> None:
    """Raise ValueError where a resumed run has nothing left to train. One that was killed in its test may test."""
    from lightning.pytorch.callbacks import Timer

    stored, limits = checkpoint["config"]["trainer"], ("max_epochs", "max_steps", "max_time")
    as_before = all(cfg.trainer.get(limit) == stored.get(limit) for limit in limits)
    if as_before and _status(file) not in ("finished", "diverged"):
        return
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    max_epochs, max_steps, max_time = (OmegaConf.to_container(cfg.trainer).get(limit) for limit in limits)  # type: ignore[union-attr]
    raised = []
    if max_epochs is not None and 0 <= max_epochs <= epochs:
        raised.append(f"trainer.max_epochs={epochs + 5}")
    if max_steps is not None and 0 <= max_steps <= checkpoint["global_step"]:
        raised.append("trainer.max_steps=-1")
    if max_time and (state := checkpoint["callbacks"].get("Timer")):
        timer = Timer(max_time)
        timer.load_state_dict(state)
        if (timer.time_remaining() or 0) <= 0:
            raised.append("trainer.max_time=null")
    if raised == [f"trainer.max_epochs={epochs + 5}"]:
        raise ValueError(
            f"resume: the run in {file.parent.parent} has finished its {epochs} epochs; {raised[0]} would add five"
        )
    if raised:
        raise ValueError(
            f"resume: the run in {file.parent.parent} has nothing left to train after step "
            f"{checkpoint['global_step']}; {' '.join(raised)} would go on"
        )


def _trainer(own: DictConfig, was: str, now: str) -> DictConfig:
    """A run's trainer with another option of trainer=: what its experiment chose and what was typed stay, but for what
    the option says. How many processes there are is never the run's own."""
    before, after, default = (option("trainer", name) for name in (was, now, "default"))
    kept = {
        key: value for key, value in own.items() if value != before.get(key) and key not in ("devices", "num_nodes")
    }
    says = {key: value for key, value in after.items() if value != default.get(key)}
    return OmegaConf.create({**after, **kept, **says})


def _plain_values(cfg: DictConfig, keys: Sequence[str]) -> dict[str, Any]:
    """Of those keys that name no class and nothing else that Hydra acts upon: their names begin with a letter."""
    values = {key: OmegaConf.select(cfg, key) for key in keys if re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)*", key)}
    return {key: value for key, value in values.items() if value is None or isinstance(value, str | int | float)}


def _path(override: str) -> str:
    """``trainer.max_epochs`` of ``++trainer.max_epochs=3``."""
    return override.lstrip("+~").partition("=")[0]


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Each setting once: of what was typed twice the last counts."""
    return {override.partition("=")[0]: override for override in overrides}


def option(group: str, name: str | None) -> DictConfig:
    """One option of a group as conf/ has it now."""
    conf = str(Path(__file__).parent / "conf")
    # On the command line Hydra is at work already and must not be started again.
    running = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if running else hydra.initialize_config_dir(conf, version_base="1.3"):
        return hydra.compose("config", [f"{group}={name}"])[group]


def _status(file: Path) -> str | None:
    result = file.parent.parent / "result.json"
    return json.loads(result.read_text())["status"] if result.is_file() else None
