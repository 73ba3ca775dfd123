"""Ctrl-C and SIGTERM: the step is finished, a checkpoint saved, and the exit code says what happened."""

import _thread
import os
import shlex
import signal
import threading
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from callbacks import at_optimizer_step


class Interrupted(Exception):
    """The run was told to stop. Its exit code is the shell's for the signal: 130 for SIGINT, 143 for SIGTERM."""

    status = "interrupted"

    def __init__(self, number: int, saved: Path | None) -> None:
        where = f"saved in {saved}" if saved else "there was nothing to save yet"
        super().__init__(f"interrupted by {signal.Signals(number).name}; {where}")
        self.resume_command = shlex.join(["python", "train.py", f"resume={saved.parent.parent}"]) if saved else None
        self.exit_code = 128 + number


class SignalHandler(Checkpoint):
    """While it trains, the first signal ends the run after the running step, with ``last.ckpt`` as it was then; in the
    validation that ends an epoch, after the epoch. A second signal, and any outside of training, ends it at once; and
    where what a handler raises is dropped (in a finalizer, say), as soon as this is asked again. Several processes stop
    together, whichever of them heard it, and the first does not wait for one of those it started that has failed. This
    is a Checkpoint to Lightning, because those come after all others, who have this step's figures in what is saved.

    Args:
        file: ``last.ckpt``, of a run that writes one.
    """

    patience = 10.0  # seconds that this process has to hear of another's end by itself, as it nearly always does

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._signal: int | None = None  # that this process heard
        self._training = False
        self._others: list[Popen[bytes]] = []  # that this process has started
        self._over, self._lost = threading.Event(), False
        self._question: tuple[Tensor, Any] | None = None  # to all processes: has one of you heard a signal?

    def __enter__(self) -> "SignalHandler":
        self._old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._old:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: Any) -> None:
        self._over.set()
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if failure is None:
            self._stop(self._signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._lost:
            raise ConnectionError("connection closed by peer")  # as the exchange between processes says it
        finish, self._signal = self._training and self._signal is None, number
        if not finish:
            for other in self._others:
                # In training its first signal would only be noted.
                other.kill() if self._training else other.send_signal(number)
            self._stop(self._signal)
        elif self._first:
            os.write(2, b"stopping after this step; again to stop at once\n")  # print is not safe in a handler

    def _stop(self, number: int | None) -> None:
        if number:
            raise Interrupted(number, self.file if self.file and self.file.exists() else None)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        connector: Any = trainer._signal_connector
        # Lightning's own for SIGTERM would end in exit code 0, or wait forever for a process that is elsewhere; its
        # answer to SLURM, to queue the job again, would begin a new run.
        connector.register_signal_handlers = lambda: None
        launcher: Any = trainer.strategy.launcher
        if started := getattr(launcher, "procs", []):
            self._others = started.copy()
            threading.Thread(target=self._watch, daemon=True).start()
            started.clear()  # Lightning's own watch would kill this process too, before it has said and written why

    def _watch(self) -> None:
        """Ends this process where one that it started has failed and it waits for that one's answer still."""
        while not any(codes := [other.poll() for other in self._others]):
            if None not in codes or self._over.wait(1):
                return
        if self._over.wait(self.patience):
            return
        self._lost = True
        _thread.interrupt_main()  # heard when it is in Python again
        if not self._over.wait(self.patience):
            os.write(2, b"error: another process of this run has ended; its own line says why\n")  # as errors.LOST
            for other in self._others:
                other.kill()
            os._exit(1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = trainer.is_global_zero
        self._training = True
        if trainer.world_size > 1:
            self._group: Any = torch.distributed.new_group(backend="gloo")  # it answers without the GPU

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        number = self._heard(trainer)  # asked after every batch, for the answer comes one later
        if number and self.file and at_optimizer_step(trainer, batch_idx):
            trainer.save_checkpoint(self.file)
            self._stop(number)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop(self._heard(trainer, wait=True))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if not self._training:
            self._stop(self._signal)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._stop(self._signal)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False
        self._stop(self._heard(trainer, wait=True))

    def _heard(self, trainer: pl.Trainer, wait: bool = False) -> int | None:
        """The signal that ends the run. Of several processes what they knew one step ago, unless it waits for them: the
        answer to that has come meanwhile, and a step costs no time."""
        if trainer.world_size == 1:
            return self._signal
        number = self._answer()
        self._ask()
        return (self._answer() if wait else None) or number

    def _ask(self) -> None:
        number = torch.tensor(self._signal or 0)
        most = torch.distributed.ReduceOp.MAX
        self._question = number, torch.distributed.all_reduce(number, most, group=self._group, async_op=True)

    def _answer(self) -> int | None:
        if self._question is None:
            return None
        number, answer = self._question
        self._question = None
        answer.wait()
        return int(number) or None
