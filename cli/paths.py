"""Take a path on the command line as it is typed: in Hydra's grammar its name may need quotes."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException

from runs.format import printable
from runs.overrides import asks_for_sweep, quote_value

DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir", "output")  # that a command makes: none of them has several values
PATHS = (*DIRECTORIES, "resume", "sweep_resume", "run", "images", "csv", "hydra.sweep.subdir", "callbacks.judge.run")
# Of data sets, those of the user's included, and of models.
PATH_NAMES = re.compile(r"data\.(\w+_)?(path|root)|model\.(\w+\.)*(weights|teacher)")


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Return arguments of a command with the values of paths quoted for Hydra, where it would read something else.

    What is quoted already stays, and so do null, interpolations, lists of images and, with ``-m``, several paths.

    Raises:
        ValueError: Hydra would evaluate the name of a file or a directory that exists.
    """
    is_sweep = asks_for_sweep(arguments)
    quoted = []
    for argument in arguments:
        match = re.fullmatch(r"(\+{0,2}([\w.]+)=)(.+)", argument, re.DOTALL)
        if match and (match[2] in PATHS or PATH_NAMES.fullmatch(match[2])):
            argument = match[1] + _quote(match[2], match[3], is_sweep)
        quoted.append(argument)
    return quoted


def _quote(key: str, value: str, is_sweep: bool) -> str:
    if re.match(r"~\w*/", value):  # a shell leaves it in NAME=~/file
        value = os.path.expanduser(value)
    _check_name(key, value)
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return _quote_parts(key, value, is_sweep)
    parts = getattr(parsed, "list", parsed)  # of several values
    for part in parts if isinstance(parts, list) else [parts]:
        _check_name(key, str(getattr(part, "text", part)))
    # What only becomes an interpolation without its backslashes is the name of a directory.
    exists = os.path.lexists(value) or ("${" not in value and "${" in str(parsed))
    if parsed is None or (isinstance(parsed, str) and (parsed == value or value[0] in "'\"" or not exists)):
        return value
    has_values = isinstance(parsed, Sweep) or (isinstance(parsed, list) and key == "images")
    return value if has_values and not exists and key not in DIRECTORIES else quote_value(value)


def _quote_parts(key: str, value: str, is_sweep: bool) -> str:
    """Quote a value that Hydra cannot read: one path, or each of several."""
    is_list = key == "images" and bool(re.fullmatch(r"\[.+\]", value, re.DOTALL))
    parts = (value[1:-1] if is_list else value).split(",")
    several = is_list or (is_sweep and len(parts) > 1 and key not in DIRECTORIES)
    if not several or os.path.lexists(value):
        return quote_value(value)
    texts = ",".join(_quote(key, part, is_sweep=False) for part in parts)
    return f"[{texts}]" if is_list else texts


def _check_name(key: str, value: str) -> None:
    """Raise ValueError for a path with control characters, or one that exists and is an interpolation to Hydra.

    A line break would print a line of its own. The config of a run would keep an interpolation and evaluate it again
    whenever it is used, also if it was escaped here. The names of single files to predict are only printed, escaped.
    """
    if key not in ("images", "csv") and value != printable(value, keep="\t"):
        raise ValueError(f"{key}: {value} cannot be used: the name has control characters; rename it")
    for path in (Path(value), *Path(value).parents):
        if "${" in path.name and os.path.lexists(path):
            raise ValueError(f"{key}: {path} cannot be used: Hydra would evaluate the name; rename it")
