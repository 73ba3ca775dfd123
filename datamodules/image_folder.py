"""Your own images: one folder for each class, read by worker processes as they are needed."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.images import ImageDataModule
from datamodules.in_memory import BatchLoader, check_shares
from datamodules.pictures import IMG_EXTENSIONS, read_picture

log = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Images in ``root/train/CLASS``, ``root/val/CLASS`` and ``root/test/CLASS``, or all in ``root/CLASS``.

    What is not there as a folder is held out by a fixed permutation. A file that is no picture is named and left out.

    Args:
        root: the folder.
        image: ``(C, H, W)`` that every image is brought to: scaled to fit, with black around.
        class_names: null takes the names of the folders, sorted; a stored run has them.
        num_workers: processes that read images.
        val_size, test_size: shares that are held out, below 1.
        **images: see :class:`ImageDataModule`.

    Raises:
        FileNotFoundError, ValueError: there are no such folders, too few images, or other classes.
    """

    root: Path

    def __init__(
        self,
        root: str | os.PathLike[str],
        image: Sequence[int],
        class_names: Sequence[str] | None = None,
        num_workers: int = 2,
        val_size: float = 0.1,
        test_size: float = 0.2,
        **images: Any,
    ) -> None:
        self.name, self.shape, self.root = "image_folder", tuple(image), Path(root)
        check_shares(val_size=val_size, test_size=test_size)
        self.class_names = tuple(class_names) if class_names else tuple(self._classes())
        self.num_classes = len(self.class_names)
        super().__init__(root=self.root, **images)
        self.num_workers, self.val_share, self.test_share = num_workers, val_size, test_size
        self._loaders: list[FolderLoader] = []  # whose workers are at work

    def _classes(self) -> list[str]:
        training = self.root / "train" if (self.root / "train").is_dir() else self.root
        if not training.is_dir():
            raise FileNotFoundError(f"data.root={self.root}: there is no such folder")
        names = sorted(folder.name for folder in training.iterdir() if any(_images_in(folder)))
        if len(names) < 2:
            raise FileNotFoundError(
                f"data.root={self.root} holds no folders of images, one for each of two or more classes"
            )
        return names

    def _files(self, folder: Path) -> tuple[list[Path], Tensor]:
        found = [
            (path, label) for label, name in enumerate(self.class_names) for path in sorted(_images_in(folder / name))
        ]
        if not found:
            raise FileNotFoundError(f"{folder} holds no images of {', '.join(self.class_names)}")
        return [path for path, _ in found], torch.tensor([label for _, label in found])

    def found(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names)}

    def setup(self, stage: str | None = None) -> None:
        if self._parts:
            return
        generator = torch.Generator().manual_seed(0)  # not the run's: runs are compared on the same images
        if (self.root / "train").is_dir():
            files, labels = self._files(self.root / "train")
            rest = torch.arange(len(files))
        else:
            files, labels = self._files(self.root)
            rest = torch.randperm(len(files), generator=generator)
        if (self.root / "test").is_dir():
            test_files, test_labels = self._files(self.root / "test")
        else:
            held_out, rest = self._draw(rest, self.test_share, generator, validation=False)
            test_files, test_labels = [files[index] for index in held_out], labels[held_out]
        if (self.root / "val").is_dir():
            if self.folds:
                raise ValueError(f"data.folds={self.folds} and the folder {self.root / 'val'} exclude each other")
            val_files, val_labels = self._files(self.root / "val")
            self.val_indices, self.train_indices = torch.arange(len(val_files)) + len(files), rest
            files, labels = [*files, *val_files], torch.cat([labels, val_labels])
        else:
            self.val_indices, self.train_indices = self._draw(rest, self.val_share, generator)
        if not len(self.train_indices):
            raise ValueError(f"data.root={self.root} holds too few images to hold any out")
        self._parts = [(files, labels), (test_files, test_labels)]

    def _loader(self, part: int, indices: Tensor, batch_size: int | None, training: bool = False) -> BatchLoader:
        files, labels = self._parts[part]
        dataset, size = PictureFiles(files, labels, self.shape), batch_size or len(indices)
        loader = FolderLoader(dataset, indices, size, self.num_workers, self._device(), **self._serving(training))
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("exception")


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)


class PictureFiles(Dataset[Any]):
    """Files as uint8 images ``shape``, read a batch at a time."""

    def __init__(self, files: list[Path], labels: Tensor, shape: tuple[int, ...]) -> None:
        self.files, self.labels, self.shape = files, labels, shape

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Indices ``(B,)``, images ``(B, C, H, W)`` and labels ``(B,)`` of the pictures, and which files are none."""
        pictures = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        whole: list[int] = []
        broken: list[int] = []
        for index in indices:
            try:
                pictures[len(whole)], _ = read_picture(self.files[index], self.shape, False, False)
                whole.append(index)
            except ValueError:
                broken.append(index)
        return torch.tensor(whole, dtype=torch.int64), pictures[: len(whole)], self.labels[whole], broken


def as_it_is(batch: Any) -> Any:
    return batch


def _apart(_: int) -> None:
    """Keeps a reader out of its run's process group, whose signals are the run's to answer; it ends after the run."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)


class FolderLoader(BatchLoader):
    """A :class:`BatchLoader` over files: the order and the place are its own, the reading is a DataLoader's.

    A batch without a single picture is empty: all processes of a run have the same number of batches.

    Args:
        dataset: the files; indices: those to serve.
        num_workers: processes that read; they stay from epoch to epoch.
        device: that images go to, as bytes.
        **serving: see :class:`BatchLoader`.
    """

    def __init__(
        self,
        dataset: PictureFiles,
        indices: Tensor,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        **serving: Any,
    ) -> None:
        super().__init__(indices, dataset.labels, indices, batch_size, **serving)
        self.files, self.num_workers, self.device = dataset, num_workers, device
        self._skipped: set[Path] = set()
        self._batches: list[list[int]] = []  # of the epoch, where the reader looks for them
        self._reader: DataLoader[Any] | None = None

    def _fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self._batches[:] = [index.tolist() for index in batches]
        if self._reader is None:
            self._reader = DataLoader(
                self.files,
                batch_sampler=self._batches,
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                worker_init_fn=_apart,
                collate_fn=as_it_is,
                pin_memory=self.device.type == "cuda",  # the card then reads it while the computation goes on
                generator=torch.Generator(),  # torch draws a number for its workers; the run's are not for that
            )
        for *batch, broken in self._reader:
            self._say(self.files.files[index] for index in broken)
            yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def close(self) -> None:
        """Ends the workers; left to Python's collector they take five seconds."""
        self._reader = None

    def _say(self, files: Iterator[Path]) -> None:
        for file in files:
            if file not in self._skipped:
                self._skipped.add(file)
                log.warning("skipped: %s is no picture (%d so far)", file, len(self._skipped))
