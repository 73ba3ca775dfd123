"""Write files atomically, make unique directories, and update symbolic links."""

import contextlib
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the directory of ``path``, and replace ``path`` with what was written there.

    The file is flushed to the disk first. After an error ``path`` is what it was before. Lightning stages checkpoints
    in the system's temporary directory instead, and a full disk then costs the previous checkpoint.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or (error.filename2 is None and str(error.filename) == str(temporary)):
            error.filename = str(path)  # the name that the user gave
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: Path, pixels: "np.ndarray") -> None:
    """Write an image, uint8 ``(H, W, 3)``."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "png")
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


def update_symlink(link: Path, target: Path) -> None:
    """Let ``link`` point at the directory ``target``, such as ``outputs/last`` at the newest run."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
    try:
        os.replace(temporary, link)
    except OSError:  # such as a directory in the place of the link
        temporary.unlink()
        raise


def make_dirs(path: Path) -> list[Path]:
    """Make a directory and its missing parents. Return those that this process has made, the innermost first."""
    made: list[Path] = []
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            with contextlib.suppress(FileExistsError):  # another process was faster
                directory.mkdir()
                made.insert(0, directory)
    return made


def make_unique_dir(name: str, suffix: str = "-{}") -> list[Path]:
    """Make the directory ``name``, or ``name-2``, ``name-3`` … where it exists.

    Returns:
        That directory and those of its parents that were missing. Two processes never get the same directory.
    """
    for number in itertools.count(1):
        path = Path(name if number == 1 else name + suffix.format(number))
        parents = make_dirs(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return [path, *parents]
    raise AssertionError


def is_within(path: Path, *parents: Path) -> bool:
    """Return whether a path, with symbolic links resolved, lies strictly inside one of these directories."""
    return any(parent.resolve() in path.resolve().parents for parent in parents)
