"""What the tests of runs from untrusted sources share."""

import contextlib
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cli.compose import compose
from cli.resume import merge_resume_config

SECRET = "s3cr3t-of-this-machine"
TINY = (
    "model=blobs_mlp",
    "data=blobs",
    "model.steps_per_batch=1",
    "trainer.accelerator=cpu",
    "callbacks.pictures=null",
)
EVIL = """\
evil:
  _target_: tests.test_safety.pwn
callbacks:
  evil:
    _target_: os.mkdir
    path: {marker}
_target_: os.mkdir
path: {marker}
"""


def edit_checkpoint(file: Path, *path: Any, value: Any) -> None:
    checkpoint = torch.load(file, weights_only=True)
    node = checkpoint
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    torch.save(checkpoint, file)


def relative_paths(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def resume_config(*typed: str) -> Any:
    """Return the config of the untrusted run that is resumed with these overrides."""
    cfg = compose("resume=outputs/untrusted", *typed)
    cfg.choices.overrides = [*typed]
    return merge_resume_config(cfg, Path("outputs/untrusted/checkpoints/last.ckpt"))


def run_sql(*statements: str) -> Callable[[Path], None]:
    """Return a function that executes statements in an SQLite file."""

    def run(file: Path) -> None:
        with contextlib.closing(sqlite3.connect(file)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return run


JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def write_super_journal(database: Path, victim: str) -> None:
    """Write a journal beside a database that SQLite rolls back, and then deletes the file that the journal names."""
    page, name = 4096, victim.encode()
    header = JOURNAL_MAGIC + struct.pack(">5I", 0, 0, database.stat().st_size // page, 512, page)
    end = struct.pack(">I", 0x40000000 // page + 1) + name + struct.pack(">II", len(name), sum(name)) + JOURNAL_MAGIC
    Path(f"{database}-journal").write_bytes(header.ljust(512, b"\0") + end)
