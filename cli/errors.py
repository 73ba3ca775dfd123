"""Turn an exception into one line that says what went wrong and what would be right."""

import difflib
import os
import pkgutil
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from cli import CONF, GROUPS, PROJECT
from cli.help import default_settings
from cli.job import job_number
from runs.format import one_line, printable
from runs.interrupts import PEER_DIED
from runs.overrides import typed_setting
from runs.rank import global_rank, is_rank_zero
from sweeps.callback import SweepSummary

MAX_LINE = 4000  # characters of an error


def print_error(error: BaseException, show_traceback: bool) -> None:
    """Print one line about an error on stderr."""
    if show_traceback:
        print(printable("".join(traceback.format_exception(error)), keep="\n\t"), end="", file=sys.stderr)
    number = f"[{job}] " if (job := job_number()) is not None else ""
    number = f"[rank {global_rank()}] " if not is_rank_zero() else number
    line = format_error(error)
    line = line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} …"  # a stored string may be of any length
    print(f"{number}error: {printable(line)}", file=sys.stderr)


def format_error(error: BaseException) -> str:
    """Return what went wrong in one line, with the nearest name for one that does not exist."""
    while isinstance(error, (HydraException, OmegaConfBaseException)) and not isinstance(error, OverrideParseException):
        if _wrong_type(error) or not (inner := error.__cause__ or error.__context__):
            break
        error = inner
    explanations = (
        *(_interrupted, _missing_package, _missing_target, _unknown_option, _unknown_setting, _wrong_type),
        *(_malformed_override, _damaged_checkpoint, _known_error),
    )
    return next(filter(None, (explain(error) for explain in explanations)), None) or _message(error)


def _interrupted(error: BaseException) -> str | None:
    if not isinstance(error, KeyboardInterrupt):
        return None
    return "interrupted" if SweepSummary.has_begun() else "interrupted before there was anything to save"


def _missing_package(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"this needs the package {error.name}: pip install {error.name}"
    return None


def _missing_target(error: BaseException) -> str | None:
    """Return which part of a ``_target_`` does not exist, with the nearest name."""
    if not (match := re.match(r"Error loading '([\w.]+)\.(\w+)'", one_line(error))):
        return None
    module, name = match.groups()
    if module in sys.modules:
        own = [key for key, value in vars(sys.modules[module]).items() if getattr(value, "__module__", "") == module]
        return f"_target_={module}.{name}: {module} has no {name}{suggest_nearest(name, own)}"
    package, _, name = module.rpartition(".")
    if package in sys.modules and f"No module named '{module}'" in str(error):
        names = [file.name for file in pkgutil.iter_modules(sys.modules[package].__path__)]
        return f"_target_={match[1]}.{match[2]}: {package} has no {name}{suggest_nearest(name, names)}"
    if missing := re.search(r"No module named '([\w.]+)'", str(error)):
        return f"_target_={match[1]}.{match[2]}: there is no module {missing[1]}"
    return None


def _unknown_option(error: BaseException) -> str | None:
    if not (isinstance(error, MissingConfigException) and error.missing_cfg_file):
        return None
    group, _, name = error.missing_cfg_file.rpartition("/")
    # Of a list of options Hydra does not say which there are.
    options = error.options or [file.stem for file in sorted((CONF / group).glob("*.yaml"))]
    if not (group and options):
        return None
    if name.partition("_")[0] in LAUNCHERS:
        return f"{group}={name} needs a package: pip install hydra-{name.partition('_')[0]}-launcher"
    return f"there is no {group}={name}{suggest_nearest(name, options)}; there are {', '.join(options)}"


def _unknown_setting(error: BaseException) -> str | None:
    if not (isinstance(error, (ConfigAttributeError, ConfigKeyError)) and isinstance(error.parent_node, DictConfig)):
        return None
    parent, _, key = str(error.full_key).rpartition(".")
    keys = [str(name) for name in error.parent_node if str(name)[0] != "_" and name not in ("hydra", "choices")]
    alias, prefix = ALIASES.get(key, key), f"{parent}." if parent else ""
    close = suggest_nearest(key, keys, prefix) or suggest_nearest(alias, keys, prefix)
    close = close or _suggest_elsewhere(alias, str(error.full_key))
    more = ""
    if parent == "callbacks" and not close:
        is_option = (CONF / "callbacks" / f"{key}.yaml").is_file()
        more = f"; callbacks={key} adds it" if is_option else f"; +{error.full_key}._target_=… adds a callback"
    elif parent == "logger" and not close and (CONF / "logger" / f"{key}.yaml").is_file():
        more = f"; logger={key} adds it"
    elif "_target_" in error.parent_node and not close:
        more = f"; +{error.full_key}=… passes it anyway"
    return f"there is no {error.full_key}{close}; {parent or 'the config'} has {', '.join(keys) or 'no settings'}{more}"


def _wrong_type(error: BaseException) -> str | None:
    """Return which setting of Hydra's own has a value of another type. The error's cause does not name it."""
    if not (isinstance(error, ValidationError) and error.full_key):
        return None
    reason = str(error).partition("\n")[0]
    return reason if error.full_key in reason else f"{error.full_key}: {reason}"


def _malformed_override(error: BaseException) -> str | None:
    if not isinstance(error, OverrideParseException) and "override must be a string or a list" not in str(error):
        return None
    chosen = [word.partition("=") for word in sys.argv[1:]]
    no_names = [(group, value) for group, _, value in chosen if group in GROUPS and NO_NAME.fullmatch(value)]
    if no_names and not isinstance(error, OverrideParseException):
        group, value = no_names[0]
        options = [file.stem for file in sorted((CONF / group).glob("*.yaml"))]
        none = f" (did you mean {group}=none?)" if "none" in options else ""
        return f"there is no {group}={value}{none}; there are {', '.join(options)}"
    odd = [word for word in sys.argv[1:] if word.startswith("=")]
    override = getattr(error, "override", odd[0] if odd else "=")
    hint = _suggest_meaning(override) or _suggest_quotes(override)
    return f"{override!r} is not NAME=VALUE or GROUP=OPTION, which --help lists{hint}"


def _damaged_checkpoint(error: BaseException) -> str | None:
    """Return what a checkpoint lacks, where Lightning or torch fails at reading the state of its training."""
    if not isinstance(error, (LookupError, TypeError, AttributeError)):
        return None
    from runs.internals import RESTORING

    if not any(frame.name in RESTORING for frame in traceback.extract_tb(error.__traceback__)):
        return None
    return f"the checkpoint cannot be resumed: the state of its training is damaged ({type(error).__name__}: {error})"


def _known_error(error: BaseException) -> str | None:
    """Return the meaning of an error whose text is known, whatever its class."""
    text = one_line(error)
    if isinstance(error, FileExistsError) and error.filename and os.path.islink(error.filename):
        target = os.readlink(error.filename)
        return f"{error.filename} is a link to {target}, which is not there: remove it, or name another directory"
    if several := re.match("Ambiguous value for argument '(.*?)'|Sweep parameters '(.*?)' requires", text):
        typed = several[1] or several[2]
        key, _, value = typed.partition("=")
        both = f", logger=[{value}] takes them all in one run" if key == "logger" else ""
        return f"{typed} is more than one value: -m makes a run with each of them{both}"
    if missing := re.match(r"Missing mandatory value: ([\w.]+)", text):
        return f"{missing[1]} needs a value: {missing[1]}=… (--help describes the options that have such a setting)"
    if again := re.match(r"Multiple values for ([\w/]+)\. To override a value use 'override [^:]+: (.*)'", text):
        return f"{again[1]} has an option already; without the + {again[1]}={again[2]} takes its place"
    if foreign := re.match("Could not override '(.*?)'", text):
        return f"there is no {foreign[1]}; --help lists the settings"
    for part, meaning in KNOWN_ERRORS.items():
        # An interrupted download has Python's error number; a broken connection between ranks has none.
        download = meaning == PEER_DIED and "[Errno" in text
        if (part in text or part == type(error).__name__) and not download:
            return f"{meaning} ({text[:160]})"
    if early := re.search(r"(\w+)\.__init__\(\) missing \d required positional arguments?: 'optimizer'", text):
        return f"{early[1]} takes the optimizer, which is made after it: ++scheduler._partial_=true"
    if unknown := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        return f"{unknown[1]} takes no argument {unknown[2]}"
    return None


def _message(error: BaseException) -> str:
    text = one_line(error)
    if isinstance(error, InstantiationException):
        return text
    clear = (ValueError, OSError, RuntimeError, ArithmeticError, HydraException, OmegaConfBaseException)
    is_clear = isinstance(error, clear) or hasattr(error, "exit_code") or type(error).__module__.startswith("lightning")
    is_clear = is_clear and bool(str(error))  # a name alone says nothing
    name = type(error).__name__
    return f"{text if is_clear or text == name else f'{name}: {text}'}{_location(error, is_clear)}"


def is_of_launcher(error: BaseException) -> bool:
    """Return whether a job of submitit or Ray gave no result, because it was canceled or its process was killed."""
    return type(error).__module__.startswith(("submitit.", "ray."))


def _location(error: BaseException, is_clear: bool) -> str:
    """Return the last line of this project in the traceback, for an error that was not raised on purpose."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if _is_ours(Path(frame.filename))]
    if not inside:
        return ""
    last = inside[-1]
    if last is frames[-1]:
        known = ((last.line or "").startswith("raise") or isinstance(error, OSError)) and bool(str(error))
    else:  # somewhere in a library
        known = is_clear and type(error) is not RuntimeError
    place = Path(last.filename).relative_to(PROJECT)
    return "" if known else f" ({place}, line {last.lineno}; HYDRA_FULL_ERROR=1 shows the traceback)"


def _is_ours(file: Path) -> bool:
    """Return whether a file is in a package of the project. The commands at the top only pass errors on."""
    return PROJECT in file.parent.parents and "site-packages" not in file.parts


# Part of a library's message, or the name of its exception -> the meaning here.
KNOWN_ERRORS = {
    "onnection closed by peer": PEER_DIED,
    "onnection reset by peer": PEER_DIED,
    "DistNetworkError": PEER_DIED,
    "No supported gpu backend found": "there is no GPU here that torch can use; trainer.accelerator=auto needs none",
    "the accelerator is not available": "this machine has no such trainer.accelerator; auto finds one",
    "MemoryError": "out of memory; a smaller data.batch_size needs less",
    "OutOfMemoryError": "out of memory; a smaller data.batch_size needs less",
    "can't allocate memory": "out of memory; a smaller data.batch_size needs less",
    "Expected more than 1 value per channel": "batch norm cannot normalize one example; data.batch_size=2 is the least",
    "worker process managed by the executor": "a process that ran jobs was killed, perhaps because memory ran out; "
    "hydra.launcher.n_jobs=1 needs less",
    "WorkerCrashedError": "a process that ran jobs was killed, perhaps because memory ran out",
    "has not produced any output": "a job has ended without a result, perhaps because it was canceled; its output is "
    "in .submitit/ in the sweep directory, and jobs that were submitted with it may still run",
    "DataLoader worker": "a worker process has died, perhaps because memory ran out; try data.num_workers=0",
}
# What Hydra reads as a value, and not as the name of an option.
NO_NAME = re.compile(r"null|true|false|[-+]?[\d.]+(e[-+]?\d+)?|\{.*\}", re.IGNORECASE)
# Hydra's launchers that need a package of their own.
LAUNCHERS = ("joblib", "submitit", "ray")

# Other common names of settings.
ALIASES = {"learning_rate": "lr", "wd": "weight_decay", "num_epochs": "max_epochs", "gpus": "devices"}
ALIASES |= {"batch": "batch_size", "device": "accelerator"}


def suggest_nearest(name: str, options: Sequence[str], prefix: str = "") -> str:
    """Return `` (did you mean X?)``, or nothing when no option is close."""
    lower = {option.lower(): option for option in options}
    match = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean {prefix}{lower[match[0]]}?)" if match else ""


def _suggest_elsewhere(key: str, full_key: str) -> str:
    """Suggest a setting elsewhere in the default config whose name is ``key`` or contains it."""
    places: dict[str, str] = {}
    for setting in default_settings():
        places.setdefault(setting.rpartition(".")[2], setting)
    # Three letters are part of too many names.
    match = key if key in places else next((name for name in places if len(key) > 3 and key in name), "")
    return f" (did you mean {places[match]}?)" if match and places[match] != full_key else ""


def _suggest_quotes(word: str) -> str:
    """Suggest the quotes with which a shell and Hydra read a value as it was typed, or a list in brackets."""
    key, _, value = word.partition("=")
    if not (value and re.fullmatch(r"[+~]*[\w./@]+", key)):
        return ""
    as_list = re.fullmatch(r"[(\[{]?([\w.+-]+(, *[\w.+-]+)+)[)\]}]?", value)
    alternative = f"; {shlex.quote(f'{key}=[{as_list[1]}]')} is a list" if as_list else ""
    return f"; with quotes {typed_setting(key, value)} is a text{alternative}"


def _suggest_meaning(word: str) -> str:
    """Suggest an override for a word that is only the name of a group, an option or a file."""
    if any(argument.startswith("=") or argument.endswith("=") for argument in sys.argv):
        return "; there is no space on either side of ="
    if not sys.argv[0].endswith("train.py") and (path := Path(word)).exists():
        key = "run" if (path / "config.yaml").exists() or path.suffix == ".ckpt" else "images"
        return f" (did you mean {typed_setting('csv' if path.suffix == '.csv' else key, word)}?)"
    if word in GROUPS:
        return f" (did you mean {word}=…?)"
    group = next((group for group in GROUPS if (CONF / group / f"{word}.yaml").is_file()), None)
    return f" (did you mean {group}={word}?)" if group else ""
