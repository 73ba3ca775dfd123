"""Your own images: one directory for each class, read by worker processes when they are needed."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.batch_loader import Batch, BatchLoader
from datamodules.image_file_loader import ImageFileDataset, ImageFileLoader
from datamodules.image_files import load_image
from datamodules.image_layout import SPLITS, check_directory_names, find_classes, find_splits, images_in
from datamodules.images import ImageDataModule
from datamodules.in_memory import check_fractions
from datamodules.names import check_names
from runs.format import pluralize, printable
from runs.overrides import typed_setting

log = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Images in ``root/train/CLASS``, ``root/val/CLASS`` and ``root/test/CLASS``, or all in ``root/CLASS``.

    A split without a directory is held out of the others. A hash of each file's name within its class decides, so no
    file changes its split when others are added, removed or renamed. A file that is not an image is logged and skipped.
    The splits may have other usual names, such as ``Training`` and ``valid``; a line says what was taken for what.

    Args:
        root: the directory.
        image: ``(C, H, W)`` that every image is scaled to, keeping its proportions, with black around it.
        num_workers: processes that read images; 0 reads in this one.
        val_size: fraction of the training images to hold out, on average, below 1.
        test_size: fraction of all images to hold out, on average, below 1.
        fitted_state: the state that :meth:`fitted_config` returned when the run began: ``class_names``, the ``folders``
            of the splits, and in ``digests`` a digest of the files of each split. Without ``folders`` these are called
            as the splits. Without ``digests`` the splits come from a permutation of the sorted files, as in runs from
            before splits went by name. None reads the directory.
        **images: see :class:`ImageDataModule`.

    Raises:
        FileNotFoundError, ValueError: there are no such directories, it is not clear what they are, or there are too
            few images.
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
        if fitted_state is None:
            if not self.root.is_dir():
                raise FileNotFoundError(f"data.root={root}: there is no such directory")
            self._folders = find_splits(self.root)
            self.class_names = tuple(find_classes(self.root, self._folders))
        else:
            before = {split: split for split in SPLITS if (self.root / split).is_dir()}
            self._folders = dict(fitted_state.get("folders", before))
            self.class_names = tuple(fitted_state["class_names"])
            check_directory_names(self.class_names, self._folders.values())
        check_names(self.class_names, root)
        self.num_classes = len(self.class_names)
        super().__init__(root=self.root, **images)
        self.num_workers, self.val_fraction, self.test_fraction = num_workers, val_size, test_size
        self._is_new = fitted_state is None
        self._permuted = fitted_state is not None and "digests" not in fitted_state
        self._digests: dict[str, str] = dict(fitted_state.get("digests", {})) if fitted_state else {}
        self._changed: set[str] = set()  # the splits whose files have changed since the run began
        self._left_out: Counter[str] = Counter()  # pictures beside the images: hidden ones, or of other formats
        self._loaders: list[ImageFileLoader] = []  # those with worker processes

    def _files(self, folder: Path) -> tuple[list[Path], Tensor]:
        found = [
            (path, label)
            for label, name in enumerate(self.class_names)
            for path in sorted(images_in(folder / name, self._left_out))
        ]
        if not found:
            raise FileNotFoundError(f"{folder} holds no images of {', '.join(self.class_names)}")
        return [path for path, _ in found], torch.tensor([label for _, label in found])

    def fitted_config(self) -> dict[str, Any]:
        self.setup()
        by_name = {} if self._permuted else {"folders": self._folders, "digests": self._digests}
        return super().fitted_config() | {"fitted_state": {"class_names": list(self.class_names), **by_name}}

    def setup(self, stage: str | None = None) -> None:
        if self._parts:
            return
        has_train, has_val, has_test = (split in self._folders for split in SPLITS)
        base, val_folder, test_folder = (self.root / self._folders.get(split, "") for split in SPLITS)
        if has_val and self.folds:
            raise ValueError(f"data.folds={self.folds} and the directory {val_folder} exclude each other")
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
            test_files, test_labels = self._files(test_folder)
        else:
            test_files, test_labels = [files[index] for index in test], labels[test]
        if has_val:
            val_files, val_labels = self._files(val_folder)
            val = torch.arange(len(val_files)) + len(files)
            files, labels = [*files, *val_files], torch.cat([labels, val_labels])
        self.val_indices, self.train_indices = val, train
        self._parts = [(files, labels), (test_files, test_labels)]
        splits = {
            "train": [files[index] for index in train],
            "val": [files[index] for index in val],
            "test": test_files,
        }
        if self._is_new:
            for split in splits:
                self._check_readable(split)
            self._log_layout({split: len(files) for split, files in splits.items()})
        if not self._permuted:
            self._compare_digests(splits)

    def _check_readable(self, split: str) -> None:
        """Raise ValueError if no file of a split can be read. Usually one file is enough to know."""
        part = int(split == "test")
        files = self._parts[part][0]
        indices = self._indices(split).tolist()
        reason = ""
        for index in indices:
            try:
                load_image(files[index], self.shape, self.dark_background, self.center)
                return
            except ValueError as error:
                reason = reason or str(error)
        if len(indices):
            raise ValueError(f"none of the {pluralize(len(indices), f'{split} image')} can be read: {reason}")

    def _log_layout(self, sizes: dict[str, int]) -> None:
        """Say which directories were taken for which splits and classes, and what was left out."""
        base = self.root / self._folders.get("train", "")
        places = [(split, self.root / self._folders[split] if split in self._folders else base) for split in SPLITS]
        parts = [f"{split} {sizes[split]:,} from {place}" for split, place in places]
        names = self.class_names
        classes = f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
        unused = [one.name for one in self._unused_folders(base)]
        others = [f"{pluralize(number, f'{kind} file')}" for kind, number in sorted(self._left_out.items()) if number]
        left = f"; left out: {', '.join([*unused, *others])}" if unused or others else ""
        log.info(printable(f"images: {', '.join(parts)}; {len(names)} classes: {classes}{left}"))

    def _unused_folders(self, base: Path) -> list[Path]:
        """Return the directories beside the splits and the classes, sorted."""
        beside = [one for one in base.iterdir() if one.is_dir() and one.name not in self.class_names]
        if base != self.root:
            beside += [one for one in self.root.iterdir() if one.is_dir() and one.name not in self._folders.values()]
        return sorted(beside)

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
        if self._is_new:
            self._digests = digests
        self._changed = {split for split in splits if self._digests.get(split) != digests[split]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Also raise ValueError if the run could train on, or be selected by, images that it held out."""
        if changed := {"train", "val"} & self._changed:
            raise ValueError(
                f"resume: images in {self.root} ({', '.join(sorted(changed))}) were added, removed, renamed or "
                "overwritten since the run began: restore them, or start a new run"
            )
        self._check_known("test")
        super().load_state_dict(state)

    def _eval_dataloader(self, split: str, replicate: bool = False) -> BatchLoader | list[Batch]:
        if not self._is_new:  # else setup has checked it
            self._check_readable(split)
        self._check_known(split)
        if split in self._changed:
            self._changed.remove(split)  # warn only once
            log.warning(
                "the %s images in %s are not those of the run: some were added, removed, renamed or overwritten since",
                split,
                self.root,
            )
        return super()._eval_dataloader(split, replicate)

    def _check_known(self, split: str) -> None:
        """Raise ValueError for images that are not those of the run, in a directory that a checkpoint alone names.

        The checkpoint may come from anyone and name any directory of this machine, and pictures of a run show images.
        """
        if self.only_read and (self._permuted or split in self._changed):
            raise ValueError(
                f"the {split} images in {self.root} are not known to be those of the run: some were added, removed, "
                f"renamed or overwritten since; {typed_setting('data.root', str(self.root))} reads them all the same"
            )

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
