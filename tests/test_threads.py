"""CPU threads: each on cores of its own while a net trains, and one thread for a net of a few weights."""

import ctypes
import os
import platform
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

import train
from cli.build import build
from cli.compose import compose
from cli.process import limit_threads, may_share_cores, seed_and_set_threads
from runs import threads

CPUS = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
NO_THREAD = 2**22  # above the numbers that Linux gives
needs_cores = pytest.mark.skipif(len(CPUS) < 2, reason="needs Linux and two cores")
BLOBS = ("model=blobs_mlp", "data=blobs", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none")


@pytest.fixture
def two_threads() -> int:
    """Compute with two threads; return the id of the second."""
    before = torch.get_num_threads()
    seed_and_set_threads(1, 2)
    yield threads._pool[0]
    torch.set_num_threads(before)


@needs_cores
def test_each_thread_has_cores_of_its_own(two_threads: int) -> None:
    with threads.spread_threads():
        first, second = os.sched_getaffinity(0), os.sched_getaffinity(two_threads)
        assert not first & second
        assert sorted(first | second) == CPUS
    assert sorted(os.sched_getaffinity(0)) == sorted(os.sched_getaffinity(two_threads)) == CPUS


@needs_cores
@pytest.mark.parametrize(("policy", "may_share", "cores"), [("passive", True, 1), ("passive", False, 0), ("", True, 0)])
def test_threads_that_sleep_while_they_wait_share_the_cores_that_others_leave(
    policy: str, may_share: bool, cores: int, two_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(threads, "_busy_cores", len(CPUS) - 1.0)
    with threads.spread_threads(may_share=may_share):
        both = os.sched_getaffinity(0) & os.sched_getaffinity(two_threads)
        assert len(both) == cores
    assert sorted(os.sched_getaffinity(0)) == sorted(os.sched_getaffinity(two_threads)) == CPUS


@pytest.mark.parametrize(
    ("settings", "may_share"),
    [
        (["experiment=mnist_mlp"], True),
        (["experiment=mnist_cnn"], False),
        (["experiment=cifar10_lenet"], True),  # four images at a time, without oneDNN
        (["experiment=cifar10_lenet", "data.batch_size=5"], False),
    ],
)
def test_threads_may_share_a_core_unless_they_compute_convolutions_with_onednn(
    settings: list[str], may_share: bool
) -> None:
    datamodule, model = build(compose(*settings))
    assert may_share_cores(model, datamodule) == may_share


@needs_cores
def test_the_cores_are_free_again_after_an_error(two_threads: int) -> None:
    with pytest.raises(RuntimeError, match="in training"), threads.spread_threads():
        raise RuntimeError("in training")
    assert sorted(os.sched_getaffinity(0)) == sorted(os.sched_getaffinity(two_threads)) == CPUS


@needs_cores
def test_threads_that_openmp_has_ended_are_left_out(two_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    threads._pool.insert(0, NO_THREAD)
    with threads.spread_threads():
        assert not os.sched_getaffinity(0) & os.sched_getaffinity(two_threads)
    # One may end between the look at those that run and the call.
    monkeypatch.setattr(threads, "_threads", lambda: set(threads._pool))
    with threads.spread_threads():
        pass
    assert sorted(os.sched_getaffinity(0)) == CPUS
    threads._shorten_slice(NO_THREAD)


@needs_cores
def test_a_new_pool_forgets_the_threads_that_have_ended(two_threads: int) -> None:
    threads._pool.insert(0, NO_THREAD)
    seed_and_set_threads(1, 3)
    assert set(threads._pool) <= threads._threads()


@needs_cores
def test_nothing_is_divided_for_one_thread_several_processes_or_more_threads_than_cores(two_threads: int) -> None:
    with threads.spread_threads(enabled=False):
        assert sorted(os.sched_getaffinity(0)) == CPUS
    torch.set_num_threads(1)
    with threads.spread_threads():
        assert sorted(os.sched_getaffinity(0)) == CPUS
    seed_and_set_threads(1, len(CPUS) + 1)
    with threads.spread_threads():
        assert sorted(os.sched_getaffinity(0)) == CPUS


@needs_cores
def test_a_child_process_may_use_all_cores(two_threads: int) -> None:
    reading, writing = os.pipe()
    with threads.spread_threads():
        if not (child := os.fork()):
            threads.leave_thread_pool()
            os.write(writing, repr(sorted(os.sched_getaffinity(0))).encode())
            os._exit(0)
        os.waitpid(child, 0)
    assert os.read(reading, 1000).decode() == repr(CPUS)
    os.close(reading)
    os.close(writing)


needs_slices = pytest.mark.skipif(
    platform.machine() != "x86_64" or tuple(map(int, platform.release().split(".")[:2])) < (6, 12),
    reason="needs Linux 6.12",
)


@needs_cores
@needs_slices
def test_threads_take_short_turns_with_other_programs(two_threads: int) -> None:
    for thread in (0, two_threads):
        attributes = ctypes.create_string_buffer(48)
        assert ctypes.CDLL(None).syscall(315, thread, attributes, 48, 0) == 0  # sched_getattr
        _, policy, _, nice, _, turn, _, _ = struct.unpack("IIQiIQQQ", attributes.raw)
        assert (policy, nice, turn) == (os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0), 100_000)


@pytest.mark.parametrize(
    ("busy", "own", "environment", "expected"),
    [
        (1.9, 0.1, {}, "passive"),
        (1.9, 0.6, {}, "passive"),  # beside two programs on two cores
        (1.0, 0.9, {}, None),  # most of the time is this process's
        (0.3, 0.3, {}, None),
        (1.9, 0.1, {"OMP_WAIT_POLICY": "active"}, "active"),
        (1.9, 0.1, {"GOMP_SPINCOUNT": "100"}, None),
    ],
)
def test_threads_sleep_while_they_wait_where_others_keep_the_cores_busy(
    busy: float, own: float, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back, or taken away again
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "_at_start", (5.0, 100.0))
    monkeypatch.setattr(threads, "_core_seconds", lambda: (5.0 + busy - own, 102.0))  # a second of two cores
    threads.choose_wait_policy()
    assert os.environ.get("OMP_WAIT_POLICY") == expected


@needs_cores
@pytest.mark.parametrize(("busy", "threads_left"), [(0.4, None), (1.1, len(CPUS) - 1), (len(CPUS), 1), (99, 1)])
def test_fewer_threads_are_suggested_where_others_keep_cores_busy(
    busy: float, threads_left: int | None, two_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_busy_cores", busy)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(len(CPUS))
    line = f"other programs keep {busy:.1f} of {len(CPUS)} cores busy: threads={threads_left} may be faster"
    assert threads.fewer_threads() == (line if threads_left else None)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user has chosen
    assert threads.fewer_threads() is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/stat")
def test_seconds_of_the_cores() -> None:
    before, start = threads._core_seconds(), time.process_time()
    while time.process_time() < start + 0.2:  # this process computes
        pass
    others, total = (now - then for now, then in zip(threads._core_seconds(), before, strict=True))
    assert total >= 0.15
    assert others <= total - 0.15


class AffinityRecorder(pl.Callback):
    """Records the cores of the main thread and the number of threads in training."""

    seen: list[tuple[list[int], int]]

    def on_train_batch_start(self, *_: object) -> None:
        self.seen.append((sorted(os.sched_getaffinity(0)), torch.get_num_threads()))


@needs_cores
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("threads=2", "model=blobs_mlp", "data=blobs"), 2),
        (("model=blobs_mlp", "data=blobs"), 1),  # a few weights
        (("model=logistic", "data=separable"), 1),
        (("model=mlp", "data=mnist", "data.val_size=0"), 2),
        (("model=cnn", "data=mnist", "data.val_size=0"), 2),  # its weights are used for many pixels each
    ],
)
def test_threads_of_a_training(
    overrides: tuple[str, ...],
    expected: int,
    random_images: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random_images(300, 60)
    monkeypatch.setattr(AffinityRecorder, "seen", [], raising=False)
    monkeypatch.setattr("cli.process._default_threads", lambda: 2)
    target = "+callbacks.recorder._target_=tests.test_threads.AffinityRecorder"
    brief = ("trainer.limit_train_batches=1", "callbacks.pictures=null", "data.batch_size=64")
    before = torch.get_num_threads()
    train.train_config(compose(*BLOBS, *brief, *overrides, target), tmp_path)
    torch.set_num_threads(before)
    (cpus, number) = AffinityRecorder.seen[0]
    assert number == expected
    assert (cpus == CPUS) == (expected == 1)
    assert sorted(os.sched_getaffinity(0)) == CPUS


@needs_cores
@pytest.mark.parametrize(("layers", "expected"), [([torch.nn.Linear(2, 2)], 1), ([], 2)])
def test_net_whose_layers_are_built_later_keeps_its_threads(layers: list, expected: int, two_threads: int) -> None:
    limit_threads(torch.nn.Sequential(*layers), SimpleNamespace(batch_size=4))
    assert torch.get_num_threads() == expected
