"""Write files that are always whole, make directories that nobody else has, and update symbolic links."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path


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
    finally:
        temporary.unlink(missing_ok=True)


def is_within(path: Path, *parents: Path) -> bool:
    """Return whether a path, with its symbolic links followed, lies in one of these directories and is none of them."""
    return any(parent.resolve() in path.resolve().parents for parent in parents)


def update_symlink(link: Path, target: Path) -> None:
    """Let ``link`` point at the directory ``target``, such as ``outputs/last`` at the newest run."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
    os.replace(temporary, link)


def make_unique_dir(name: str, suffix: str = "-{}") -> str:
    """Make the directory ``name``, or ``name-2``, ``name-3`` … where it exists, and return its name.

    Two processes never get the same one.
    """
    for number in itertools.count(1):
        path = name if number == 1 else name + suffix.format(number)
        try:
            os.makedirs(path)
        except FileExistsError:
            continue
        return path
    raise AssertionError
