"""Files that are always whole: written beside the old one, flushed to the disk, then put in its place. And links."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to in the folder of ``path``; what was written takes the place of ``path`` at the end, or not at
    all. Lightning stages in the temporary folder instead, and a full disk then costs the previous checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def point(link: Path, folder: Path) -> None:
    """Lets ``link`` be the folder, such as ``outputs/last`` the newest run."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(folder.resolve(), link.parent.resolve()), target_is_directory=True)
    os.replace(temporary, link)
