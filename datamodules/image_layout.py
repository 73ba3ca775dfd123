"""Which directories of a data set of images are its splits and its classes, and which files are its images."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from datamodules.image_files import IMG_EXTENSIONS

# Split -> names of its directory, in any case.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
# Pictures in formats that are not read. A directory of these is reported; one of text files is no class.
OTHER_PICTURES: tuple[str, ...] = (".arw", ".avif", ".cr2", ".dcm", ".dib", ".dng", ".exr", ".heic")
OTHER_PICTURES += (".heif", ".ico", ".j2k", ".jp2", ".jxl", ".nef", ".npy", ".pcx", ".pfm", ".psd", ".svg", ".tga")
# What macOS and network drives add to archives and directories: copies and thumbnails.
ADDED_BY_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin")


def find_splits(root: Path) -> dict[str, str]:
    """Return the directory of each split that has one: split -> name in ``root``. It is empty where root has classes.

    Raises:
        ValueError: it is ambiguous which directory is which split, or whether directories are splits or classes.
    """
    folders = subfolders(root)
    named = {split: [one for one in folders if one.name.lower() in names] for split, names in SPLITS.items()}
    with_classes = [one for ones in named.values() for one in ones if any(map(has_images, subfolders(one)))]
    if not with_classes:
        with_images = [one for one in folders if has_images(one)]
        splits = [one.name for one in with_images if any(one in ones for ones in named.values())]
        if len(splits) == len(with_images) > 1:
            raise ValueError(
                f"data.root={root}: {', '.join(splits)} look like splits, and hold images without a directory for each "
                "class"
            )
        return {}
    for split, ones in named.items():
        if len(ones) > 1:
            both = " and ".join(one.name for one in ones)
            raise ValueError(f"data.root={root}: {both} are both names of the {split} split; rename or remove one")
    if not set(named["train"]) & set(with_classes):
        of_split = next(split for split in named if set(named[split]) & set(with_classes))
        raise ValueError(
            f"data.root={root}: {with_classes[0].name} looks like the {of_split} split, with a directory for each "
            "class, and there is no such train directory; rename one"
        )
    return {split: ones[0].name for split, ones in named.items() if ones}


def find_classes(root: Path, splits: dict[str, str]) -> list[str]:
    """Return the sorted names of the directories of training images, of which there are two or more.

    Raises:
        FileNotFoundError, ValueError: there are fewer, or a class has no images to read or none to train on.
    """
    training = root / splits.get("train", "")
    names = []
    for folder in subfolders(training):
        unread: Counter[str] = Counter()
        if next(images_in(folder, unread), None):
            names.append(folder.name)
        elif kinds := sorted(set(unread) & set(OTHER_PICTURES)):
            raise ValueError(
                f"{folder} holds no images that can be read, only {', '.join(kinds)}; convert them to .png or .jpg"
            )
    if len(names) < 2:
        raise FileNotFoundError(f"data.root={root} holds no directories of images, one for each of two or more classes")
    for split in splits.keys() - {"train"}:
        found = [folder.name for folder in subfolders(root / splits[split]) if has_images(folder)]
        if unknown := sorted(set(found) - set(names)):
            raise ValueError(
                f"{root / splits[split]} has classes that {training} has no images of: {', '.join(unknown[:10])}"
            )
    return sorted(names)


def check_directory_names(*groups: Iterable[object]) -> None:
    """Raise ValueError for a stored name that is no directory in ``root``: the run may come from anyone."""
    for name in itertools.chain(*groups):
        signs = ("/", "\0", os.sep)  # a backslash is part of a name except on Windows
        if not isinstance(name, str) or name in ("", ".", "..") or any(sign in name for sign in signs):
            raise ValueError(f"{str(name)[:80]!r} in the data of the run is not the name of a directory")


def subfolders(folder: Path) -> list[Path]:
    """Return the directories in a directory, and the linked ones, sorted and without hidden ones."""
    return sorted(one for one in folder.iterdir() if one.is_dir() and not is_hidden(one.name))


def has_images(folder: Path) -> bool:
    """Return whether there is an image in a directory or below."""
    return next(images_in(folder), None) is not None


def images_in(folder: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the images in a directory and below, in any order. Links to directories are followed, each one once.

    Args:
        folder: the directory; none is an empty one.
        left_out: here the pictures that are not yielded are counted: by their ending, or as ``hidden``.

    Raises:
        OSError: a directory cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True) if folder.is_dir() else ():
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # linked twice, or a link to a directory above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden = [name for name in folders if is_hidden(name)]
        folders[:] = [name for name in folders if name not in hidden]
        if left_out is not None:
            left_out["hidden"] += sum(_is_image(file) for name in hidden for file in os.listdir(Path(parent, name)))
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if ending in IMG_EXTENSIONS and not is_hidden(name):
                yield Path(parent, name)
            elif left_out is not None and ending in (*IMG_EXTENSIONS, *OTHER_PICTURES):
                left_out["hidden" if is_hidden(name) else ending] += 1


def is_hidden(name: str) -> bool:
    """Return whether a file or a directory is hidden, or a copy that a system made."""
    return name.startswith(".") or name.lower() in ADDED_BY_SYSTEMS


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMG_EXTENSIONS


def _raise(error: OSError) -> None:
    raise error
