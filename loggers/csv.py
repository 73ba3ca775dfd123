"""Lightning's CSV files."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from loggers.guarded import Guarded
from runs.files import check_locks


class CSV(Guarded, CSVLogger):  # type: ignore[misc]  # Lightning's own classes differ in this
    """Writes ``csv/version_0/metrics.csv`` in the run directory, and ``version_1`` when the run is resumed.

    Raises:
        ValueError: a directory was named that has files in it, which Lightning would remove, or one in the run's
            directory that is a link to another place. A checkpoint from anyone may name it.
    """

    title = "the files of CSVLogger"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        log_dir, save_dir = Path(os.path.abspath(self.log_dir)), Path(os.path.abspath(self.save_dir))
        shown = os.path.relpath(log_dir)
        if log_dir.is_relative_to(save_dir) and not log_dir.resolve().is_relative_to(save_dir.resolve()):
            raise ValueError(f"logger=csv: {shown} is a link out of {os.path.relpath(save_dir)}")
        if log_dir.is_dir() and os.listdir(log_dir):
            raise ValueError(f"logger=csv: {shown} has files in it, which would be removed")

    def save(self) -> None:
        self._guard(lambda: check_locks(Path(os.path.abspath(self.log_dir), "metrics.csv")))
        super().save()
