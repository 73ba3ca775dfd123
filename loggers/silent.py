"""The logger of the processes that write nothing."""

from typing import Any

from lightning.pytorch.loggers import Logger


class Silent(Logger):
    """Writes nothing. The ranks other than zero have it: some callbacks require that a Trainer has a logger."""

    name = version = None

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        pass

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        pass
