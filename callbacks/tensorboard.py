"""TensorBoard's event files."""

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """Writes event files into the folder of the run itself. A full disk costs the rest of them, not the training.

    Args:
        save_dir: folder of the run.
        purge_step: points from this gradient step on are forgotten: a resumed run writes them again.
    """

    def __init__(self, save_dir: str, purge_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)
        self._broken = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._guard(super().log_metrics, metrics, step)

    def save(self) -> None:
        if not self._broken:
            self._guard(self.experiment.flush)  # and no hparams.yaml: config.yaml holds more

    def finalize(self, status: str) -> None:
        self._guard(super().finalize, status)

    def _guard(self, write: Callable[..., Any], *arguments: Any) -> None:
        if self._broken:
            return
        try:
            write(*arguments)
        except (OSError, ValueError) as error:
            cause = error.__cause__ or error  # Lightning says ValueError to everything
            if not isinstance(cause, OSError):
                raise
            self._broken = True
            log.warning("no more event files for TensorBoard: %s; the training goes on", cause)
