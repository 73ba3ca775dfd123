"""What ``--help`` and ``--cfg`` say beyond names and values: the descriptions and comments that stand in conf/."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra

from cli import CONF

GROUPS = ("experiment", "model", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger", "sweep", "debug")
BASE = re.compile(r"^  - ([\w/]+)@_here_$", re.MULTILINE)  # in the defaults list of a file: what it builds on
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w/@-]+):(?P<value>.*?)(?: # (?P<comment>.*))?$")


def list_options() -> str:
    """What can be chosen, with the first line of each file's header."""
    lines = []
    for group in GROUPS:
        lines.append(f"  {group}=")
        for file in sorted((CONF / group).glob("*.yaml")):
            header = (line[2:] for line in file.read_text().splitlines() if line.startswith("# "))
            about = next((text for text in header if not text.startswith(("@package", "python "))), "")
            lines.append(f"    {file.stem:<18} {about}")
    return "\n".join(lines)


def annotate_config(text: str, choices: dict[str, str | None]) -> str:
    """A printed config with the comments of the files that it was made from.

    Args:
        text: as Hydra prints it.
        choices: of each group.
    """
    comments = _comments(CONF / "config.yaml", "")
    chosen = ((group, CONF / group / f"{choices.get(group)}.yaml") for group in GROUPS)
    for group, file in chosen:
        if file.is_file():
            whole = file.read_text().startswith("# @package _global_")
            own = _comments(file, "" if whole else f"{group}.")
            # What an experiment says of a value comes on top of what the part says of it.
            comments = {**own, **comments} if group not in ("experiment", "sweep", "debug") else {**comments, **own}
    lines = []
    for path, line in _paths(text):
        above, beside = comments.get(path, ([], None))
        indent = " " * (len(line) - len(line.lstrip()))
        lines += [f"{indent}{comment}" for comment in above]
        lines.append(f"{line} # {beside}" if beside else line)
    return "\n".join(lines) + "\n"


def _comments(file: Path, prefix: str) -> dict[str, tuple[list[str], str | None]]:
    """Of each key the comment lines above it and the comment beside it."""
    found: dict[str, tuple[list[str], str | None]] = {}
    for base in BASE.findall(file.read_text()):
        found |= _comments(file.parent / f"{base}.yaml", prefix)
    inherited = dict(found)
    above: list[str] = []
    for path, line in _paths(file.read_text()):
        if not path or not (match := LINE.match(line)):
            above = [*above, line.strip()] if line.lstrip().startswith("# ") else []
            continue
        beside = match["comment"]
        if above or beside:
            found[prefix + path] = (above, beside)
        above = []
    if prefix or "config" not in file.name:  # the header of a file is about all of it
        first = next((key for key in found if found[key] is not inherited.get(key)), None)
        if first and found[first][0] and found[first][0][0] == file.read_text().splitlines()[0]:
            found[first] = ([], found[first][1])
    return found


def _paths(text: str) -> list[tuple[str, str]]:
    """Each line of a yaml file with the path of its key: ``data.batch_size``; nothing where there is none."""
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


def print_config(main: Callable[[], object]) -> None:
    """What ``--cfg`` prints, with the comments of conf/."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main()
    overrides = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        choices = hydra.compose("config", overrides, return_hydra_config=True).hydra.runtime.choices
    print(annotate_config(printed.getvalue(), choices), end="")
