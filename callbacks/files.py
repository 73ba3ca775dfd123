"""Files that are always whole: written beside the old one, flushed to the disk, then put in its place."""

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
