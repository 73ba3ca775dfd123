"""Undocumented parts of Lightning and torch that this project uses, each with the reason.

tests/test_internals.py fails with a clear message when a new version of a library lacks one of these.
"""

import struct
from subprocess import Popen
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

# Parts of a scheduler's state that depend on the length of the training. They are not restored, so that a training
# with more epochs follows the schedule of its new length. OneCycleLR has no public name for its phases.
SCHEDULE_LENGTH_KEYS = ("total_steps", "T_max", "_schedule_phases")

# The functions of Lightning that read a checkpoint's loops, optimizers, schedulers and callbacks.
RESTORING = ("restore_training_state", "restore_callbacks")

# With these torch's own optimizers treat a list of tensors in one call. On a GPU a call for each tensor takes longer
# than what it computes.
foreach_add, foreach_add_, foreach_mul_ = torch._foreach_add, torch._foreach_add_, torch._foreach_mul_
foreach_norm, foreach_clamp_min_, foreach_div_ = torch._foreach_norm, torch._foreach_clamp_min_, torch._foreach_div_


def copy_layer_versions(state_dict: dict[str, Any], copy: dict[str, Any]) -> None:
    """Give the copy of a state dict the versions of its layers, by which torch reads those of its earlier releases.

    They have no public name. Another word there makes torch take the stored tensors as they are for the weights.
    """
    if isinstance(layers := vars(state_dict).get("_metadata"), dict):
        versions = {name: dict.get(layer, "version") for name, layer in dict.items(layers) if isinstance(layer, dict)}
        copy._metadata = {  # type: ignore[attr-defined]
            name: {"version": version} for name, version in versions.items() if type(version) is int
        }


def check_mersenne_twister(state: Tensor) -> None:
    """Raise ValueError for a state of torch's generator on the CPU in which the position is not one of its 624 numbers.

    torch would return what lies behind them in memory. In the state ``left`` numbers follow the one at ``next``, and a
    new generator has 1 and 0. No public function reads them.
    """
    if state.shape != torch.get_rng_state().shape:
        raise ValueError("it has another size")
    left, position = struct.unpack_from("=i4xQ", state.numpy().tobytes(), 8)
    if (left, position) != (1, 0) and not (1 <= left <= 624 and left + position == 625):
        raise ValueError(f"there is no position {position} in 624 numbers")


def share_step_counter(trainer: pl.Trainer) -> None:
    """Let automatic and manual optimization share one counter of gradient steps.

    Lightning has a counter for each, and a resumed run may use the other kind of optimization.
    """
    loop = trainer.fit_loop.epoch_loop
    loop.manual_optimization.optim_step_progress = loop.automatic_optimization.optim_progress.optimizer.step


def count_steps(trainer: pl.Trainer, steps: int) -> None:
    """Count gradient steps that Lightning did not make itself, so that ``trainer.global_step`` includes them."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for counter in (progress.total, progress.current):
        counter.ready += steps
        counter.completed += steps


def total_batch_idx(trainer: pl.Trainer) -> int:
    """Return the number of this batch in the whole training. ``batch_idx`` begins again in every epoch."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def forget_train_loader(trainer: pl.Trainer) -> None:
    """Have Lightning set up the training loader again.

    Estimating the number of steps sets it up too early: the checkpoint's position in the epoch is not read yet.
    """
    trainer.fit_loop._combined_loader = None


def start_next_epoch(trainer: pl.Trainer) -> None:
    """Start the next epoch after a checkpoint from the end of an epoch was read.

    With ``max_steps`` Lightning would end that epoch a second time, without a batch. Called at the start of training.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.epoch_loop.restarting = False
        loop.reset_restart_stage()


def update_plateau_schedulers(trainer: pl.Trainer, epoch: int, metrics: dict[str, float]) -> None:
    """Make the step of the schedulers that follow a metric, after a checkpoint from the end of an epoch was read.

    Lightning makes that step only after such a checkpoint is saved, and leaves it out in a resumed training.

    Args:
        trainer: at the start of training.
        epoch: the number of that epoch, from 1.
        metrics: of that epoch, under the names that the module logged them by.
    """
    loop = trainer.fit_loop
    if not (loop.restarted_on_epoch_end or loop.resumed_on_epoch_end):
        return
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for config in trainer.lr_scheduler_configs:
        due = config.reduce_on_plateau and config.interval == "epoch" and epoch % config.frequency == 0
        if due and config.monitor in metrics:
            value: Any = trainer.callback_metrics[config.monitor]
            loop.epoch_loop.scheduler_progress.increment_ready()
            trainer.lightning_module.lr_scheduler_step(config.scheduler, value)
            loop.epoch_loop.scheduler_progress.increment_completed()


def end_resumed_epoch(trainer: pl.Trainer) -> None:
    """Let Lightning step the schedulers that follow a metric after a resumed epoch too, as after any other."""
    trainer.fit_loop._restarting = False  # the public name sets it to True where max_steps limits the training


def resumed_in_epoch(trainer: pl.Trainer) -> bool:
    """Return whether training continues in the middle of an epoch. Asked at the start of training."""
    return trainer.fit_loop.restarted_mid_epoch


def epoch_results(trainer: pl.Trainer) -> tuple[dict[str, Tensor], set[str]]:
    """Return what the module has logged over the running stage, and the names that Lightning passes to the loggers.

    ``trainer.callback_metrics`` also holds those of other stages, and the last value of a metric that is only logged
    in each step.
    """
    results = trainer._results
    metrics = results.metrics(False) if results else {"callback": trainer.callback_metrics, "log": {}}  # after a test
    values = metrics["callback"]
    forked = {name for name in values if name.endswith("_epoch") and name.removesuffix("_epoch") in values}
    return {name: value for name, value in values.items() if name not in forked}, set(metrics["log"])


def step_results(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return what the module has logged in this step, and does not log over the epoch."""
    results = trainer._results
    names = {one.meta.name for one in results.values() if one.meta.on_step and not one.meta.on_epoch} if results else ()
    values = results.metrics(True)["callback"] if results else {}
    return {name: value for name, value in values.items() if name in names and value.numel() == 1}


def fit_loop_state() -> dict[str, Any]:
    """Return the state of a training that has not begun, as Lightning writes it into a checkpoint."""
    from lightning.pytorch.loops.fit_loop import _FitLoop

    trainer: Any = None
    return _FitLoop(trainer).state_dict()


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Mark the epoch in a checkpoint as unfinished, where training stopped in its middle.

    Lightning counts that epoch as done, and would start the next one on resume.
    """
    for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
        progress["processed"] = progress["completed"] = progress["started"] - 1


def stopped_in_epoch(trainer: pl.Trainer) -> bool:
    """Return whether training has stopped in the middle of an epoch: by ``max_steps``, ``max_time`` or a callback."""
    reached = 0 <= trainer.max_steps <= trainer.global_step
    return not trainer.is_last_batch and (trainer.should_stop or reached)


def completed_epochs(trainer: pl.Trainer) -> int:
    """Return the number of completed epochs. Lightning also counts one that training stopped in."""
    if not stopped_in_epoch(trainer):
        return trainer.current_epoch
    return trainer.fit_loop.state_dict()["epoch_progress"]["current"]["started"] - 1


def disable_lightning_signal_handlers(trainer: Any) -> None:
    """Keep Lightning from installing signal handlers of its own.

    Its handler of SIGTERM ends the process with exit code 0, or waits forever for a rank that is not at a barrier. Its
    handler for SLURM requeues the job as a new run. Lightning installs them at the start of a stage, and no hook that
    could replace them runs between that and the barrier of the stage.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def starts_copies(trainer: Any) -> bool:
    """Return whether the other processes are copies of this one, by spawn or fork, and not commands of their own."""
    launcher = trainer.strategy.launcher
    return launcher is not None and not hasattr(launcher, "cluster_environment")  # only commands are given their ranks


def take_child_processes(trainer: Any) -> list[Popen[bytes]]:
    """Return the processes that Lightning has started for the other ranks of this machine, and stop its watch on them.

    When one of them fails, the watch kills this process too, before it has reported and recorded the reason.
    """
    started: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    taken = started.copy()
    started.clear()
    return taken
