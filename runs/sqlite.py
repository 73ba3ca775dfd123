"""SQLite files that may come from anyone: SQLite acts on the files beside one, and on the triggers in it."""

import contextlib
import os
import re
import shlex
import sqlite3
import stat
from pathlib import Path

TIMEOUT = 60  # seconds to wait for another process that writes
# A journal that ends with these bytes names a file, which SQLite deletes after it has rolled the journal back.
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def check_files(file: Path, made_by: str) -> None:
    """Raise ValueError for a database that is a link, or whose files beside it are not just a journal.

    Asked before SQLite opens it.

    Args:
        file: the database, which need not exist.
        made_by: what makes such databases here, for the error.
    """
    for path in (file, *(file.with_name(file.name + ending) for ending in ("-journal", "-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):  # another process has ended its transaction
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode) or path.name.endswith(("-wal", "-shm")):
                kind = "a link" if stat.S_ISLNK(found.st_mode) else f"no file that {made_by} makes"
                raise ValueError(f"{path} is refused: it is {kind}")
            if found.st_nlink > 1:
                raise ValueError(
                    f"{path} is refused: it is a hard link to a file that has other names, which would change with "
                    f"it; use a copy of the directory: cp -r {shlex.quote(str(file.parent))} DIRECTORY"
                )
            if path.name.endswith("-journal") and _tail(path, len(JOURNAL_MAGIC)) == JOURNAL_MAGIC:
                raise ValueError(f"{path} is refused: it names a file, which SQLite would delete")


def _tail(file: Path, size: int) -> bytes:
    with open(file, "rb") as content:
        content.seek(max(0, os.fstat(content.fileno()).st_size - size))
        return content.read(size)


def table_names(database: sqlite3.Connection, harmless: str | None = None) -> set[str] | None:
    """Return the tables of a database, or None for one with a view or a trigger, which runs when a table is used.

    Args:
        harmless: a pattern of triggers that may be there.
    """
    schema = database.execute("SELECT type, name, sql FROM sqlite_master WHERE type != 'index'").fetchall()
    if any(kind != "table" and not (harmless and re.fullmatch(harmless, sql or "")) for kind, _, sql in schema):
        return None
    return {name for kind, name, _ in schema if kind == "table"}
