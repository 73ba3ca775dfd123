"""Your own images: one folder for each class, read by worker processes as they are needed."""

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

from datamodules.image_files import IMG_EXTENSIONS, load_image
from datamodules.images import ImageDataModule
from datamodules.in_memory import Batch, BatchLoader, check_fractions
from datamodules.names import check_names, printable

log = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Images in ``root/train/CLASS``, ``root/val/CLASS`` and ``root/test/CLASS``, or all in ``root/CLASS``.

    What is not there as a folder is held out: a hash of a file's name within its class decides, so that no file moves
    to another split when others are added, removed or renamed. A file that is no picture is named and left out.

    Args:
        root: the folder.
        image: ``(C, H, W)`` that every image is brought to: scaled to fit, with black around.
        num_workers: processes that read images.
        val_size, test_size: shares that are held out, below 1; a split has about so many.
        fitted_state: what :meth:`fitted_config` gave before: the names of the classes, and of each split a digest of its files.
            Without digests the splits are those of a fixed permutation, as runs had them before there were digests.
            Null asks the folder.
        **images: see :class:`ImageDataModule`.

    Raises:
        FileNotFoundError, ValueError: there are no such folders, too few images, or other classes.
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
        self._changed: set[str] = set()  # the splits whose files are others than when the run began
        self._loaders: list[ImageFileLoader] = []  # whose workers are at work

    def _classes(self) -> list[str]:
        training = self.root / "train" if (self.root / "train").is_dir() else self.root
        if not training.is_dir():
            raise FileNotFoundError(f"data.root={self.root}: there is no such folder")
        names = sorted(folder.name for folder in training.iterdir() if any(_images_in(folder)))
        if len(names) < 2:
            raise FileNotFoundError(
                f"data.root={self.root} holds no folders of images, one for each of two or more classes"
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
        """The indices for test, validation and training, by the names of files within their classes."""
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
        """The same for a run of the time when the place in the sorted list of files decided."""
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
        """Raises ValueError also where a run would learn from what it held out, or choose by it."""
        if changed := {"train", "val"} & self._changed:
            raise ValueError(
                f"resume: images in {self.root} ({', '.join(sorted(changed))}) were added, removed, renamed or "
                "overwritten since the run began: put them back as they were, or train a new run"
            )
        super().load_state_dict(state)

    def _eval_dataloader(self, split: str, replicate: bool = False) -> BatchLoader | list[Batch]:
        if split in self._changed:
            self._changed.remove(split)  # said once
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
    """Two numbers, uniform in [0, 1), that belong to a name."""
    digest = hashlib.blake2b(os.fsencode(name.as_posix()), digest_size=16).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:12], "big") / 2**48


def _below(numbers: Tensor, share: float) -> Tensor:
    """Which numbers are below a share, bool ``(N,)``; the least one where chance would leave a split empty."""
    below = numbers < share
    return below if below.any() or round(share * len(numbers)) < 1 else numbers == numbers.min()


def _digest(files: list[Path], root: Path) -> str:
    """Of the names and sizes of files, in any order."""
    lines = sorted(os.fsencode(file.relative_to(root).as_posix()) + b" %d\n" % _size(file) for file in files)
    return hashlib.md5(b"".join(lines)).hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link to nowhere
        return -1


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)


class ImageFileDataset(Dataset[Any]):
    """Files as uint8 images ``shape``, read a batch at a time."""

    def __init__(self, files: list[Path], labels: Tensor, shape: tuple[int, ...]) -> None:
        self.files, self.labels, self.shape = files, labels, shape

    def __getitems__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Indices ``(B,)``, images ``(B, C, H, W)`` and labels ``(B,)`` of the pictures, and which files are none.

        Arrays and not tensors: those a worker would send through /dev/shm, which is 64 MB in a container, and where a
        batch does not fit, the run waits for ever. Arrays go through a pipe.
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
    """Keeps a reader out of its run's process group, whose signals are the run's to answer; it ends with the run, even
    when that is killed."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before that
            os._exit(1)


class ImageFileLoader(BatchLoader):
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
        dataset: ImageFileDataset,
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
                worker_init_fn=functools.partial(_init_worker, parent=os.getpid()),
                collate_fn=_keep_batch,
                generator=torch.Generator(),  # torch draws a number for its workers; the run's are not for that
            )
        for *batch, broken in self._reader:
            self._warn_skipped(self.files.files[index] for index in broken)
            index, pictures, labels = (torch.from_numpy(array).to(self.device) for array in batch)
            yield index, pictures, labels

    def close(self) -> None:
        """Ends the workers; left to Python's collector they take five seconds."""
        self._reader = None

    def _warn_skipped(self, files: Iterator[Path]) -> None:
        for file in files:
            if file not in self._skipped:
                self._skipped.add(file)
                log.warning("skipped: %s is no picture (%d so far)", printable(str(file)), len(self._skipped))
