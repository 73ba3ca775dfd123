"""Read the examples that predict.py is asked about, batch by batch, so that any number of them fits in memory."""

import glob
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import ListConfig

from runs.format import check_positive_int, pluralize, printable
from runs.overrides import typed_setting

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

BATCH_SIZE = 64  # a larger batch is not faster: reading a file takes longer than its prediction
MAX_NOTES = 48  # images of which it is logged what was done to them


class Examples(NamedTuple):
    """A batch of examples: how each is called, the inputs as the data set stores them, and what is true of them."""

    names: list[str]
    inputs: "Tensor"
    targets: "Tensor | None"

    def head(self, size: int) -> "Examples":
        targets = None if self.targets is None else self.targets[:size]
        return Examples(self.names[:size], self.inputs[:size], targets)


class Source:
    """Examples in batches of ``BATCH_SIZE``. There is at least one."""

    total: int  # examples, with those that will turn out to be unreadable
    skipped: list[str]  # names of those that could not be read

    def __iter__(self) -> Iterator[Examples]:
        raise NotImplementedError


class ImageFiles(Source):
    """Image files, preprocessed as the data set of the run is."""

    def __init__(self, files: Sequence[Path], datamodule: Any) -> None:
        if not hasattr(datamodule, "load_image"):
            other = "try csv=" if len(datamodule.shape) == 1 else "split=test predicts its own test set"
            raise ValueError(
                f"this run was trained on inputs of shape {tuple(datamodule.shape)}, not on image files; {other}"
            )
        self.files, self.datamodule, self.total = files, datamodule, len(files)
        self.skipped = []

    def __iter__(self) -> Iterator[Examples]:
        import torch

        images = self._read()
        while batch := list(itertools.islice(images, BATCH_SIZE)):
            names, pixels = zip(*batch, strict=True)
            yield Examples(list(names), torch.stack(pixels), None)
        if len(self.skipped) == self.total:
            raise ValueError(f"none of the {self.total:,} files can be used")

    def _read(self) -> Iterator[tuple[str, "Tensor"]]:
        for number, file in enumerate(self.files):
            name = printable(str(file))
            try:
                image, notes = self.datamodule.load_image(file)
            except ValueError as error:
                log.warning("skipped: %s", error)
                self.skipped.append(name)
                continue
            if notes and number < MAX_NOTES:
                log.info("%s: %s", name, ", ".join(notes))
            yield name, image


class ImagePair(ImageFiles):
    """Two image files as one example, in the order of their names.

    Raises:
        ValueError: there are not two of them, or, when they are read, one is no image.
    """

    def __init__(self, files: Sequence[Path], datamodule: Any) -> None:
        super().__init__(files, datamodule)
        if len(files) != 2:
            raise ValueError(
                f"this run compares two images, and images= names {pluralize(len(files), 'file')}: "
                "images='[first.png,second.png]'"
            )
        self.total = 1

    def __iter__(self) -> Iterator[Examples]:
        import torch

        pair = [*self._read()]
        if self.skipped:
            raise ValueError(f"there are not two images to compare: {self.skipped[0]} is none")
        names, images = zip(*pair, strict=True)
        yield Examples([" and ".join(names)], torch.cat(images)[None], None)  # (1, 2 * C, H, W)


class Rows(Source):
    """The rows of a CSV file."""

    def __init__(self, path: Path, datamodule: Any) -> None:
        if len(datamodule.shape) != 1:
            other = "try images=" if hasattr(datamodule, "load_image") else "split=test predicts its own test set"
            raise ValueError(f"this run was trained on inputs of shape {tuple(datamodule.shape)}, not on rows; {other}")
        self.names, self.inputs = datamodule.read_rows(path)
        self.total, self.skipped = len(self.names), []

    def __iter__(self) -> Iterator[Examples]:
        for start in range(0, self.total, BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            yield Examples(self.names[part], self.inputs[part], None)


class Split(Source):
    """The first examples of the run's own test set."""

    def __init__(self, split: str, limit: int, datamodule: Any) -> None:
        if split != "test":
            raise ValueError(f"split={split} must be test")
        check_positive_int("limit", limit)
        datamodule.eval_batch_size = min(BATCH_SIZE, limit)
        datamodule.setup()
        self.loader = datamodule.test_dataloader()
        if not len(self.loader):
            raise ValueError("split=test: this run has no test set")
        self.loader.normalize = None  # serve the inputs as they are stored
        self.total, self.skipped = min(limit, len(self.loader.indices)), []

    def __iter__(self) -> Iterator[Examples]:
        seen = 0
        for inputs, targets in self.loader:  # reads no more image files than needed
            inputs, targets = inputs[: self.total - seen], targets[: self.total - seen]
            yield Examples([f"test[{number}]" for number in range(seen, seen + len(inputs))], inputs, targets)
            seen += len(inputs)
            if seen >= self.total:
                break


class Latents(Source):
    """Latent vectors of a generator, standard normal numbers. A larger number of them begins with the same ones."""

    def __init__(self, count: int, model: Any) -> None:
        check_positive_int("samples", count)
        self.total, self.skipped, self.size = count, [], getattr(model, "latent_dim", 0)

    def __iter__(self) -> Iterator[Examples]:
        import torch

        generator = torch.Generator().manual_seed(0)
        for start in range(0, self.total, BATCH_SIZE):
            stop = min(start + BATCH_SIZE, self.total)
            latents = torch.stack([torch.randn(self.size, generator=generator) for _ in range(start, stop)])
            yield Examples([f"sample[{number}]" for number in range(start, stop)], latents, None)


def find_files(pattern: Any) -> list[Path]:
    """Return the files that ``images=`` names: a file, a directory, a pattern, or a list of these.

    Raises:
        FileNotFoundError: there are none.
    """
    if isinstance(pattern, ListConfig):  # images='[a.png,b.png]'
        return [file for one in pattern for file in find_files(one)]
    path = Path(pattern := str(pattern))
    if path.is_file():  # a name with brackets is not a pattern then
        return [path]
    found = list(path.iterdir() if path.is_dir() else map(Path, glob.glob(pattern, recursive=True)))
    files = sorted(file for file in found if file.is_file())
    if files:
        return files
    if not path.is_dir():
        raise FileNotFoundError(f"images={pattern}: there is no such file")
    if not any(file.is_dir() for file in found):
        raise FileNotFoundError(f"images={pattern}: there is no file in this directory")
    deeper = typed_setting("images", f"{glob.escape(str(path))}/**/*")
    raise FileNotFoundError(
        f"images={pattern}: there are only directories in this one; {deeper} takes the files in them"
    )
