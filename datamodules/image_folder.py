"""Your own images: one directory for each class, read by worker processes when they are needed."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.batch_loader import Batch, BatchLoader
from datamodules.image_file_loader import ImageFileDataset, ImageFileLoader
from datamodules.image_files import IMG_EXTENSIONS
from datamodules.images import ImageDataModule
from datamodules.in_memory import check_fractions
from datamodules.names import check_names

log = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Images in ``root/train/CLASS``, ``root/val/CLASS`` and ``root/test/CLASS``, or all in ``root/CLASS``.

    A split without a directory is held out of the others. A hash of each file's name within its class decides, so no
    file changes its split when others are added, removed or renamed. A file that is not an image is logged and skipped.

    Args:
        root: the directory.
        image: ``(C, H, W)`` that every image is scaled to, keeping its proportions, with black around it.
        num_workers: processes that read images; 0 reads in this one.
        val_size: fraction of the training images to hold out, on average, below 1.
        test_size: fraction of all images to hold out, on average, below 1.
        fitted_state: the state that :meth:`fitted_config` returned when the run began: ``class_names``, and in
            ``digests`` a digest of the files of each split. Without ``digests`` the splits come from a permutation of
            the sorted files, as in runs from before splits went by name. None reads the directory.
        **images: see :class:`ImageDataModule`.

    Raises:
        FileNotFoundError, ValueError: there are no such directories, or too few images.
    """

    root: Path

    def __init__(
        self,
        root: str | os.PathLike[str],
        image: Sequence[int],
        num_workers: int = 2,
        val_size: float = 0.1,
        test_size: float = 0.2,
        fitted_state: Mapping[str, Any] | None = None,
        **images: Any,
    ) -> None:
        self.name, self.shape, self.root = "image_folder", tuple(image), Path(root)
        check_fractions(val_size=val_size, test_size=test_size)
        self.class_names = tuple(fitted_state["class_names"] if fitted_state else self._classes())
        check_names(self.class_names, root)
        self.num_classes = len(self.class_names)
        super().__init__(root=self.root, **images)
        self.num_workers, self.val_fraction, self.test_fraction = num_workers, val_size, test_size
        self._permuted = fitted_state is not None and "digests" not in fitted_state
        self._digests: dict[str, str] = dict(fitted_state.get("digests", {})) if fitted_state else {}
        self._changed: set[str] = set()  # the splits whose files have changed since the run began
        self._loaders: list[ImageFileLoader] = []  # those with worker processes

    def _classes(self) -> list[str]:
        training = self.root / "train" if (self.root / "train").is_dir() else self.root
        if not training.is_dir():
            raise FileNotFoundError(f"data.root={self.root}: there is no such directory")
        names = sorted(folder.name for folder in training.iterdir() if any(_images_in(folder)))
        if len(names) < 2:
            raise FileNotFoundError(
                f"data.root={self.root} holds no directories of images, one for each of two or more classes"
            )
        return names

    def _files(self, folder: Path) -> tuple[list[Path], Tensor]:
        found = [
            (path, label) for label, name in enumerate(self.class_names) for path in sorted(_images_in(folder / name))
        ]
        if not found:
            raise FileNotFoundError(f"{folder} holds no images of {', '.join(self.class_names)}")
        return [path for path, _ in found], torch.tensor([label for _, label in found])

    def fitted_config(self) -> dict[str, Any]:
        self.setup()
        digests = {} if self._permuted else {"digests": self._digests}
        return {"fitted_state": {"class_names": list(self.class_names), **digests}}

    def setup(self, stage: str | None = None) -> None:
        if self._parts:
            return
        has_train, has_val, has_test = ((self.root / name).is_dir() for name in ("train", "val", "test"))
        if has_val and self.folds:
            raise ValueError(f"data.folds={self.folds} and the directory {self.root / 'val'} exclude each other")
        base = self.root / "train" if has_train else self.root
        files, labels = self._files(base)
        if self._permuted:
            test, val, train = self._split_by_permutation(len(files), not has_train, not has_val, not has_test)
        else:
            folders = [base / name for name in self.class_names]
            names = [path.relative_to(folders[label]) for path, label in zip(files, labels.tolist(), strict=True)]
            test, val, train = self._split_by_name(names, not has_val, not has_test)
        if not len(train):
            raise ValueError(f"data.root={self.root} holds too few images to hold any out")
        if has_test:
            test_files, test_labels = self._files(self.root / "test")
        else:
            test_files, test_labels = [files[index] for index in test], labels[test]
        if has_val:
            val_files, val_labels = self._files(self.root / "val")
            val = torch.arange(len(val_files)) + len(files)
            files, labels = [*files, *val_files], torch.cat([labels, val_labels])
        self.val_indices, self.train_indices = val, train
        self._parts = [(files, labels), (test_files, test_labels)]
        if not self._permuted:
            splits = {"train": [files[index] for index in train], "val": [files[index] for index in val]}
            self._compare_digests(splits | {"test": test_files})

    def _split_by_name(self, names: list[Path], hold_out_val: bool, hold_out_test: bool) -> tuple[Tensor, ...]:
        """Return the indices for test, validation and training, from the names of the files in their classes."""
        numbers = torch.tensor([_hash(name) for name in names], dtype=torch.float64)  # (N, 2), uniform in [0, 1)
        rest, test, val = torch.arange(len(names)), torch.arange(0), torch.arange(0)
        if hold_out_test:
            held_out = _below(numbers[:, 0], self.test_fraction)
            order = numbers[held_out, 0].argsort(stable=True)  # the first ones are drawn: of several classes
            test, rest = rest[held_out][order], rest[~held_out]
        if hold_out_val:
            fraction, second = self.val_fraction, numbers[rest, 1]
            held_out = _below(second, fraction) if self.folds is None else (second * self.folds).long() == self.fold
            if self.folds and not held_out.any():
                raise ValueError(
                    f"data.folds={self.folds}: no image is in fold {self.fold}, there are only {len(rest)}"
                )
            val, rest = rest[held_out], rest[~held_out]
        return test, val, rest

    def _split_by_permutation(
        self, size: int, shuffled: bool, hold_out_val: bool, hold_out_test: bool
    ) -> tuple[Tensor, ...]:
        """Return the same for a run from before splits went by name: by position in the sorted list of files."""
        generator = torch.Generator().manual_seed(0)
        rest = torch.randperm(size, generator=generator) if shuffled else torch.arange(size)
        test, val = torch.arange(0), torch.arange(0)
        if hold_out_test:
            test, rest = self._random_split(rest, self.test_fraction, generator, validation=False)
        if hold_out_val:
            val, rest = self._random_split(rest, self.val_fraction, generator)
        return test, val, rest

    def _compare_digests(self, splits: dict[str, list[Path]]) -> None:
        digests = {split: _digest(files, self.root) for split, files in splits.items()}
        self._digests = self._digests or digests
        self._changed = {split for split in splits if self._digests[split] != digests[split]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Also raise ValueError if the run could train on, or be selected by, images that it held out."""
        if changed := {"train", "val"} & self._changed:
            raise ValueError(
                f"resume: images in {self.root} ({', '.join(sorted(changed))}) were added, removed, renamed or "
                "overwritten since the run began: restore them, or start a new run"
            )
        super().load_state_dict(state)

    def _eval_dataloader(self, split: str, replicate: bool = False) -> BatchLoader | list[Batch]:
        if split in self._changed:
            self._changed.remove(split)  # warn only once
            log.warning(
                "the %s images in %s are not those of the run: some were added, removed, renamed or overwritten since",
                split,
                self.root,
            )
        return super()._eval_dataloader(split, replicate)

    def _make_loader(self, part: int, indices: Tensor, batch_size: int | None, training: bool = False) -> BatchLoader:
        files, labels = self._parts[part]
        dataset, size = ImageFileDataset(files, labels, self.shape), batch_size or len(indices)
        loader = ImageFileLoader(
            dataset, indices, size, self.num_workers, self._device(), **self._loader_options(training)
        )
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("exception")


def _hash(name: Path) -> tuple[float, float]:
    """Return two numbers, uniform in [0, 1), that depend only on the name."""
    digest = hashlib.blake2b(os.fsencode(name.as_posix()), digest_size=16).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:12], "big") / 2**48


def _below(numbers: Tensor, fraction: float) -> Tensor:
    """Return which numbers are below a fraction, bool ``(N,)``: at least one where the fraction of N rounds to one."""
    below = numbers < fraction
    return below if below.any() or round(fraction * len(numbers)) < 1 else numbers == numbers.min()


def _digest(files: list[Path], root: Path) -> str:
    """Return a digest of the names and sizes of files, in any order."""
    lines = sorted(os.fsencode(file.relative_to(root).as_posix()) + b" %d\n" % _size(file) for file in files)
    return hashlib.md5(b"".join(lines)).hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a broken link
        return -1


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
