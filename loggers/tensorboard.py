"""TensorBoard's event files."""

import contextlib
import functools
import io
import itertools
import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from runs.files import atomic_write

log = logging.getLogger(__name__)

# The tab CUSTOM SCALARS: training and validation in one chart.
CHARTS = {
    "training and validation": {
        name: ["Multiline", [f"^train/{name}$", f"^val/{name}$", f"^test/{name}$"]] for name in ("loss", "acc")
    }
}


class TensorBoard(TensorBoardLogger):
    """Writes event files. A full disk costs the rest of them, not the training.

    TensorBoard names a run by the path of its event files. They are in a folder whose name says what the run is, such
    as ``outputs/mnist_cnn/lr=0.1 seed=2``; the folder of the run notes it in ``dashboard.txt``.

    Args:
        save_dir: folder of the run.
        title: ``mnist_cnn/lr=0.1 seed=2``, for a run that has no note yet.
        purge_step: points from this gradient step on are forgotten: a resumed run writes them again.
    """

    def __init__(self, save_dir: str, title: str, purge_step: int | None = None) -> None:
        if purge_step is None and Path(save_dir, "dashboard.txt").exists():
            purge_step = 0  # a job of a sweep that was killed before its first checkpoint begins anew
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)
        self.title, self.goes_on = title, bool(purge_step)
        _ignore_failed_writer_threads()
        self._in_hyperparams = False
        self.write_error: OSError | None = None  # after which nothing more is written

    @functools.cached_property
    def log_dir(self) -> str:
        note = Path(self.save_dir) / "dashboard.txt"
        if not note.exists():
            with atomic_write(note) as temporary:
                temporary.write_text(f"{self._new_folder()}\n", encoding="utf-8")
        return note.read_text(encoding="utf-8").strip()

    def _new_folder(self) -> Path:
        for number in itertools.count(1):
            folder = Path("outputs", self.title + (f" ({number})" if number > 1 else ""))
            try:
                folder.mkdir(parents=True)
            except FileExistsError:  # another run of the same settings
                continue
            return folder
        raise AssertionError

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._in_hyperparams:
            self._guard(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Lightning calls this at the start; what else belongs to the start is written here too."""
        if model.trainer.state.fn == "fit" and not self.goes_on:
            example = torch.zeros(1, *model.trainer.datamodule.shape).to(next(model.parameters()))  # device and type
            self._guard(lambda: self.experiment.add_custom_scalars(CHARTS))
            if model.trainer.world_size > 1:  # the other processes do not take part in the trace
                return
            # It traces one example, in a way that torch would like to be rid of, and prints what goes wrong. A net that
            # cannot run says so in the training.
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                self._guard(lambda: self.experiment.add_graph(model.net, example))

    @rank_zero_only
    def log_text(self, name: str, text: str) -> None:
        self._guard(lambda: self.experiment.add_text(name, text))

    @rank_zero_only
    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture, uint8 ``(H, W, 3)``, for the tab IMAGES."""
        self._guard(lambda: self.experiment.add_image(name, picture, step, dataformats="HWC"))

    @rank_zero_only
    def log_pr_curve(self, name: str, targets: torch.Tensor, shares: torch.Tensor, step: int) -> None:
        """Precision over recall: whether each example is of the class ``(N,)``, and what the model says ``(N,)``."""
        self._guard(lambda: self.experiment.add_pr_curve(name, targets, shares, step))

    @rank_zero_only
    def log_embedding(
        self, name: str, features: torch.Tensor, labels: list[str], pictures: torch.Tensor | None, step: int
    ) -> None:
        """Points ``(N, features)`` of the projector, with what they are and as pictures ``(N, C, H, W)`` of 0 to 1."""
        self._guard(lambda: self.experiment.add_embedding(features, labels, pictures, step, name))

    @rank_zero_only
    def log_result(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """Add a row to the tab HPARAMS, where each metric is the last point of its curve."""
        self._in_hyperparams = True  # Lightning would add a point to each curve here
        self._guard(lambda: self.log_hyperparams(settings, metrics))
        self._in_hyperparams = False

    def save(self) -> None:
        self._guard(lambda: self.experiment.flush())  # and no hparams.yaml: config.yaml holds more

    def finalize(self, status: str) -> None:
        self._guard(lambda: super(TensorBoard, self).finalize(status))

    def _guard(self, write: Callable[[], Any]) -> None:
        if self.write_error:
            return
        try:
            write()
        except (OSError, ValueError) as error:
            cause = error.__cause__ or error  # Lightning says ValueError to everything
            if not isinstance(cause, OSError):
                raise
            self.write_error = cause
            log.warning("no more event files for TensorBoard: %s; the training goes on", cause)


@functools.cache
def _ignore_failed_writer_threads() -> None:
    """Print no traceback for a thread of TensorBoard's that could not write.

    The thread keeps its error, and raises it in the next call of the writer, where ``TensorBoard`` reports it.
    """
    print_traceback = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and issubclass(args.exc_type, OSError)):
            print_traceback(args)

    threading.excepthook = excepthook
