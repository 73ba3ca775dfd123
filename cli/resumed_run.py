"""What a resumed run is made of: its options precede the overrides that are typed."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cli import CONF
from cli.help import GROUPS
from runs.checkpoint import find_checkpoint, load_checkpoint
from runs.files import read_yaml
from runs.migrate import upgrade_checkpoint
from runs.overrides import override_key, override_values


def stored_choices(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options that the run of ``resume=`` was made with, and the arguments.

    The options precede the overrides, so that those may name the settings that the run has, and no others. An override
    of a setting that was added to the run with a plus gets one. Both lists are what they would be without ``resume=``
    where its run cannot be read: reading it reports that.

    Args:
        arguments: of the command line.
    """
    resume = next((text for text in reversed(arguments) if text.startswith("resume=")), "")
    if not resume or {"-m", "--multirun"} & set(arguments):
        return [], list(arguments)
    try:
        folder, file = find_checkpoint(str(OverridesParser.create().parse_override(resume).value()))
        config = read_yaml(folder / "config.yaml") or load_checkpoint(file)["config"]
    except (HydraException, ValueError, OSError):
        return [], list(arguments)
    upgrade_checkpoint({"config": config})
    choices = config.get("choices")
    choices = choices if isinstance(choices, dict) else {}
    overrides = choices.get("overrides")
    before = [text for text in overrides if isinstance(text, str)] if isinstance(overrides, list) else []
    typed = {override_key(text) for text in arguments}
    chosen = {group: choices.get(group) for group in GROUPS} | {"metrics": override_values(before).get("metrics")}
    # The run may come from anyone: only options that conf/ has are taken.
    options = [f"{group}={name}" for group, name in chosen.items() if group not in typed and is_option(group, name)]
    signs = {text.partition("=")[0].lstrip("+"): "+" for text in before if text.startswith("+")}
    return options, [signs.get(text.partition("=")[0], "") + text for text in arguments]


def is_option(group: str, name: Any) -> bool:
    """Return whether conf/ has this option of a group."""
    return name in [file.stem for file in (CONF / group).glob("*.yaml")]
