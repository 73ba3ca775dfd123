"""TensorBoard's event files."""

import contextlib
import functools
import io
import itertools
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from runs.files import is_within

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
        self._broken = False

    @functools.cached_property
    def log_dir(self) -> str:
        note = Path(self.save_dir) / "dashboard.txt"
        folder = note.read_text().strip() if note.is_file() else ""
        # A note in somebody's run may name any directory of this machine: only those for event files are taken.
        if not folder or not is_within(Path(folder), Path("outputs"), Path(self.save_dir)):
            note.parent.mkdir(parents=True, exist_ok=True)
            folder = str(self._new_folder())
            note.write_text(f"{folder}\n")
        return folder

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
        """A row of the tab HPARAMS."""

        def write() -> None:
            for part in hparams(settings, metrics):
                self.experiment._get_file_writer().add_summary(part)

        self._guard(write)

    def save(self) -> None:
        self._guard(lambda: self.experiment.flush())  # and no hparams.yaml: config.yaml holds more

    def finalize(self, status: str) -> None:
        self._guard(lambda: super(TensorBoard, self).finalize(status))

    def _guard(self, write: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            write()
        except (OSError, ValueError) as error:
            cause = error.__cause__ or error  # Lightning says ValueError to everything
            if not isinstance(cause, OSError):
                raise
            self._broken = True
            log.warning("no more event files for TensorBoard: %s; the training goes on", cause)
