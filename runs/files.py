"""Write files atomically, make unique directories, and update symbolic links."""

import contextlib
import errno
import io
import itertools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from runs.format import printable

if TYPE_CHECKING:
    import numpy as np

# What a training writes in its directory, besides logs.
RUN_FILES = ("config.yaml", "result.json", "metrics.csv", "dashboard.txt", "mlflow.txt", "wandb.txt")
RUN_DIRS = ("checkpoints", "pictures")
# What the commands write into, without replacing it, in any directory that they are given, besides logs and locks:
WRITTEN_INTO = (*RUN_DIRS, "csv", "evaluations", "predictions", "study.db", ".submitit")
LOG_SUFFIXES = (".log", ".lock")
# What the links to the last run and sweep, and the files of loggers, are called in outputs/. No run has such a name.
NAMES_IN_OUTPUTS = ("last", "last_sweep", "mlflow.db", "mlruns", "wandb")
# The name of a job's directory in a sweep: its number and a hash of its config.
JOB_DIR = re.compile(r"\d+-[0-9a-f]{8}")
# The link to a log in its cache that W&B makes in outputs/, which may lie in the directory of a run.
LINK_OF_WANDB = re.compile(r"/wandb/(offline-)?run-[\w-]+/logs/debug-core\.log$")
# A directory with one of these is that of a run or of a sweep.
MADE_BY_US = ("config.yaml", "dashboard.txt", "multirun.yaml", "study.db")

# The lock files that this process holds, as they were then, by their absolute directories.
_held_locks: dict[Path, tuple[Path, os.stat_result]] = {}
_lost_locks: set[Path] = set()  # directories whose lock file was removed while it was held
_opened: dict[str, int] = {}  # directory -> descriptor

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # the errors of a file that may be read and not written


def is_writable(folder: Path) -> bool:
    """Return whether files can be made in a directory, which need not exist yet.

    True also where a file lies in its place.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return not existing.is_dir() or os.access(existing, os.W_OK | os.X_OK)


@contextlib.contextmanager
def hold_lock(lock: Path) -> Iterator[None]:
    """Let :func:`atomic_write` write into the directory of a lock file, which this process holds, while that is there.

    After ``rm -r`` another run may have made the directory anew.
    """
    directory = Path(os.path.abspath(lock.parent))
    _lost_locks.discard(directory)
    _held_locks[directory] = lock, lock.stat()
    try:
        yield
    finally:
        if not holds_lock(directory):
            _lost_locks.add(directory)
        del _held_locks[directory]


def holds_lock(directory: Path) -> bool:
    """Return whether the lock file of a directory, which this process holds, is still there."""
    lock, held = _held_locks[Path(os.path.abspath(directory))]
    try:
        return os.path.samestat(held, lock.lstat())
    except OSError:
        return False


def check_locks(path: Path) -> None:
    """Raise ValueError for a file in a directory whose lock file, which this process holds, was removed."""
    for directory in path.parents:
        if directory in _held_locks and not holds_lock(directory):
            lock, _ = _held_locks[directory]
            raise ValueError(f"{lock} was removed while this run trained; the run writes nothing more there")


def is_same_directory(directory: Path) -> bool:
    """Return whether a directory is the one that it was at the first call. After ``rm -r`` it may be another's."""
    path = os.path.abspath(directory)
    try:
        if path not in _opened:
            _opened[path] = os.open(path, os.O_RDONLY)  # else the number of a removed directory is used again
        return os.path.samestat(os.fstat(_opened[path]), os.stat(path))
    except PermissionError:  # Windows opens no directory, and removes none that is in use
        return True
    except FileNotFoundError:
        return path not in _opened


def forget_directories() -> None:
    """Let :func:`is_same_directory` begin anew, after a command of several."""
    while _opened:
        os.close(_opened.popitem()[1])


def lost_lock(directory: Path) -> bool:
    """Return whether the lock file that this process held in a directory was removed before it ended there."""
    return Path(os.path.abspath(directory)) in _lost_locks


@contextlib.contextmanager
def atomic_write(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary name in the directory of ``path``, and replace ``path`` with what was written there.

    The file is flushed to the disk first. After an error ``path`` is what it was before, and directories that were
    made for it are removed. Lightning stages checkpoints in the system's temporary directory instead, and a full disk
    then costs the previous checkpoint.

    Args:
        overwrite: False raises ValueError where another program has made the file in the meantime.

    Raises:
        ValueError: this process had locked the directory, and the lock file was removed.
    """
    check_locks(Path(os.path.abspath(path)))
    made = make_dirs(path.parent)
    path.parent.mkdir(exist_ok=True)  # raises an error where there is a file
    # Random: two containers may number their processes alike, and an untrusted run may hold a link of a known name.
    temporary = path.parent / f".{path.name}.{secrets.randbelow(10**15)}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _publish(temporary, path)
    except OSError as error:
        if error.filename is None or (error.filename2 is None and str(error.filename) == str(temporary)):
            error.filename = str(path)  # the name that the user gave
        raise
    finally:
        temporary.unlink(missing_ok=True)
        for directory in made:
            with contextlib.suppress(OSError):  # it has the file, or others
                directory.rmdir()


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8. See :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _publish(temporary: Path, path: Path) -> None:
    """Give a file its final name, unless another file has it."""
    try:
        os.link(temporary, path)
    except OSError:
        if os.path.lexists(path):
            raise ValueError(f"{path} was made by another program in the meantime, and is kept") from None
        os.replace(temporary, path)  # a file system without hard links


def unlink_other_names(path: Path) -> None:
    """Replace a file that has other names by a copy of it, before it is written into. These are hard links.

    In an untrusted run the other name may be a file of the user's. In a backup by ``cp -al`` it is the file as it was.
    """
    if path.is_file() and path.stat().st_nlink > 1:
        with atomic_write(path) as temporary:
            shutil.copy(path, temporary)  # with its permissions


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what a process that was killed in :func:`atomic_write` left of these files in a directory.

    A name may be a pattern.
    """
    for name in names:
        for leftover in folder.glob(f".{name}.*.tmp"):
            if is_leftover(leftover) and fnmatchcase(leftover.name.rsplit(".", 2)[0], f".{name}"):
                check_locks(leftover.absolute())
                leftover.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Return whether a file has the name of what :func:`atomic_write` leaves when its process is killed."""
    return bool(re.fullmatch(r"\..+\.\d+\.tmp", path.name)) and path.is_file()


class _LoaderWithoutAliases(yaml.SafeLoader):  # type: ignore[misc]
    """Reads what this project writes: no value stands in two places, where a few could stand in billions."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, or an empty one where there is no such file with a mapping in it."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a FIFO is waited for
            return {}
        content = yaml.load(path.read_text(encoding="utf-8"), _LoaderWithoutAliases)
    except Exception:  # the constructors of YAML's tags raise any, such as KeyError for !!bool maybe
        return {}
    return content if isinstance(content, dict) else {}


def write_png(path: Path, pixels: "np.ndarray", overwrite: bool = True) -> None:
    """Write an image, uint8 ``(H, W, 3)``. See :func:`atomic_write`."""
    encoded = encode_png(pixels)
    with atomic_write(path, overwrite) as temporary:
        temporary.write_bytes(encoded)


def encode_png(pixels: "np.ndarray") -> bytes:
    """Return the content of a PNG file of an image, uint8 ``(H, W, 3)``."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "png")
    return encoded.getvalue()


def update_symlink(link: Path, target: Path) -> None:
    """Let ``link`` point at the directory ``target``, such as ``outputs/last`` at the newest run."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(errno.EEXIST, "it is not a link that could point there", str(link))
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
    os.replace(temporary, link)


def make_dirs(path: Path) -> list[Path]:
    """Make a directory and its missing parents. Return those that this process has made, the innermost first."""
    made: list[Path] = []
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            try:
                directory.mkdir()
                made.insert(0, directory)
            except FileExistsError:  # another process was faster, or
                if directory.is_symlink() and not directory.exists():  # it leads nowhere
                    raise
    return made


def make_unique_dir(name: str, suffix: str = "-{}") -> list[Path]:
    """Make the directory ``name``, or ``name-2``, ``name-3`` … where it exists.

    Returns:
        That directory and those of its parents that were missing. Two processes never get the same directory.
    """
    for number in itertools.count(1):
        path = Path(name if number == 1 else name + suffix.format(number))
        while True:
            parents = make_dirs(path.parent)
            try:
                path.mkdir()
            except FileExistsError:
                break
            except FileNotFoundError:  # another process has removed the parent, which it had made
                continue
            return [path, *parents]
    raise AssertionError


def check_folder(folder: Path, begins: bool = False) -> None:
    """Raise ValueError for the directory of a run or a sweep through which a command would read or write elsewhere.

    In an untrusted run the log may be a link to a file of the user's, or a FIFO that is waited for. Single files are
    written by :func:`atomic_write`, which replaces a link. Of a run and of a sweep everything is checked: event files
    go to ``outputs/`` of one that is the working directory. Of a directory in which only a checkpoint lies, such as the
    user's own, it is what the commands write into, and the files of a run, which they read. The former may be no link
    to another run within the run either: two runs would write the checkpoints of one.

    Args:
        folder: the directory.
        begins: whether a run or a sweep begins in it, which makes it that of one.
    """
    check_path(folder.resolve())
    if (name := os.path.relpath(folder)) != printable(name):
        raise ValueError(f"{name} is refused: the name has control characters")
    paths = list(folder.iterdir())
    written = {path for path in paths if path.name in WRITTEN_INTO or path.name.endswith(LOG_SUFFIXES)}
    if not begins and not any(path.name in MADE_BY_US for path in paths):
        paths = [path for path in paths if path in written or path.name in RUN_FILES]
    while paths:
        path = paths.pop()
        with contextlib.suppress(FileNotFoundError):  # a process that is running here has removed it
            kind = path.lstat().st_mode
            if stat.S_ISLNK(kind):
                target = os.readlink(path)
                if LINK_OF_WANDB.search(path.as_posix()):  # nothing follows it
                    continue
                if not is_within(path, folder) and os.path.realpath(path) != os.path.realpath(folder):
                    raise ValueError(f"{path} is refused: it is a link to {target}, outside of {folder}")
                if path in written:
                    raise ValueError(f"{path} is refused: it is a link, and commands write into it")
            elif stat.S_ISDIR(kind):
                paths += path.iterdir()
            elif not stat.S_ISREG(kind):
                raise ValueError(f"{path} is refused: it is neither a file nor a directory")


def check_outputs(folder: Path) -> None:
    """Raise ValueError where the directory of an untrusted run may have brought a link ``outputs`` that is written to.

    In the directory of this project, and beside a run that lies elsewhere, the link is the user's.
    """
    here, outputs = Path.cwd(), Path("outputs")
    is_ours = here == Path(__file__).resolve().parent.parent or is_within(folder, outputs)
    if outputs.is_symlink() and not is_ours and here in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(
            f"outputs is refused: it is a link to {os.readlink(outputs)}, and may have come with {folder}; work in "
            "another directory"
        )


def check_last(link: str, target: Path) -> None:
    """Raise ValueError for a link such as ``outputs/last`` out of the working directory: it may have come with a run.

    In the directory of this project the link is the user's.
    """
    here, real = Path.cwd(), target.resolve()
    is_ours = here in (Path(__file__).resolve().parent.parent, real)
    if not is_ours and target.exists() and not is_within(target, here, Path("outputs")):
        raise ValueError(
            f"{link} is refused: it is a link to {real}, outside of this directory, and may have come with it; name "
            "that directory itself"
        )


def check_utf8(path: str) -> None:
    """Raise ValueError for a directory whose name is not UTF-8: the files of a run could not hold it."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path} cannot be used: the name of the directory is not UTF-8; rename it") from error


def check_name_in_outputs(directory: str, setting: str) -> None:
    """Raise ValueError for a directory with the name of something else in ``outputs/``, or in such a directory.

    The links to the last run and sweep move when another one starts: a process that used them as its own directory
    would then be in that of another.
    """
    path = Path(os.path.abspath(directory))
    for place in (path, *path.parents):
        is_link = place.is_symlink() and place.parent.name == "outputs"  # also in another working directory
        if place.name in NAMES_IN_OUTPUTS and (is_link or place.parent == Path.cwd() / "outputs"):
            raise ValueError(f"{setting} is refused: {os.path.relpath(place)} has another use; choose another name")


def is_reserved(name: str) -> bool:
    """Return whether a run, a sweep or a logger could make a file or a directory of this name.

    Names that begin with a dot or end like a file (``mlflow.db-journal``, ``result.json``) are among them.
    """
    reserved = (*NAMES_IN_OUTPUTS, *RUN_DIRS, *WRITTEN_INTO)
    looks_like_file = re.search(r"^\.|\.[A-Za-z][\w-]*$|-(journal|wal|shm)$", name)
    return name.casefold() in reserved or bool(looks_like_file or JOB_DIR.fullmatch(name))


def check_path(path: Path) -> None:
    """Raise ValueError for a directory whose name Hydra would evaluate, which keeps it in settings of its own."""
    check_utf8(str(path))
    if "${" in str(path):
        raise ValueError(f"{path} cannot be used: Hydra would evaluate the name of the directory; rename it")


def is_within(path: Path, *parents: Path) -> bool:
    """Return whether a path, with symbolic links resolved, lies strictly inside one of these directories."""
    real = Path(os.path.realpath(path))  # Path.resolve raises an error for a link to itself
    return any(parent.resolve() in real.parents for parent in parents)
