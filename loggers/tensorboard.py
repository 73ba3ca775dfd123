"""Event files for TensorBoard."""

import contextlib
import functools
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from runs.files import (
    MADE_BY_US,
    RUN_FILES,
    atomic_write_text,
    is_reserved,
    is_within,
    make_unique_dir,
    unlink_other_names,
)
from runs.result import ENDED

log = logging.getLogger(__name__)

# The tab CUSTOM SCALARS: training and validation in one chart.
CHARTS = {
    "training and validation": {
        name: ["Multiline", [f"^train/{name}$", f"^val/{name}$", f"^test/{name}$"]] for name in ("loss", "acc")
    }
}


PROJECTOR_FILES = {"metadata.tsv", "sprite.png", "tensors.tsv"}  # in <step>/<name of the points>/
# A directory with one of these is that of a run or a sweep, or has the event files of a run.
IN_USE = (*MADE_BY_US, *RUN_FILES, ".lock", "run.txt")
# Of the event file with the row of the tab HPARAMS.
ROW_SUFFIX = ".hparams"


class TensorBoard(TensorBoardLogger):
    """Writes event files, to a directory whose name describes the run, such as ``outputs/mnist_cnn/lr=0.1 seed=2``.

    TensorBoard shows that name. The file ``dashboard.txt`` in the run directory holds the path, and ``run.txt`` there
    the way back. A run that is resumed with other settings gets their name. When the disk is full, no more events are
    written, and the training continues.

    Args:
        save_dir: run directory.
        title: name of the run, such as ``mnist_cnn/lr=0.1 seed=2``.
        purge_step: TensorBoard drops the points from this step on, because a resumed run writes them again.
    """

    def __init__(self, save_dir: str, title: str, purge_step: int | None = None) -> None:
        if purge_step is None and Path(save_dir, "dashboard.txt").exists():
            purge_step = 0  # a job of a sweep that was killed before its first checkpoint starts over
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)
        self.title, self.is_resumed = title, bool(purge_step)
        _ignore_failed_writer_threads()
        self._logged: set[str] = set()  # names of metrics
        self._trainer: Any = None  # from the start of the training
        self.write_error: OSError | None = None  # after which nothing more is written

    @functools.cached_property
    def log_dir(self) -> str:
        run_dir, file = Path(self.save_dir), Path(self.save_dir) / "dashboard.txt"
        recorded = file.read_text(encoding="utf-8", errors="replace").removesuffix("\n") if file.is_file() else ""
        recorded = recorded if recorded.isprintable() and len(recorded) < 1000 else ""
        # The run may come from anyone and name any directory here, or a URL, which would lie in it if it were a path.
        is_url = "://" in recorded
        title = self.title
        is_link = Path("outputs", title).resolve() != Path("outputs").resolve() / title  # outputs/last
        is_reserved_name = any(map(is_reserved, title.split("/")))
        if is_link or is_reserved_name or _is_in_other_run(Path("outputs", title), run_dir):
            flat = title.replace("/", " ")
            title = f"{flat} (run)" if flat == title or is_reserved(flat) else flat
        if not is_url and _has_events_of(run_dir, Path(recorded)):
            if re.fullmatch(rf"{re.escape(f'outputs/{title}')}( \(\d+\))?", Path(recorded).as_posix()):
                return recorded
            before = recorded
            if Path("outputs", title).is_relative_to(before):  # a directory cannot move into itself
                title = title.replace("/", " ")
            recorded = str(make_unique_dir(f"outputs/{title}", " ({})")[0])
            os.replace(before, recorded)  # a resumed run has other settings
        else:
            recorded = str(make_unique_dir(f"outputs/{title}", " ({})")[0])
        for path, text in ((Path(recorded, "run.txt"), _way_back(run_dir, Path(recorded))), (file, recorded)):
            atomic_write_text(path, f"{text}\n")
        return recorded

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self._trainer is not None and self._trainer.state.fn == "fit":
            step = self._trainer.global_step  # Lightning counts the batches of what a module logs
        else:
            metrics = {name: value for name, value in metrics.items() if name.count("/") < 2}
        self._logged |= set(metrics)
        self._guard(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Write the graph of the net and the layout of CUSTOM SCALARS. Lightning calls this at the start.

        The graph is that of the whole module where it says what its ``forward`` takes (``example_input_array``).
        """
        self._trainer = model.trainer
        if model.trainer.state.fn == "fit" and not self.is_resumed:
            part, example = model, model.example_input_array
            if example is None:
                part, example = getattr(model, "net", model), torch.zeros(1, *model.trainer.datamodule.shape)
            self._guard(lambda: self.experiment.add_custom_scalars(CHARTS))
            if model.trainer.world_size > 1:  # the other ranks do not take part in the trace
                return
            # add_graph traces one example with a deprecated function of torch, and prints errors. Errors of the net
            # itself are reported by the training.
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                inputs = example.to(next(model.parameters()))  # device and dtype
                self._guard(lambda: self.experiment.add_graph(part, inputs))

    @rank_zero_only
    def log_config(self, config: dict[str, Any], text: str) -> None:
        # Markdown shows indented lines as code.
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        self._guard(lambda: self.experiment.add_text("config", indented))

    @rank_zero_only
    def log_plot(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a plot, uint8 ``(H, W, 3)``, to the tab IMAGES."""
        self._guard(lambda: self.experiment.add_image(name, pixels, step, dataformats="HWC"))

    @rank_zero_only
    def log_pr_curve(self, name: str, targets: torch.Tensor, probs: torch.Tensor, step: int) -> None:
        """Add a precision-recall curve of one class.

        Args:
            name: name of the curve.
            targets: whether the true class of each example is this one, ``(N,)``.
            probs: predicted probability of the class, ``(N,)``.
            step: gradient step.
        """
        self._guard(lambda: self.experiment.add_pr_curve(name, targets, probs, step))

    @rank_zero_only
    def log_embedding(
        self, name: str, features: torch.Tensor, labels: list[str], images: torch.Tensor | None, step: int
    ) -> None:
        """Add points ``(N, features)`` to the projector, with their labels and images ``(N, C, H, W)`` in 0 to 1."""

        def write() -> None:
            for path in Path(self.log_dir).rglob("*"):
                if not path.name.startswith("events.out.tfevents."):  # torch writes into the others
                    unlink_other_names(path)
            self.experiment.add_embedding(features, labels, images, step, name)

        self._guard(write)

    @rank_zero_only
    def log_end(self, result: dict[str, Any], settings: dict[str, Any]) -> None:
        """Add the row of a run that has ended to the tab HPARAMS, where each metric is the last point of its curve."""
        if result["status"] in ENDED:
            self._guard(lambda: self._write_row(result, settings))

    def _write_row(self, result: dict[str, Any], settings: dict[str, Any]) -> None:
        # No list of metrics, as Lightning adds one: TensorBoard takes the list of any one run for all rows. Without one
        # each scalar is a column, and TensorBoard shows the first five until others are ticked. Classes get none.
        _, start, end = hparams(settings, {})
        # A file of its own: of several rows in a directory the first would be shown, and not that of a resumed run.
        for earlier in Path(self.log_dir).glob(f"*{ROW_SUFFIX}"):
            earlier.unlink()
        writer = SummaryWriter(self.log_dir, filename_suffix=ROW_SUFFIX)
        try:
            for name, value in result["metrics"].items():
                if value is not None and name not in self._logged and name.count("/") < 2:
                    writer.add_scalar(name if "/" in name else f"coefficients/{name}", value, result["steps"])
            file_writer: Any = writer.file_writer  # None once it is closed
            for row in (start, end):
                file_writer.add_summary(row)
        finally:
            writer.close()

    def save(self) -> None:
        self._guard(lambda: self.experiment.flush())  # without hparams.yaml: config.yaml holds more

    def finalize(self, status: str) -> None:
        self._guard(lambda: super(TensorBoard, self).finalize(status))

    def _guard(self, write: Callable[[], Any]) -> None:
        if self.write_error:
            return
        try:
            if "log_dir" in vars(self) and not _leads_back(Path(self.log_dir), Path(self.save_dir)):
                raise FileNotFoundError(f"{self.log_dir} was removed, or is another run's")
            write()
        except (OSError, ValueError) as error:
            cause = error.__cause__ or error  # Lightning turns every error into a ValueError
            if not isinstance(cause, OSError):
                raise
            self.write_error = cause
            log.warning("no more event files for TensorBoard: %s; the training continues", cause)


def _is_in_other_run(directory: Path, run_dir: Path) -> bool:
    """Return whether a directory would lie in that of another run or sweep, or of its event files.

    It could take the place of a file there. The title of a run that is resumed may come from anyone.
    """
    places = [place for place in directory.parents if Path("outputs") in place.parents]
    others = [place for place in places if not is_within(run_dir / "any", place)]
    return any(os.path.lexists(place / name) for place in others for name in IN_USE)


def _way_back(run_dir: Path, events_dir: Path) -> str:
    return os.path.relpath(run_dir.resolve(), events_dir.resolve())


def _has_events_of(run_dir: Path, directory: Path) -> bool:
    """Return whether a directory in ``outputs/`` has the event files of this run, and nothing of the user's.

    The projector of TensorBoard writes through links, into ``projector_config.pbtxt`` and a directory for each step.
    """
    if not is_within(directory, Path("outputs")) or not directory.is_dir():
        return False
    if not all(_is_event_file(path, path.relative_to(directory).parts) for path in directory.rglob("*")):
        return False
    return _leads_back(directory, run_dir)


def _leads_back(directory: Path, run_dir: Path) -> bool:
    """Return whether ``run.txt`` in a directory of event files names this run."""
    file = directory / "run.txt"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return text.removesuffix("\n") == _way_back(run_dir, directory)


def _is_event_file(path: Path, parts: Sequence[str]) -> bool:
    """Return whether a file or directory in a directory of event files is one that TensorBoard's writer makes."""
    if path.is_symlink():
        return False
    of_projector = parts[0].isdecimal()  # a directory for each step
    if path.is_dir():
        return of_projector and len(parts) <= 2
    if len(parts) == 1:
        return path.is_file() and (
            parts[0] in ("run.txt", "projector_config.pbtxt") or parts[0].startswith("events.out.tfevents.")
        )
    return of_projector and len(parts) == 3 and path.is_file() and parts[2] in PROJECTOR_FILES


@functools.cache
def _ignore_failed_writer_threads() -> None:
    """Suppress the traceback of a TensorBoard thread that could not write.

    The next call of the writer raises the same error, and :class:`TensorBoard` reports it.
    """
    print_traceback = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and issubclass(args.exc_type, OSError)):
            print_traceback(args)

    threading.excepthook = excepthook
