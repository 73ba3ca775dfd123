"""Read batches of image files, by worker processes or in this one."""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batch_loader import BatchLoader
from datamodules.image_files import load_image
from runs.threads import leave_thread_pool

log = logging.getLogger(__name__)


class ImageFileDataset(Dataset[Any]):
    """Image files as uint8 ``shape``, read in whole batches."""

    def __init__(self, files: list[Path], labels: Tensor, shape: tuple[int, ...]) -> None:
        self.files, self.labels, self.shape = files, labels, shape

    def __getitems__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
        """Return indices ``(B,)``, images ``(B, C, H, W)``, labels ``(B,)``, and why which files cannot be read.

        These are arrays because a worker sends tensors through /dev/shm, which has 64 MB in a Docker container: a
        larger batch hangs the run. Arrays go through a pipe.
        """
        images = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        whole: list[int] = []
        broken: dict[int, str] = {}  # index -> reason
        for index in indices:
            try:
                images[len(whole)], _ = load_image(self.files[index], self.shape, False, False)
                whole.append(index)
            except ValueError as error:
                broken[index] = str(error)
        labels = self.labels[whole]
        return np.array(whole, np.int64), images[: len(whole)].numpy(), labels.numpy(), broken


def _keep_batch(batch: Any) -> Any:
    return batch


STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _stopping_later() -> Iterator[None]:
    """Hold back the signals that end a run while its workers start: one to the process group would end these too.

    The workers start with the signals held back. See :func:`_init_worker`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(_: int, parent: int) -> None:
    """Leave the process group of the run, so that only the run handles Ctrl-C, and end when the run is killed."""
    leave_thread_pool()
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    if hasattr(signal, "pthread_sigmask"):
        while pending := set(STOPPING) & signal.sigpending():  # they were meant for the run
            signal.sigwait(pending)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # the run was killed before this call
            os._exit(1)


class ImageFileLoader(BatchLoader):
    """A :class:`BatchLoader` over image files, which a torch DataLoader reads.

    A batch of unreadable files is empty instead of missing, so that all ranks have the same number of batches.

    Args:
        dataset: the files.
        indices: the files to serve, int64 ``(M,)``.
        batch_size: see :class:`BatchLoader`.
        num_workers: number of processes that read. They persist from epoch to epoch.
        device: device to move the uint8 images to.
        **options: see :class:`BatchLoader`.
    """

    def __init__(
        self,
        dataset: ImageFileDataset,
        indices: Tensor,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        **options: Any,
    ) -> None:
        super().__init__(indices, dataset.labels, indices, batch_size, **options)
        self.files, self.num_workers, self.device = dataset, num_workers, device
        self._skipped: set[int] = set()
        self._batches: list[list[int]] = []  # of this epoch; the reader shares the list
        self._reader: DataLoader[Any] | None = None

    def _fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self._batches[:] = [index.tolist() for index in batches]
        if self._reader is None:
            self._reader = DataLoader(
                self.files,
                batch_sampler=self._batches,
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                worker_init_fn=functools.partial(_init_worker, parent=os.getpid()),
                collate_fn=_keep_batch,
                generator=torch.Generator(),  # else torch draws the workers' seed from the global one
            )
        with _stopping_later():
            arrived = iter(self._reader)
        for *batch, broken in arrived:
            self._warn_skipped(broken)
            index, images, labels = (torch.from_numpy(array).to(self.device) for array in batch)
            yield index, images, labels

    def close(self) -> None:
        """End the workers. Python's garbage collector would need five seconds."""
        self._reader = None

    def _warn_skipped(self, broken: dict[int, str]) -> None:
        for index, reason in broken.items():
            if index not in self._skipped:
                self._skipped.add(index)
                log.warning("skipped: %s (%d so far)", reason, len(self._skipped))
