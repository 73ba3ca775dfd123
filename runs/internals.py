"""What this project uses of Lightning and torch that is not in their documentation, each with the reason.

tests/test_internals.py fails with a clear message when a new version of a library lacks one of these.
"""

from subprocess import Popen
from typing import Any

import lightning.pytorch as pl

# The parts of a scheduler's state that follow from the length of the training. They are left out of what is restored,
# so that a training that was made longer follows the schedule of its new length. OneCycleLR has no public name for its.
SCHEDULE_LENGTH_KEYS = ("total_steps", "T_max", "_schedule_phases")


class QuickHooks(pl.LightningModule):
    """Lightning writes the name of the running hook to the module some twenty times a step.

    nn.Module looks at what kind of value each of them is. Without this class an epoch of mnist_cnn takes 3.5 % longer
    (median of 12 interleaved rounds on one CPU thread).
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def share_step_counter(trainer: pl.Trainer) -> None:
    """Count gradient steps in one place, whoever makes them.

    Lightning has one counter for automatic and one for manual optimization. A run may go on in the other way.
    """
    loop = trainer.fit_loop.epoch_loop
    loop.manual_optimization.optim_step_progress = loop.automatic_optimization.optim_progress.optimizer.step


def count_steps(trainer: pl.Trainer, steps: int) -> None:
    """Tell Lightning of gradient steps that it did not make, or ``trainer.global_step`` would stay where it is."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for counter in (progress.total, progress.current):
        counter.ready += steps
        counter.completed += steps


def total_batch_idx(trainer: pl.Trainer) -> int:
    """Return the number of this batch in the whole training. ``batch_idx`` begins again in every epoch."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def forget_train_loader(trainer: pl.Trainer) -> None:
    """Have Lightning set up the training loader again.

    To estimate the number of steps it has done so before the place in the epoch was read from the checkpoint.
    """
    trainer.fit_loop._combined_loader = None


def go_on_with_next_epoch(trainer: pl.Trainer) -> None:
    """Go on after the last epoch where a checkpoint of its end was read.

    With ``max_steps`` Lightning would end that epoch a second time, without a batch. Called at the start of training.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.epoch_loop.restarting = False
        loop.reset_restart_stage()


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Make a checkpoint that is saved after training stopped in the middle of an epoch one of that epoch.

    Lightning counts the epoch as done, and would go on with the next one.
    """
    for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
        progress["processed"] = progress["completed"] = progress["started"] - 1


def stopped_in_epoch(trainer: pl.Trainer) -> bool:
    """Return whether training has stopped in the middle of an epoch: by ``max_steps``, ``max_time`` or a callback."""
    reached = 0 <= trainer.max_steps <= trainer.global_step
    return not trainer.is_last_batch and (trainer.should_stop or reached)


def completed_epochs(trainer: pl.Trainer) -> int:
    """Return the number of epochs that were trained to their end. Lightning counts one that was left open too."""
    if not stopped_in_epoch(trainer):
        return trainer.current_epoch
    return trainer.fit_loop.state_dict()["epoch_progress"]["current"]["started"] - 1


def disable_lightning_signal_handlers(trainer: Any) -> None:
    """Keep Lightning from installing signal handlers of its own.

    Its handler of SIGTERM ends the process with exit code 0, or waits forever for a rank that is elsewhere. Its handler
    for SLURM queues the job again, as a new run. Lightning installs them at the start of a stage, and no hook lies
    between that and the barrier of the stage, where others could be put in their place.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def take_child_processes(trainer: Any) -> list[Popen[bytes]]:
    """Return the ranks that Lightning has started on this machine, and keep it from watching them.

    When one of them fails, its watch kills this process too, before that has reported and recorded why.
    """
    started: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    taken = started.copy()
    started.clear()
    return taken
