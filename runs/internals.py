"""Private entries of Lightning that have no public counterpart; tests/test_internals.py reports one that is gone."""

from subprocess import Popen
from typing import Any


def disable_lightning_signal_handlers(trainer: Any) -> None:
    """Keep Lightning from installing signal handlers of its own.

    Its handler of SIGTERM ends the process with exit code 0, or waits forever for a rank that is elsewhere. Its handler
    for SLURM queues the job again, as a new run. Lightning installs them at the start of a stage, and no hook lies
    between that and the barrier of the stage, where others could be put in their place.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def take_child_processes(trainer: Any) -> list[Popen[bytes]]:
    """Return the ranks that Lightning has started on this machine, and keep it from watching them.

    When one of them fails, its watch kills this process too, before that has reported and recorded why.
    """
    started: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    taken = started.copy()
    started.clear()
    return taken
