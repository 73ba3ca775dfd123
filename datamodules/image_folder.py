"""Your own images: one folder for each class, read by worker processes when they are needed."""

import ctypes
import functools
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batch_loader import Batch, BatchLoader
from datamodules.image_files import IMG_EXTENSIONS, load_image
from datamodules.images import ImageDataModule
from datamodules.in_memory import check_fractions
from datamodules.names import check_names
from runs.format import printable

log = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Images in ``root/train/CLASS``, ``root/val/CLASS`` and ``root/test/CLASS``, or all in ``root/CLASS``.

    A split without a folder is held out of the others. A hash of the file's name within its class decides, so no file
    changes its split when others are added, removed or renamed. A file that is not an image is logged and skipped.

    Args:
        root: the folder.
        image: ``(C, H, W)`` that every image is scaled to, keeping its proportions, with black around it.
        num_workers: processes that read images; 0 reads in this one.
        val_size: share of the training images held out, below 1, on average.
        test_size: share of all images held out, below 1, on average.
        fitted_state: the state that :meth:`fitted_config` returned when the run began: ``class_names``, and in
            ``digests`` a digest of the files of each split. Without ``digests`` the splits come from a permutation of
            the sorted files, as in runs that were made before splits went by name. None reads the folder.
        **images: see :class:`ImageDataModule`.

    Raises:
        FileNotFoundError, ValueError: there are no such folders, or too few images.
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
        check_names(names, training)
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
            raise ValueError(f"data.folds={self.folds} and the folder {self.root / 'val'} exclude each other")
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
            test, rest = rest[held_out], rest[~held_out]
        if hold_out_val:
            share, second = self.val_fraction, numbers[rest, 1]
            held_out = _below(second, share) if self.folds is None else (second * self.folds).long() == self.fold
            if self.folds and not held_out.any():
                raise ValueError(
                    f"data.folds={self.folds}: no image is in fold {self.fold}, there are only {len(rest)}"
                )
            val, rest = rest[held_out], rest[~held_out]
        return test, val, rest

    def _split_by_permutation(
        self, size: int, shuffled: bool, hold_out_val: bool, hold_out_test: bool
    ) -> tuple[Tensor, ...]:
        """Return the same for a run that was made when the position in the sorted list of files decided."""
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
        """Raise ValueError also if the run could train on, or be selected by, images that it held out."""
        if changed := {"train", "val"} & self._changed:
            raise ValueError(
                f"resume: images in {self.root} ({', '.join(sorted(changed))}) were added, removed, renamed or "
                "overwritten since the run began: restore them, or start a new run"
            )
        super().load_state_dict(state)

    def _eval_dataloader(self, split: str, replicate: bool = False) -> BatchLoader | list[Batch]:
        if split in self._changed:
            self._changed.remove(split)  # warn once
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
    """Return two numbers, uniform in [0, 1), that depend on a name only."""
    digest = hashlib.blake2b(os.fsencode(name.as_posix()), digest_size=16).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:12], "big") / 2**48


def _below(numbers: Tensor, fraction: float) -> Tensor:
    """Return which numbers are below a fraction, bool ``(N,)``; at least one if the fraction of them is half of one."""
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


class ImageFileDataset(Dataset[Any]):
    """Image files as uint8 ``shape``, read one batch at a time."""

    def __init__(self, files: list[Path], labels: Tensor, shape: tuple[int, ...]) -> None:
        self.files, self.labels, self.shape = files, labels, shape

    def __getitems__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Return indices ``(B,)``, images ``(B, C, H, W)``, labels ``(B,)``, and the indices of unreadable files.

        These are arrays because a worker sends tensors through /dev/shm, which has 64 MB in a Docker container: a
        larger batch hangs the run. Arrays go through a pipe.
        """
        pictures = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        whole: list[int] = []
        broken: list[int] = []
        for index in indices:
            try:
                pictures[len(whole)], _ = load_image(self.files[index], self.shape, False, False)
                whole.append(index)
            except ValueError:
                broken.append(index)
        labels = self.labels[whole]
        return np.array(whole, np.int64), pictures[: len(whole)].numpy(), labels.numpy(), broken


def _keep_batch(batch: Any) -> Any:
    return batch


def _init_worker(_: int, parent: int) -> None:
    """Leave the process group of the run, so that only the run answers Ctrl-C, and end when the run is killed."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # the run was killed before this call
            os._exit(1)


class ImageFileLoader(BatchLoader):
    """A :class:`BatchLoader` over image files, which a DataLoader reads.

    A batch of unreadable files is served empty, so that all processes of a run have the same number of batches.

    Args:
        dataset: the files.
        indices: those to serve, int64 ``(M,)``.
        batch_size: see :class:`BatchLoader`.
        num_workers: processes that read; they persist from epoch to epoch.
        device: where images go, as uint8.
        **options: see :class:`BatchLoader`.
    """

    def __init__(
        self,
        dataset: ImageFileDataset,
        indices: Tensor,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        **options: Any,
    ) -> None:
        super().__init__(indices, dataset.labels, indices, batch_size, **options)
        self.files, self.num_workers, self.device = dataset, num_workers, device
        self._skipped: set[Path] = set()
        self._batches: list[list[int]] = []  # those of this epoch; the reader holds the same list
        self._reader: DataLoader[Any] | None = None

    def _fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self._batches[:] = [index.tolist() for index in batches]
        if self._reader is None:
            self._reader = DataLoader(
                self.files,
                batch_sampler=self._batches,
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                worker_init_fn=functools.partial(_init_worker, parent=os.getpid()),
                collate_fn=_keep_batch,
                generator=torch.Generator(),  # torch draws a seed for its workers; not from the run's generator
            )
        for *batch, broken in self._reader:
            self._warn_skipped(self.files.files[index] for index in broken)
            index, pictures, labels = (torch.from_numpy(array).to(self.device) for array in batch)
            yield index, pictures, labels

    def close(self) -> None:
        """End the workers. Python's garbage collector would take five seconds."""
        self._reader = None

    def _warn_skipped(self, files: Iterator[Path]) -> None:
        for file in files:
            if file not in self._skipped:
                self._skipped.add(file)
                log.warning("skipped: %s is not an image (%d so far)", printable(str(file)), len(self._skipped))
