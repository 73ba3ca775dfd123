"""The command line: compose a config, choose a run directory, and turn an error into one line and an exit code."""

from pathlib import Path

PROJECT = Path(__file__).parent.parent
CONF = PROJECT / "conf"

# The groups in conf/ of which an option is chosen, and in LISTS those of which several may be.
GROUPS = (
    "experiment",
    "model",
    "data",
    "optimizer",
    "scheduler",
    "trainer",
    "metrics",
    "callbacks",
    "logger",
    "sweep",
    "debug",
)
LISTS = ("callbacks", "logger")
