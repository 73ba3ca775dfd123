"""Ctrl-C, SIGTERM and SIGUSR1: finish the running step, save, and end with the exit code of the signal.

SIGUSR1 is what a batch system sends ahead of a time limit (``sbatch --signal=USR1@120``). submitit sends a signal of
its own to the jobs of a sweep, and has installed a handler that requeues them. That handler is called after the save.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from callbacks import at_optimizer_step
from runs.internals import disable_lightning_signal_handlers, take_child_processes
from runs.interrupts import PEER_DIED, REQUEUE_SIGNALS, early_signal, handled_signals, is_repeated
from runs.overrides import quote_value, train_command


class Interrupted(Exception):
    """The run was interrupted. Its exit code is the shell's for the signal.

    130 for SIGINT, 143 for SIGTERM, and on Linux 138 for SIGUSR1.
    """

    status = "interrupted"

    def __init__(self, number: int, saved: Path | None, overrides: Sequence[str] = ()) -> None:
        where = f"saved in {saved}" if saved else "there was nothing to save yet"
        super().__init__(f"interrupted by {signal.Signals(number).name}; {where}")
        resume = f"resume={quote_value(str(saved.parent.parent))}" if saved else ""
        self.resume_command = train_command([resume, *overrides]) if saved else None
        self.exit_code = 128 + number


class SignalHandler(Checkpoint):
    """Ends a run on SIGINT, SIGTERM or SIGUSR1, with a checkpoint.

    During training the first signal ends the run after the running step, and ``last.ckpt`` is saved there. In the
    validation that ends an epoch it ends the run after the epoch. A second signal, or one outside of training, ends the
    run at once. Two SIGTERMs within a second are one. Python ignores what a handler raises in some places, such as a
    finalizer. The run then ends at the next batch.

    All ranks stop together, whichever of them received the signal. Rank zero does not wait for a rank that has failed.

    Subclasses Checkpoint so that it runs last: what it saves includes what the other callbacks did in this step.

    Args:
        checkpoint_path: path of ``last.ckpt``, for a run that writes one.
        overrides: those that the run must be given again when it is resumed.
    """

    measures = ()

    # Seconds for this process to notice by itself that another rank has ended. It nearly always does.
    grace_period = 10.0

    def __init__(self, checkpoint_path: Path | None = None, overrides: Sequence[str] = ()) -> None:
        self.checkpoint_path, self._overrides = checkpoint_path, overrides
        self._signal: int | None = None  # received by this process
        self._old_handlers: dict[int, Any] = {}
        self._training = False
        self._child_procs: list[Popen[bytes]] = []
        self._ended, self._peer_died = threading.Event(), False
        self._pending_sync: tuple[Tensor, Any] | None = None  # all_reduce of the ranks' signals

    def __enter__(self) -> "SignalHandler":
        self._raise_if(early_signal())  # before, and dropped
        # Python lets the main thread alone have handlers, and calls them there.
        is_main = threading.current_thread() is threading.main_thread()
        self._old_handlers = {number: signal.getsignal(number) for number in handled_signals() if is_main}
        for number in REQUEUE_SIGNALS if is_main else ():
            if callable(requeue := signal.getsignal(number)):
                self._old_handlers[number] = requeue
        for number in self._old_handlers:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, failure: type[BaseException] | None, error: BaseException | None, *_: Any) -> None:
        self._ended.set()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        # The workers of a DataLoader are in the process group of the run, and a signal to the group ends them.
        if failure is None or (issubclass(failure, RuntimeError) and "DataLoader worker" in str(error)):
            self._raise_if(self._signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if is_repeated(number) and self._signal:
            return
        if self._peer_died:
            raise ConnectionError("connection closed by peer")  # the message of torch.distributed
        finish_step, self._signal = self._training and self._signal is None, number
        if not finish_step:
            for process in self._child_procs:
                # In training the first signal would only be recorded.
                process.kill() if self._training else process.send_signal(number)
            self._raise_if(self._signal)
        elif self._is_rank_zero:
            _write_stderr("stopping after this step; a second signal stops at once")

    def _raise_if(self, number: int | None) -> None:
        if number:
            path = self.checkpoint_path
            interrupted = Interrupted(number, path if path and path.exists() else None, self._overrides)
            if number in REQUEUE_SIGNALS and callable(requeue := self._old_handlers.get(number)):
                try:
                    requeue(number, None)
                except SystemExit:  # submitit has requeued the job
                    raise interrupted from None
            raise interrupted

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        disable_lightning_signal_handlers(trainer)
        if started := take_child_processes(trainer):
            self._child_procs = started
            threading.Thread(target=self._watch_child_procs, daemon=True).start()

    def _watch_child_procs(self) -> None:
        """End this process when it still waits for a rank that it started and that has failed."""
        while not any(codes := [process.poll() for process in self._child_procs]):
            if None not in codes or self._ended.wait(1):
                return
        if self._ended.wait(self.grace_period):
            return
        self._peer_died = True
        signal.raise_signal(signal.SIGINT)  # the main thread handles it as soon as it runs Python code again
        if not self._ended.wait(self.grace_period):
            _write_stderr(f"error: {PEER_DIED}")
            for process in self._child_procs:
                process.kill()
            os._exit(1)  # sys.exit would end this thread only

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_rank_zero = trainer.is_global_zero
        self._training = True
        if trainer.world_size > 1:
            self._group: Any = torch.distributed.new_group(backend="gloo")  # does not wait for the GPU
            self._check_same_step(trainer)

    def _check_same_step(self, trainer: pl.Trainer) -> None:
        """Raise ValueError where not all ranks see the checkpoint: they would wait in different places, for ever."""
        steps: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(steps, trainer.global_step, group=self._group)
        if len(set(steps)) > 1:
            shown = ", ".join(map(str, steps))
            raise ValueError(
                f"the processes would begin at different steps: {shown}; each of them must see the checkpoint"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        number = self._sync_signal(trainer)  # after every batch, because the result comes one batch later
        if number and self.checkpoint_path and at_optimizer_step(trainer, batch_idx):
            trainer.save_checkpoint(self.checkpoint_path)
            self._raise_if(number)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._raise_if(self._sync_signal(trainer, wait=True))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if not self._training:
            self._raise_if(self._signal)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._raise_if(self._signal)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False
        self._raise_if(self._sync_signal(trainer, wait=True))

    def _sync_signal(self, trainer: pl.Trainer, wait: bool = False) -> int | None:
        """Return the signal that ends the run on all ranks.

        Without ``wait`` that is the state of one step ago. The result of that exchange has arrived by now, so no step
        waits for it.
        """
        if trainer.world_size == 1:
            return self._signal
        number = self._finish_sync()
        self._start_sync()
        return (self._finish_sync() if wait else None) or number

    def _start_sync(self) -> None:
        number = torch.tensor(self._signal or 0)
        maximum = torch.distributed.ReduceOp.MAX
        self._pending_sync = number, torch.distributed.all_reduce(number, maximum, group=self._group, async_op=True)

    def _finish_sync(self) -> int | None:
        if self._pending_sync is None:
            return None
        number, work = self._pending_sync
        self._pending_sync = None
        work.wait()
        return int(number) or None


def _write_stderr(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr is closed
        os.write(2, f"{line}\n".encode())  # print is not safe in a signal handler
