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
from datamodules.in_memory import BatchLoader
from datamodules.pictures import read_picture

log = logging.getLogger(__name__)

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


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

    def __init__(
        self,
        root: str | os.PathLike,
        image: Sequence[int],
        class_names: Sequence[str] | None = None,
        num_workers: int = 2,
        val_size: float = 0.1,
        test_size: float = 0.2,
        **images: Any,
    ) -> None:
        self.name, self.shape, self.root = "image_folder", tuple(image), Path(root)
        for name, share in (("val_size", val_size), ("test_size", test_size)):
            if not 0 <= share < 1:
                raise ValueError(f"data.{name}={share} is a share of the images: at least 0 and below 1")
        self.class_names = tuple(class_names) if class_names else tuple(self._classes())
        self.num_classes = len(self.class_names)
        super().__init__(root=self.root, **images)
        self.num_workers, self.val_share, self.test_share = num_workers, val_size, test_size

    def _classes(self) -> list[str]:
        training = self.root / "train" if (self.root / "train").is_dir() else self.root
        names = sorted(path.name for path in training.iterdir() if path.is_dir()) if training.is_dir() else []
        if len(names) < 2:
            raise FileNotFoundError(
                f"data.root={self.root} holds no folders of images, one for each of two or more classes"
            )
        return names

    def _files(self, folder: Path) -> tuple[list[Path], Tensor]:
        found = [
            (path, label)
            for label, name in enumerate(self.class_names)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in ENDINGS
        ]
        if not found:
            raise FileNotFoundError(f"{folder} holds no images of {', '.join(self.class_names)}")
        return [path for path, _ in found], torch.tensor([label for _, label in found])

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
            rest = rest[torch.randperm(len(rest), generator=generator)]
            size = round(self.test_share * len(rest))
            held_out, rest = rest[:size].sort().values, rest[size:].sort().values
            test_files, test_labels = [files[index] for index in held_out], labels[held_out]
        if (self.root / "val").is_dir():
            if self.folds:
                raise ValueError(f"data.folds={self.folds} and the folder {self.root / 'val'} exclude each other")
            val_files, val_labels = self._files(self.root / "val")
            self.val_indices, self.train_indices = torch.arange(len(val_files)) + len(files), rest
            files, labels = [*files, *val_files], torch.cat([labels, val_labels])
        else:
            rest = rest[torch.randperm(len(rest), generator=generator)]
            parts = self._hold_out(rest, round(self.val_share * len(rest)))
            self.val_indices, self.train_indices = (part.sort().values for part in parts)
        if not len(self.train_indices):
            raise ValueError(f"data.root={self.root} holds too few images to hold any out")
        self._parts = [(files, labels), (test_files, test_labels)]

    def _loader(self, part: int, indices: Tensor, batch_size: int | None, training: bool = False) -> BatchLoader:
        files, labels = self._parts[part]
        dataset = PictureFiles(files, labels, self.shape)
        return FolderLoader(dataset, indices, batch_size or len(indices), self.num_workers, **self._serving(training))


class PictureFiles(Dataset):
    """Files as uint8 images; None for one that is no picture."""

    def __init__(self, files: list[Path], labels: Tensor, shape: tuple[int, ...]) -> None:
        self.files, self.labels, self.shape = files, labels, shape

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        try:
            picture, _ = read_picture(self.files[index], self.shape, dark_background=False, centre=False)
        except ValueError:
            return None
        return picture, self.labels[index]


class FolderLoader(BatchLoader):
    """A :class:`BatchLoader` over files: the order and the place are its own, the reading is a DataLoader's."""

    def __init__(
        self, dataset: PictureFiles, indices: Tensor, batch_size: int, num_workers: int, **serving: Any
    ) -> None:
        super().__init__(indices, dataset.labels, indices, batch_size, **serving)
        self.files, self.num_workers, self._skipped = dataset, num_workers, set()

    def _fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        indices = [index.tolist() for index in batches]
        reader = DataLoader(
            self.files,
            batch_sampler=indices,
            num_workers=self.num_workers,
            collate_fn=list,
        )
        for index, examples in zip(indices, reader, strict=True):
            whole = [(i, *example) for i, example in zip(index, examples, strict=True) if example is not None]
            if len(whole) < len(examples):
                self._say(self.files.files[i] for i, example in zip(index, examples, strict=True) if example is None)
            if whole:
                index, pictures, labels = zip(*whole, strict=True)
                yield torch.tensor(index), torch.stack(pictures), torch.stack(labels)

    def _say(self, files: Iterator[Path]) -> None:
        for file in set(files) - self._skipped:
            self._skipped.add(file)
            log.warning("skipped: %s is no picture (%d so far)", file, len(self._skipped))
