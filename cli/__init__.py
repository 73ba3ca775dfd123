"""The command line: compose a config, choose a run directory, and turn an error into one line and an exit code."""

from pathlib import Path

PROJECT = Path(__file__).parent.parent
CONF = PROJECT / "conf"
