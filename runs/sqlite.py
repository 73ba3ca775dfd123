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
    """Return the tables of a database, or None for one in which a write may have another effect than it seems.

    A view or a trigger acts when a table is used, a foreign key may set a default, code of SQLite stands behind a
    virtual table, and in a damaged file two tables may share their rows.

    Args:
        harmless: a pattern of triggers that may be there.
    """
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):  # "2nd reference to page 7"
        return None
    schema = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    for kind, name, sql in schema:
        if kind in ("view", "trigger") and not (harmless and re.fullmatch(harmless, sql or "")):
            return None
        if kind == "table":
            actions = database.execute(
                "SELECT on_update, on_delete FROM pragma_foreign_key_list(?)", (name,)
            ).fetchall()
            is_virtual = re.match(r"\s*CREATE\s+VIRTUAL", sql or "", re.IGNORECASE)
            if is_virtual or any("SET DEFAULT" in action for action in actions):
                return None
    return {name for kind, name, *_ in schema if kind == "table"}


def statements(database: sqlite3.Connection) -> set[str]:
    """Return the statements by which the tables and indexes of a database were made."""
    return {sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
