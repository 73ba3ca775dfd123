"""What a resumed run is made of: its options precede the overrides that are typed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import ListConfig

from cli import CONF, GROUPS, LISTS
from runs.checkpoint import find_checkpoint, load_checkpoint
from runs.files import check_folder, read_yaml
from runs.format import printable
from runs.migrate import upgrade_checkpoint
from runs.overrides import asks_for_sweep, override_key, override_values
from runs.rank import is_rank_zero
from runs.result import ENDED, read_result
from runs.table import summary_line

# Groups of which no option is stored: they make a command another one than a training of this run.
NOT_OF_A_RUN = ("sweep", "debug")


class RunEnded(SystemExit):
    """The run that ``resume=auto`` names has ended, and its result is printed."""

    def __init__(self, code: int, run_dir: Path) -> None:
        super().__init__(code)
        self.run_dir = run_dir


def resolve_auto(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which ``resume=auto`` names the run in ``hydra.run.dir``, or is left out where there is none.

    The same command thus starts a run, and continues it after an interruption. Where the run has ended, and the
    overrides are still those that it was made with, the process ends with its result.

    Raises:
        RunEnded: the run has ended.
        ValueError: no directory is given or it is refused, the command is a sweep, or the run's ``result.json`` is
            damaged.
    """
    if "resume=auto" not in arguments:
        return list(arguments)
    if asks_for_sweep(arguments):
        raise ValueError("resume=auto is for a run; sweep_resume= resumes a sweep")
    given = override_values(arguments).get("hydra.run.dir")
    if given is None:
        raise ValueError("resume=auto needs hydra.run.dir=…, the directory that the command has every time")
    run_dir = Path(str(OverridesParser.create().parse_override(f"hydra.run.dir={given}").value()))
    others = [text for text in arguments if text != "resume=auto"]
    if not (run_dir / "checkpoints" / "last.ckpt").is_file():
        return others
    check_folder(run_dir)
    result = read_result(run_dir)
    if result and result["status"] in ENDED and _is_same(others, result["overrides"]):
        try:
            line = f"the run in {run_dir} is {result['status']}: {summary_line(result)}"
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{run_dir / 'result.json'} is not the result of a run: {error!r}") from error
        if is_rank_zero():
            print(printable(line))
        raise RunEnded(_exit_code(result, read_yaml(run_dir / "config.yaml")), run_dir)
    return [*others, f"resume=./{run_dir}" if str(run_dir) in ("last", "auto") else f"resume={given}"]


def _exit_code(result: dict[str, Any], config: dict[str, Any]) -> int:
    """Return the exit code with which a run has ended, by the README's table. Earlier versions did not store it."""
    if (code := result.get("exit_code")) in (0, 3, 4):
        return int(code)
    return 3 if config.get("check") and not result.get("as_expected") else 0


def _is_same(arguments: Sequence[str], overrides: Sequence[str]) -> bool:
    """Return whether the overrides of a command are those of a run, but for settings of Hydra and the resume."""
    now, before = (
        {text for text in texts if not override_key(text).startswith("hydra.") and override_key(text) != "resume"}
        for texts in (arguments, overrides)
    )
    return now == before


def stored_choices(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options that the run of ``resume=`` was made with, and the arguments.

    The options precede the overrides, so that those may name the settings that the run has, and no others. An override
    of a setting that was added to the run with a plus gets one. Both lists are what they would be without ``resume=``
    where its run cannot be read: reading it reports that.

    Args:
        arguments: of the command line.
    """
    resume = next((text for text in reversed(arguments) if text.startswith("resume=")), "")
    if not resume or asks_for_sweep(arguments):
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
    chosen = {group: choices.get(group) for group in GROUPS if group not in NOT_OF_A_RUN}
    chosen["metrics"] = override_values(before).get("metrics")
    # The run may come from anyone: only options that conf/ has are taken.
    options = [
        f"{group}={name_option(name)}"
        for group, name in chosen.items()
        if group not in typed and is_option(group, name)
    ]
    # An experiment may be a sweep, of which the run was one job.
    if any(option.startswith("experiment=") for option in options) and "hydra.mode" not in typed:
        options.append("hydra.mode=RUN")
    signs = {text.partition("=")[0].lstrip("+"): "+" for text in before if text.startswith("+")}
    return options, [signs.get(text.partition("=")[0], "") + text for text in arguments]


def is_option(group: str, name: Any) -> bool:
    """Return whether conf/ has this option of a group, or each of several."""
    options = [file.stem for file in (CONF / group).glob("*.yaml")]
    if group in LISTS and isinstance(name, list | ListConfig):
        return bool(name) and all(one in options for one in name)
    return name in options


def option_names(value: str) -> list[str] | None:
    """Return the names in a list of options as it is typed, ``[csv,mlflow]``, or None for one option."""
    found = re.fullmatch(r"\[(.*)\]", value.strip())
    return [name.strip(" '\"") for name in found[1].split(",") if name.strip()] if found else None


def name_option(name: Any) -> str:
    """Return one or several options of a group as they are typed: ``csv``, or ``[csv,mlflow]``."""
    return f"[{','.join(map(str, name))}]" if isinstance(name, list | ListConfig) else str(name)
