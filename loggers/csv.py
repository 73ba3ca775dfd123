"""Lightning's CSV files."""

from lightning.pytorch.loggers import CSVLogger

from loggers.guarded import Guarded


class CSV(Guarded, CSVLogger):  # type: ignore[misc]  # Lightning's own classes differ in this
    """Writes ``csv/version_0/metrics.csv`` in the run directory, and ``version_1`` when the run is resumed."""

    title = "the files of CSVLogger"
