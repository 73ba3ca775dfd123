"""A signal to the process group, while the processes that read images start, stops the run and not its readers."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from callbacks.signal_handler import Interrupted, SignalHandler
from datamodules import image_file_loader
from datamodules.image_file_loader import ImageFileDataset, ImageFileLoader

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups")


@pytest.fixture
def loader() -> ImageFileLoader:
    files = [Path(f"{number}.png") for number in range(4)]
    for number, file in enumerate(files):
        Image.new("L", (4, 4), number).save(file)
    dataset = ImageFileDataset(files, torch.arange(4), (1, 4, 4))
    return ImageFileLoader(dataset, torch.arange(4), 2, 2, torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_reader_outlives_a_signal_to_the_group(
    number: signal.Signals, loader: ImageFileLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives before the reader has left the group."""
    init: Callable[..., None] = image_file_loader._init_worker

    def interrupted(worker: int, parent: int) -> None:
        os.kill(os.getpid(), number)
        init(worker, parent)

    monkeypatch.setattr(image_file_loader, "_init_worker", interrupted)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        assert [len(batch[0]) for batch in loader] == [2, 2]
        assert [len(batch[0]) for batch in loader] == [2, 2]
    finally:
        loader.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_handler_that_requeues_a_job_is_called_at_the_end(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As submitit's, which ends the process. Without one, SIGUSR2 keeps its meaning."""
    called = []

    def requeue(number: int, frame: object) -> None:
        called.append(number)
        sys.exit(-1)

    before = signal.signal(number, requeue)
    try:
        with pytest.raises(Interrupted) as caught, SignalHandler() as handler:
            signal.raise_signal(number)
            handler._raise_if(number)
        assert signal.getsignal(number) is requeue
    finally:
        signal.signal(number, before)
    assert (called, caught.value.exit_code) == ([number], 128 + number)
    with SignalHandler():
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_signal_that_ends_the_readers_of_another_loader_is_what_ended_the_run() -> None:
    """The loader may be one of the user's own data module."""
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"), SignalHandler() as handler:
        handler._signal = signal.SIGTERM
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Terminated.")
    with pytest.raises(RuntimeError, match="DataLoader worker"), SignalHandler():
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed.")
