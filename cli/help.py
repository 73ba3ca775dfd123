"""Add the descriptions and comments in conf/ to what Hydra prints for ``--help`` and ``--cfg``."""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from cli import CONF, GROUPS, LISTS
from cli.job import resumed_choices

# Of experiments, in the order in which one learns. The header of a file names its shelf.
SHELVES = ("a line", "two classes", "digits", "clothes", "photographs", "without labels", "time", "others")
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w/@-]+):(?P<value>.*?)(?: # (?P<comment>.*))?$")

Comments = dict[str, tuple[list[str], str | None]]  # key -> the comment lines above it and the comment beside it


def list_options() -> str:
    """Return the options of every group, with the first line of each file's header. Experiments stand by shelf."""
    lines = []
    for group in GROUPS:
        lines.append(f"  {group}=")
        files = sorted((CONF / group).glob("*.yaml"))
        width = max((len(file.stem) for file in files), default=0)
        shelves: dict[str, list[str]] = {shelf: [] for shelf in SHELVES}
        for file in files:
            header = [line[2:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
            about = next((line for line in header if not line.startswith(("@package", "python "))), "")
            shelf = next((line[7:] for line in header if line.startswith("Shelf: ")), SHELVES[-1])
            shelves.setdefault(shelf, []).append(f"    {file.stem:<{width}} {about}")
        for shelf, options in shelves.items():
            if options and group == "experiment":
                lines.append(f"   {shelf}")
            lines += options
    return "\n".join(lines)


def default_settings() -> list[str]:
    """Return the settings of the default config, two names deep, such as ``optimizer.lr``, in the files' order."""
    config = CONF / "config.yaml"
    defaults = [
        entry for entry in yaml.safe_load(config.read_text(encoding="utf-8"))["defaults"] if isinstance(entry, dict)
    ]
    chosen = {group: option for entry in defaults for group, option in entry.items() if group in GROUPS and option}
    files = [(CONF / group / f"{option}.yaml", f"{group}.") for group, option in chosen.items()]
    bases = [(base, prefix) for file, prefix in files for base in with_bases(file)]
    settings = [prefix + path for base, prefix in bases for path, _ in _paths(base.read_text(encoding="utf-8")) if path]
    settings += [path for path, _ in _paths(config.read_text(encoding="utf-8"))]
    known = (name for name in dict.fromkeys(settings) if name.count(".") == 1 and "._" not in name)
    return [name for name in known if not name.startswith(("hydra.", "choices.")) and not name.endswith(".defaults")]


def with_bases(file: Path) -> Iterator[Path]:
    """Yield the yaml files in the defaults list of a file, the innermost first, and then the file itself."""
    for entry in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", []):
        name = entry.partition("@")[0] if isinstance(entry, str) else ""  # group: option is a choice, not a base
        if name and name != "_self_":
            base = CONF / name[1:] if name.startswith("/") else (file.parent / name).resolve()
            yield from with_bases(base.with_name(f"{base.name}.yaml"))
    yield file


def annotate_config(text: str, config_name: str, choices: dict[str, str | None]) -> str:
    """Return a printed config with the comments of the files that it was composed from.

    Args:
        text: the config as Hydra prints it.
        config_name: the primary config in ``conf/``.
        choices: option of each group.
    """
    comments = _comments(CONF / f"{config_name}.yaml", "")
    chosen = [(group, CONF / group / f"{choices.get(group)}.yaml") for group in GROUPS]
    for group in LISTS:
        if group not in choices:  # there are several
            chosen += [(group, file) for file in (CONF / group).glob("*.yaml")]
    for group, file in chosen:
        if file.is_file():
            is_global = file.read_text(encoding="utf-8").startswith("# @package _global_")
            own = _comments(file, "" if is_global else f"{group}.")
            # The comment of an experiment on a value takes precedence over that of the group's file.
            comments = {**own, **comments} if group not in ("experiment", "sweep", "debug") else {**comments, **own}
    lines = []
    for path, line in _paths(text):
        above, beside = comments.get(path, ([], None))
        indent = " " * (len(line) - len(line.lstrip()))
        lines += [f"{indent}{comment}" for comment in above]
        lines.append(f"{line} # {beside}" if beside else line)
    return "\n".join(lines) + "\n"


def _comments(file: Path, prefix: str) -> Comments:
    """Return the comments of a file and, where it has none, of its bases."""
    found: Comments = {}
    for base in with_bases(file):
        found |= _own_comments(base, prefix)
    return found


def _own_comments(file: Path, prefix: str) -> Comments:
    found: Comments = {}
    above: list[str] = []
    text = file.read_text(encoding="utf-8")
    for path, line in _paths(text):
        if not path or not (match := LINE.match(line)):
            above = [*above, line.strip()] if line.lstrip().startswith("# ") else []
            continue
        beside = match["comment"]
        if above or beside:
            found[prefix + path] = (above, beside)
        above = []
    # The header of a file describes the file, not its first key.
    first = next(iter(found), None)
    if first and found[first][0] and found[first][0][0] == text.splitlines()[0]:
        found[first] = ([], found[first][1])
    return found


def _paths(text: str) -> list[tuple[str, str]]:
    """Return each line of a yaml file with the path of its key, such as ``data.batch_size``, or an empty path."""
    result: list[tuple[str, str]] = []
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = LINE.match(line)
        if not match or line.lstrip().startswith(("#", "-")):
            result.append(("", line))
            continue
        indent = len(match["indent"])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        parents.append((indent, match["key"]))
        result.append((".".join(key for _, key in parents), line))
    return result


def prints_config(config_name: str) -> bool:
    """Return whether the arguments ask for the config. The help of train.py lists the options instead."""
    names = {"--cfg", "-c"} | ({"--help", "-h"} if config_name != "config" else set())
    return any(argument.partition("=")[0] in names for argument in sys.argv)


def print_config(main: Callable[[], object], config_name: str) -> None:
    """Print what Hydra does for ``--cfg`` and ``--help``, with the comments of conf/."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main()
        except SystemExit as error:  # after --help, or for an unknown option
            if error.code:
                raise
    overrides = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        choices = hydra.compose(
            config_name, [*_searchpath(), *resumed_choices, *overrides], return_hydra_config=True
        ).hydra.runtime.choices
    print(annotate_config(printed.getvalue(), config_name, choices), end="")


def _searchpath() -> list[str]:
    """Return the override that has the effect of ``--config-dir``, if the arguments have that."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    folder = argparse.ArgumentParser.parse_known_args(parser)[0].config_dir
    if folder is None:
        return []
    return [f"hydra.searchpath=[{QuotedString(f'file://{os.path.abspath(folder)}', Quote.single).with_quotes()}]"]
