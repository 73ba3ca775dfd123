"""Lightning's CSV files."""

import os
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from loggers.guarded import Guarded


class CSV(Guarded, CSVLogger):  # type: ignore[misc]  # Lightning's own classes differ in this
    """Writes ``csv/version_0/metrics.csv`` in the run directory, and ``version_1`` when the run is resumed.

    Raises:
        ValueError: a directory was named that has files in it, which Lightning would remove.
    """

    title = "the files of CSVLogger"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if os.path.isdir(self.log_dir) and os.listdir(self.log_dir):
            raise ValueError(f"logger=csv: {os.path.relpath(self.log_dir)} has files in it, which would be removed")
