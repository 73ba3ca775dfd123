"""From an exception to one line that says what went wrong and what would be right."""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

import explain
from callbacks.sweep import SweepSummary
from folders import helps, in_sweep


def say(error: BaseException, whole_traceback: bool) -> None:
    """One line about an error, on stderr."""
    if whole_traceback:
        traceback.print_exception(error)
    number = f"[{HydraConfig.get().job.num}] " if in_sweep() else ""
    number = f"[process {os.environ.get('RANK') or os.environ.get('LOCAL_RANK')}] " if helps() else number
    print(f"{number}error: {one_line(error)}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """What went wrong in one line, with the nearest name for one that does not exist."""
    while isinstance(error, (HydraException, OmegaConfBaseException)) and not isinstance(error, OverrideParseException):
        if not (inner := error.__cause__ or error.__context__):
            break
        error = inner
    if isinstance(error, KeyboardInterrupt):
        return "interrupted" if SweepSummary.folder else "interrupted before there was anything to save"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"this needs the package {error.name}: pip install {error.name}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if name.partition("_")[0] in LAUNCHERS:
            return f"{group}={name} needs a package: pip install hydra-{name.partition('_')[0]}-launcher"
        return f"there is no {group}={name}{nearest(name, error.options)}; there are {', '.join(error.options)}"
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and isinstance(error.parent_node, DictConfig):
        parent, _, key = str(error.full_key).rpartition(".")
        keys = [str(name) for name in error.parent_node if str(name)[0] != "_" and name not in ("hydra", "chosen")]
        close = nearest(key, keys, f"{parent}." if parent else "") or _elsewhere(key, error.parent_node)
        return f"there is no {error.full_key}{close}; {parent or 'the config'} has {', '.join(keys)}"
    if isinstance(error, OverrideParseException) or "override must be a string or a list" in str(error):
        odd = [word for word in sys.argv[1:] if word.startswith("=") or word.endswith("=null")]
        override = getattr(error, "override", odd[0] if odd else "=")
        return f"{override!r} is no NAME=VALUE and no GROUP=OPTION, which --help lists{_meant(override)}"
    text = " ".join(str(error).split())
    if several := re.match("Ambiguous value for argument '(.*?)'|Sweep parameters '(.*?)' requires", text):
        return f"{several[1] or several[2]} is more than one value: -m makes a run with each of them"
    for part, meaning in MEANINGS.items():
        if part in text or part == type(error).__name__:
            return f"{meaning} ({text[:160]})"
    if unknown := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        return f"{unknown[1]} takes no argument {unknown[2]}"
    if isinstance(error, InstantiationException):
        return text
    known = (ValueError, OSError, RuntimeError, ArithmeticError, HydraException, OmegaConfBaseException)
    speaks = isinstance(error, known) or hasattr(error, "exit_code") or type(error).__module__.startswith("lightning")
    return text if text and speaks else f"{type(error).__name__}: {text}"


LOST = "another process of this run has ended; its own line says why"
# What others say, in the words of this project.
MEANINGS = {
    "onnection closed by peer": LOST,
    "onnection reset by peer": LOST,
    "No supported gpu backend found": "there is no GPU here that torch can use; accelerator=auto takes what there is",
    "the accelerator is not available": "this machine has no such trainer.accelerator; auto takes what there is",
    "MemoryError": "the memory is used up; a smaller data.batch_size needs less",
    "OutOfMemoryError": "the memory is used up; a smaller data.batch_size needs less",
    "can't allocate memory": "the memory is used up; a smaller data.batch_size needs less",
    "DataLoader worker": "a process that reads images has died, perhaps for want of memory; try data.num_workers=0",
}
# Hydra's launchers that are packages of their own.
LAUNCHERS = ("joblib", "submitit", "ray")


def nearest(name: str, options: Sequence[str], prefix: str = "") -> str:
    """`` (did you mean X?)``, or nothing when no option is close."""
    match = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {prefix}{match[0]}?)" if match else ""


def _elsewhere(key: str, node: DictConfig) -> str:
    """The same for a key that another part of the config has."""
    root: Any = node._get_root()
    for group, part in root.items_ex(resolve=False):
        if group not in ("hydra", "chosen") and isinstance(part, DictConfig) and key in part:
            return f" (did you mean {group}.{key}?)"
    return ""


def _meant(word: str) -> str:
    """The same for the name of a group or of an option alone."""
    if word in explain.GROUPS:
        return f" (did you mean {word}=…?)"
    group = next((group for group in explain.GROUPS if (explain.CONF / group / f"{word}.yaml").is_file()), None)
    return f" (did you mean {group}={word}?)" if group else ""
