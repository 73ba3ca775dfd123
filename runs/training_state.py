"""Check the state of a training in a checkpoint, which may come from anyone, before anything is made of it."""

import os
import re
from pathlib import Path
from typing import Any

from runs.files import is_within
from runs.safety import walk

NUMBERS: dict[type, Any] = {str: float}  # any number of them, by name
# What the callbacks of this project store.
CALLBACKS: dict[str, dict[str, Any]] = {
    "MetricsHistory": {
        "rows": [NUMBERS],
        "curves": {str: [[float]]},
        "losses": NUMBERS,
        "batches": float,
        "elapsed": float,
        "validation": NUMBERS,
        "sums": NUMBERS,
        "counts": NUMBERS,
        "logged": NUMBERS,
        "monitor": [str],
        "curve": [[float]],  # of earlier versions, as the next
        "loss": float,
    },
    "Checkpoints": {"best": float, "by": [str]},
    "Plots": {"weight_history": {int: object}, "stride": int, "samples": {int: object}, "sample_stride": int},
}
PATHS_OF_MODEL_CHECKPOINT = ("best_model_path", "last_model_path", "kth_best_model_path")
MAY_BE_NONE = ("monitor", "best", "by")
# In a path: a home or a URL, as fsspec reads them, or a way out of its directory.
ELSEWHERE = re.compile(r"^~|://|::|(^|/)\.\.(/|$)")


def check_training_state(checkpoint: dict[str, Any], file: Path) -> None:
    """Raise ValueError for a training state that neither Lightning nor this project wrote."""
    from runs.internals import fit_loop_state  # which imports torch

    version = checkpoint.get("pytorch-lightning_version")
    if not (isinstance(version, str) and re.match(r"[2-9]\.\d", version)):
        shown = repr(version)[:80]
        raise ValueError(f"{file} cannot be resumed: pytorch-lightning_version={shown} is no version since 2.0")
    for name, kind in (("callbacks", dict), ("loops", dict), ("optimizer_states", list), ("lr_schedulers", list)):
        state = checkpoint.get(name)
        parts = state.values() if isinstance(state, dict) else state
        if not (isinstance(state, kind) and all(isinstance(part, dict) for part in parts or ())):
            raise ValueError(f"{file} cannot be resumed: its {name} are not what Lightning writes")
    if not isinstance(checkpoint.get("global_step"), int):
        raise ValueError(f"{file} cannot be resumed: it does not hold the number of steps")
    if damaged := _damaged_key(checkpoint["loops"].get("fit_loop"), fit_loop_state(), "fit_loop"):
        raise ValueError(f"{file} cannot be resumed: {damaged} is not what Lightning writes")
    for callback, stored in checkpoint["callbacks"].items():
        forms = CALLBACKS.get(callback, {})
        for name, value in stored.items():
            if not (value is None and name in MAY_BE_NONE) and not _has_form(value, forms.get(name, object)):
                raise ValueError(f"{file} cannot be resumed: {name} of {callback} is not what that writes")
        # Lightning's ModelCheckpoint, where it is typed again, removes the stored path of an earlier checkpoint.
        words = [word for path, value in walk(stored) for word in (path[-1], value) if isinstance(word, str)]
        if not forms and (found := next(filter(ELSEWHERE.search, words), None)):
            raise ValueError(
                f"{file} cannot be resumed: the state of {callback} holds {found[:80]!r}, a path elsewhere"
            )
    if not _has_form(checkpoint.get("epoch_sums", {}), NUMBERS):
        raise ValueError(f"{file} cannot be resumed: its epoch_sums are no numbers")
    if not all(isinstance(state.get("last_epoch"), int) for state in checkpoint["lr_schedulers"]):
        raise ValueError(f"{file} cannot be resumed: its lr_schedulers hold no last_epoch")
    for state in checkpoint["optimizer_states"]:
        if not isinstance(state.get("state"), dict):
            raise ValueError(f"{file} cannot be resumed: its optimizer_states hold no state of torch's")
        groups = state.get("param_groups")
        # Loggers get the learning rates. That of TensorBoard makes directories named by the keys of a dict.
        if not _has_form(groups, [dict]) or any(_holds_dict([*group.values()]) for group in groups):
            raise ValueError(f"{file} cannot be resumed: its optimizer_states hold no param_groups of torch")


def check_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Raise ValueError for a state that has not the shape of its weight, before an optimizer loads it.

    The fused optimizers of torch read and write as many numbers as the weight has, and check no shape. Whether an
    optimizer is fused is part of the state. This is a hook for
    ``torch.optim.Optimizer.register_load_state_dict_pre_hook``.
    """
    for group, own in zip(state["param_groups"], optimizer.param_groups, strict=False):  # torch compares the lengths
        for number, weight in zip(group["params"], own["params"], strict=False) if group.get("fused") else ():
            for name, value in state["state"].get(number, {}).items():
                is_count = name == "step" and getattr(value, "shape", None) == ()
                if hasattr(value, "shape") and not is_count and value.shape != weight.shape:
                    raise ValueError(
                        f"resume: {name} of the optimizer in the checkpoint has not the shape of its weight"
                    )


def forget_files_elsewhere(checkpoint: dict[str, Any], file: Path) -> None:
    """Keep only checkpoints of the run, by their absolute paths, in the state of Lightning's ModelCheckpoint.

    It deletes the file or the directory that an earlier checkpoint is said to be, if that lies in the directory which
    the user has typed. fsspec, which deletes it, reads a path in its own way: it expands ``~``.
    """
    run_dir = file.parent.parent
    # Else the checkpoint lies among files of the user.
    is_of_run = file.parent.name == "checkpoints" and (run_dir / "config.yaml").is_file()
    for stored in (checkpoint.get("callbacks") or {}).values():
        if "best_model_path" in stored:
            found = {name: stored.get(name) for name in PATHS_OF_MODEL_CHECKPOINT}
            scores = stored.get("best_k_models")
            scores = scores if isinstance(scores, dict) else {}
            names = {name for name in (*found.values(), *scores) if isinstance(name, str) and name}
            real = {name: os.path.realpath(name) for name in names}
            if not (is_of_run and all(_is_checkpoint(Path(path), run_dir) for path in real.values())):
                real = {}
            stored |= {name: real.get(str(path), "") for name, path in found.items()}
            stored["best_k_models"] = {real[path]: score for path, score in scores.items() if path in real}


def _is_checkpoint(path: Path, run_dir: Path) -> bool:
    return path.suffix == ".ckpt" and is_within(path, run_dir) and not path.is_dir()


def _damaged_key(state: Any, fresh: dict[str, Any], key: str) -> str | None:
    """Return the first key of a loop's state that is missing or of another class than in that of a fresh training."""
    if not isinstance(state, dict):
        return key
    for name, value in fresh.items():
        inner = f"{key}.{name}"
        damaged = _damaged_key(state.get(name), value, inner) if isinstance(value, dict) else None
        if damaged or not isinstance(state.get(name), type(value)):
            return damaged or inner
    return None


def _has_form(value: Any, form: Any) -> bool:
    """Return whether a value is of a class, a list ``[form]``, or a dict ``{class of the keys: form}``."""
    if isinstance(form, dict):
        ((kind, part),) = form.items()
        return isinstance(value, dict) and all(isinstance(key, kind) and _has_form(value[key], part) for key in value)
    if isinstance(form, list):
        return isinstance(value, list | tuple) and all(_has_form(one, form[0]) for one in value)
    return isinstance(value, (int, float) if form is float else form)


def _holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list | tuple) and any(map(_holds_dict, value)))
