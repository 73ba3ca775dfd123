"""Resume a run: merge the config in its checkpoint with the overrides of the command line."""

import contextlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cli import CONF
from cli.build import stored_config
from cli.job import task_overrides
from cli.resumed_run import is_option, name_option
from runs.checkpoint import CHECKPOINT_GROUPS, MUTABLE_DATA_KEYS, find_checkpoint, load_checkpoint
from runs.format import pluralize
from runs.monitor import MODES
from runs.overrides import last_of_each, override_key, quote_value, typed_setting
from runs.result import ENDED, read_result
from runs.safety import is_logger_name
from runs.training_state import check_training_state

log = logging.getLogger(__name__)

# Callbacks of the command line that come back on resume: they read and write no file.
RESUMABLE_CALLBACKS = [
    f"lightning.pytorch.callbacks.{name}"
    for name in ("EarlyStopping", "StochasticWeightAveraging", "EMAWeightAveraging", "WeightAveraging")
]
RESUMABLE_CALLBACKS += ["lightning.pytorch.callbacks.LearningRateMonitor", "callbacks.early_stopping.EarlyStopping"]
SERVICES = {"mlflow": "MLflow", "wandb": "W&B"}  # options of logger=


def merge_resume_config(cfg: DictConfig, file: Path) -> DictConfig:
    """Return the config of a resumed run: the stored one, with the overrides of the command line on top.

    Args:
        cfg: composed from the overrides of the command line. Callbacks and the logger come from it; the run's own
            overrides of callbacks still apply, except for those that could name a run or a file.
        file: the checkpoint to resume from.

    Raises:
        ValueError: the state of the training is damaged, an override changes what is fixed by the checkpoint, a run
            that a callback reads must be typed again, or there is nothing left to train.
    """
    checkpoint = load_checkpoint(file)
    check_training_state(checkpoint, file)
    stored, merged = checkpoint["config"], stored_config(checkpoint)
    before = last_of_each(stored["choices"]["overrides"])
    typed = last_of_each(cfg.choices.overrides)
    own = _values(merged, [key for key in map(override_key, before) if key.startswith(("callbacks.", "logger."))])
    _take_groups(merged, cfg, stored["choices"], typed)
    for key, value in own.items():
        if OmegaConf.select(merged, key.rpartition(".")[0]) and _is_kept(merged, key, value):
            OmegaConf.update(merged, key, value, force_add=True)
    _check_services(merged.logger, typed)
    _check_nodes(merged, cfg, typed)
    _drop_compile(merged, typed)
    _add_callbacks(merged, stored["callbacks"], before)
    if OmegaConf.select(merged, "logger.tensorboard") is not None:
        merged.logger.tensorboard.purge_step = checkpoint["global_step"] + 1
    again = ("trainer.",) if "trainer" in typed else ()  # what is typed on top of an option that is taken again
    overrides = [
        text
        for key, text in typed.items()
        if key != "resume" and (text != before.get(key) or _is_only_typed(text) or override_key(text).startswith(again))
    ]
    for override in overrides:
        _apply_override(override, cfg, merged, stored["choices"])
        if override_key(override) == "data.root":
            merged.data.pop("only_read", None)
    merged.choices.overrides = list((before | last_of_each(overrides)).values())
    merged.resume = cfg.resume
    _check_callbacks(merged, own)
    _check_limits(merged, checkpoint, file.parent.parent)
    return merged


def _take_groups(merged: DictConfig, cfg: DictConfig, stored_choices: dict[str, Any], typed: dict[str, str]) -> None:
    """Put the callbacks, the logger and a newly chosen trainer of ``conf/`` into the config of the resumed run."""
    for group in ("callbacks", "logger"):  # their classes are those that conf/ has now, not the stored ones
        name = cfg.choices[group] if group in typed else stored_choices[group]
        merged[group] = cfg.get(group) or {} if cfg.choices[group] == name else compose_group(group, name)
    if "trainer" in typed:
        merged.trainer = _switch_trainer(merged.trainer, stored_choices.get("trainer", "default"), cfg.choices.trainer)


def _check_services(loggers: DictConfig, typed: dict[str, str]) -> None:
    """Raise ValueError where only the run, which may come from anyone, says that a service is to get its records."""
    chosen = [str(name) for name, settings in loggers.items() if settings is not None]
    keys = [override_key(key).split(".")[:2] for key in typed]
    found = [SERVICES[name] for name in chosen if name in SERVICES and ["logger", name] not in keys]
    if found and ["logger"] not in keys:
        again = typed_setting("logger", chosen[0] if len(chosen) == 1 else chosen)
        raise ValueError(
            f"resume: this run is in {' and '.join(found)}: {again} continues it there, logger=none continues without"
        )


def _check_nodes(merged: DictConfig, cfg: DictConfig, typed: dict[str, str]) -> None:
    """Raise ValueError where only the run, and no override or launcher, says that other machines take part.

    It would wait for them.
    """
    nodes = merged.trainer.get("num_nodes", 1)
    is_typed = "num_nodes" in {key.rpartition(".")[2] for key in typed}
    if not is_typed and nodes not in (1, cfg.trainer.get("num_nodes", 1)):
        raise ValueError(f"resume: this run was trained on {nodes} machines: trainer.num_nodes={nodes} continues it so")


def overrides_to_repeat(cfg: DictConfig) -> list[str]:
    """Return the overrides that a run must be given again when it is resumed, because they are not taken from it.

    A run that ``last`` names is named by its directory: after this one ``last`` is another.
    """
    typed, groups = task_overrides(), ["compile", "trainer.num_nodes"]
    if any(map(cfg.logger.get, SERVICES)):
        groups.append("logger")
    if any(re.fullmatch(r"callbacks\.(judge\.run|\w+\._target_)", override_key(override)) for override in typed):
        groups.append("callbacks")
    keys = rf"({'|'.join(map(re.escape, groups))})(\.|$)"
    repeated = [override for override in typed if re.match(keys, override_key(override))]
    if "callbacks.judge.run=last" in repeated:
        judge = f"callbacks.judge.run={quote_value(str(find_checkpoint('last')[0]))}"
        repeated[repeated.index("callbacks.judge.run=last")] = judge
    return repeated


def _drop_compile(merged: DictConfig, typed: dict[str, str]) -> None:
    """Turn ``compile`` off, unless it was typed: a checkpoint, which may come from anyone, starts no compiler."""
    if not merged.get("compile"):
        return
    merged.compile = False
    if "compile" not in map(override_key, typed):
        log.info("compile=true is not taken from a checkpoint, because it starts a compiler; type it to compile again")


def _check_callbacks(merged: DictConfig, own: dict[str, Any]) -> None:
    """Raise ValueError for a callback without a value that is not taken from a checkpoint, such as another run."""
    for name, settings in merged.callbacks.items():
        missing = [key for key in settings or () if OmegaConf.is_missing(settings, key)]
        if not missing:
            continue
        key = f"callbacks.{name}.{missing[0]}"
        was = typed_setting(key, str(own[key])) if own.get(key) else f"{key}=…"
        raise ValueError(
            f"resume: {was} is not taken from a checkpoint: callbacks={merged.choices.callbacks} "
            f"{key}=… chooses it again, and callbacks=default resumes without it"
        )


def _add_callbacks(merged: DictConfig, stored: dict[str, Any], before: dict[str, str]) -> None:
    """Add the callbacks that were typed in full for the run, or log which of them must be typed again.

    A checkpoint may come from anyone. Only classes that read and write no file are made from it, with plain values.
    """
    typed = [
        re.match(r"callbacks\.([a-z]\w*)(\._target_)?=.*", text.lstrip("+"), re.DOTALL) for text in before.values()
    ]
    for name in dict.fromkeys(found[1] for found in typed if found and "_target_" in found[0]):
        now = merged.callbacks.get(name, {})
        if now is None or "_target_" in now:  # left out, or typed again
            continue
        settings = stored.get(name) if isinstance(stored, dict) else None
        settings = settings if isinstance(settings, dict) else {}
        values = {key: value for key, value in settings.items() if key != "_target_"}
        plain = all(
            re.fullmatch(r"[a-z]\w*", str(key)) and (value is None or _is_plain(value)) for key, value in values.items()
        )
        if plain and settings.get("_target_") in RESUMABLE_CALLBACKS:
            merged.callbacks[name] = {**settings, **now}
        else:
            merged.callbacks.pop(name, None)
            log.warning(
                "resume: the callback %s is not taken from a checkpoint, which may come from anyone: it is added where "
                "+callbacks.%s._target_=… is typed again, with its settings",
                *(name, name),
            )


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a word or the name of a metric."""
    if isinstance(value, str):
        return bool(re.fullmatch(r"[\w-]*|(train|val|test)/[\w/ -]+", value))
    return isinstance(value, int | float)


def _apply_override(override: str, cfg: DictConfig, merged: DictConfig, choices: dict[str, Any]) -> None:
    """Set in ``merged`` what an override sets in ``cfg``.

    Raises:
        ValueError: the override changes what is fixed by the checkpoint, whose groups were chosen by ``choices``.
    """
    key, value = override_key(override), override.partition("=")[2]
    of_checkpoint = key.partition(".")[0] in CHECKPOINT_GROUPS and "." in key
    is_fixed = key == "seed" or (of_checkpoint and key not in MUTABLE_DATA_KEYS)
    if is_fixed and OmegaConf.select(cfg, key) != OmegaConf.select(merged, key):
        raise ValueError(f"resume: {key} is fixed by the checkpoint and cannot be changed")
    if key in ("debug", "sweep") and value not in ("traceback", "null"):
        raise ValueError(f"resume: {override} is for a new run; hydra.run.dir=… with debug= tries one batch elsewhere")
    if key in (*CHECKPOINT_GROUPS, "experiment"):
        if value != (was := str(choices.get(key) or "null")):
            raise ValueError(f"resume: this run was made with {key}={was} and cannot resume with {key}={value}")
    elif key in ("trainer", "callbacks", "logger"):
        merged.choices[key] = cfg.choices[key]
    else:
        OmegaConf.update(merged, key, OmegaConf.select(cfg, key), force_add=True)


def _check_limits(cfg: DictConfig, checkpoint: dict[str, Any], run_dir: Path) -> None:
    """Raise ValueError where a resumed run has nothing left to train, unless it was killed before its test ended."""
    from lightning.pytorch.callbacks import Timer

    stored, limits = checkpoint["config"]["trainer"], ("max_epochs", "max_steps", "max_time")
    as_before = all(cfg.trainer.get(limit) == stored.get(limit) for limit in limits)
    if as_before and (read_result(run_dir) or {}).get("status") not in ENDED:
        return
    shown = os.path.relpath(run_dir)
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    trainer: Any = OmegaConf.to_container(cfg.trainer)
    max_epochs, max_steps, max_time = (trainer.get(limit) for limit in limits)
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
            f"resume: the run in {shown} has finished its {pluralize(epochs, 'epoch')}; {raised[0]} would add five"
        )
    if raised:
        after = f"after step {checkpoint['global_step']}"
        raise ValueError(
            f"resume: the run in {shown} has nothing left to train {after}; {' '.join(raised)} would continue it"
        )


def _switch_trainer(own: DictConfig, was: str, now: str) -> DictConfig:
    """Return a run's trainer settings with another option of ``trainer=``.

    Settings of its experiment and of its overrides stay, except for what differs between the option and the default.
    The number of processes always comes from the option.
    """
    before, after, default = (compose_group("trainer", name) for name in (was, now, "default"))
    kept = {
        key: value for key, value in own.items() if value != before.get(key) and key not in ("devices", "num_nodes")
    }
    changed = {key: value for key, value in after.items() if value != default.get(key)}
    return OmegaConf.create({**after, **kept, **changed})


def _values(cfg: DictConfig, keys: Sequence[str]) -> dict[str, Any]:
    """Return the values of those keys whose parts begin with a letter.

    None of them is an instruction to Hydra, such as ``_target_``.
    """
    return {key: OmegaConf.select(cfg, key) for key in keys if re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)+", key)}


def _is_kept(cfg: DictConfig, key: str, value: Any) -> bool:
    """Return whether a setting of a callback takes its value in the checkpoint.

    That is a number, or a metric and its mode: a word or a path could be the name of a run or a file. Even a number
    could, where the present config has none. A callback as a whole can only be switched off. Of a logger it is the name
    of the run, or a mode without a network.
    """
    parent, _, name = key.rpartition(".")
    settings = OmegaConf.select(cfg, parent)
    if key.startswith("logger."):
        if not isinstance(settings, DictConfig):
            return False
        if name == "mode":
            return value in ("offline", "disabled")
        return is_logger_name(name, str(value))
    if OmegaConf.is_missing(settings, name) or OmegaConf.is_interpolation(settings, name):
        return False
    if value is None or parent == "callbacks":
        return value is None
    if isinstance(value, str):
        return (name == "monitor" and bool(re.fullmatch(r"[\w/ -]*", value))) or (name == "mode" and value in MODES)
    return isinstance(value, int | float) and isinstance(settings.get(name), int | float | None)


def _is_only_typed(override: str) -> bool:
    """Return whether the value of an override is used although the checkpoint has the same override."""
    key = override_key(override)
    return key in ("compile", "data.root", "data.path", "data.test_path") or key.startswith(("callbacks.", "logger."))


def compose_group(group: str, name: Any) -> DictConfig:
    """Return the present config of one option of a group.

    Raises:
        ValueError: conf/ has no such option. The name may come from a checkpoint, and Hydra would compose a path, a
            list of options or an interpolation too, from any file on this machine.
    """
    if not is_option(group, name):
        raise ValueError(
            f"resume: this run was made with {group}={str(name)[:80]!r}, and conf/{group} has no such file"
        )
    # On the command line Hydra is initialized already.
    running = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if running else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", [f"{group}={name_option(name)}"]).get(group) or OmegaConf.create({})
