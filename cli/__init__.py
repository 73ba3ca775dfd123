"""The command line: from overrides to a config and a run directory, from an error to one line and an exit code."""

from pathlib import Path

PROJECT = Path(__file__).parent.parent
CONF = PROJECT / "conf"
