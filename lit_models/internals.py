"""What this project uses of Lightning and torch that is not in their documentation, each with the reason.

tests/test_internals.py fails with a clear word where a new version of a library lacks one of these.
"""

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
