"""Save the last and the best checkpoint of a run."""

import logging
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    Timer,
)

from callbacks import at_optimizer_step, find_metrics_history, get_datamodule, is_validated, possible_of
from runs import internals
from runs.checkpoint import read_checkpoint
from runs.files import RUN_FILES, atomic_write, remove_leftovers
from runs.format import check_positive_int, format_metric, pluralize
from runs.monitor import Monitors
from runs.protocols import Exact
from runs.random_state import get_random_state, set_random_state
from runs.result import git_revision
from runs.training_state import check_optimizer_state

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` after every epoch, and ``best.ckpt`` after the best one.

    The monitored metric of :class:`MetricsHistory` tells which epoch is best. There is no ``best.ckpt`` where it is
    not measured.

    A module that does not keep its own random numbers (:class:`runs.protocols.Exact`) resumes with those of the
    checkpoint.

    Args:
        dirpath: directory of the checkpoints.
        config: config of the run, as plain values. Every checkpoint holds it.
        every_n_steps: also saves ``last.ckpt`` within an epoch, every n gradient steps.
    """

    measures = ()

    def __init__(self, dirpath: Path, config: dict[str, Any], every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            check_positive_int("checkpoint.every_n_steps", every_n_steps)
        self.dirpath, self.config, self.every_n_steps = dirpath, config, every_n_steps
        self.last, self.best = dirpath / "last.ckpt", dirpath / "best.ckpt"
        self.git_revision = git_revision() or "of unknown revision"
        self.best_score: float | None = None
        self._best_by: list[str] | None = None  # the metric and mode of the score
        self._random_state: dict[str, Any] | None = None  # from a checkpoint, until training starts
        self._trained = False  # whether there was anything left to train
        self._stop_pending = False  # training was told to stop, and stops after the running optimizer step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step, self._trained = trainer.global_step, True
        if self._random_state:
            set_random_state(self._random_state, trainer.strategy.root_device)
            self._random_state = None
        if internals.resumed_in_epoch(trainer) and not isinstance(pl_module, Exact):
            done, total = trainer.fit_loop.batch_idx + 1, trainer.num_training_batches
            log.warning(
                "resumed after batch %d of %s of epoch %d: the other batches follow, but what %s logs of this epoch is "
                "measured on those alone (ExactModule keeps the whole epoch)",
                *(done, total, trainer.current_epoch + 1, type(pl_module).__name__),
            )
        internals.start_next_epoch(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_load_state_dict_pre_hook(check_optimizer_state)
        remove_leftovers(self.dirpath, self.last.name, self.best.name)
        remove_leftovers(self.dirpath.parent, *RUN_FILES)
        remove_leftovers(self.dirpath.parent / "pictures", "*.png")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_after_step(trainer)
        if every := self.every_n_steps:
            before, self._last_step = self._last_step, trainer.global_step  # a batch may take several steps
            if before // every < self._last_step // every and at_optimizer_step(trainer, batch_idx):
                trainer.save_checkpoint(self.last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._stop_after_step(trainer)

    def _stop_after_step(self, trainer: pl.Trainer) -> None:
        """Postpone a stop between the batches of one optimizer step. No checkpoint holds their gradients."""
        if not (trainer.should_stop or self._stop_pending):
            return
        self._stop_pending = not trainer.is_last_batch and not at_optimizer_step(trainer, trainer.fit_loop.batch_idx)
        trainer.should_stop = not self._stop_pending

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if internals.stopped_in_epoch(trainer):
            trainer.save_checkpoint(self.last)
            step, epoch = trainer.global_step, internals.completed_epochs(trainer) + 1
            log.info(
                "stopped after step %d, in epoch %d; resume= with a higher limit continues from there", step, epoch
            )
            return
        history = find_metrics_history(trainer)
        monitor, score = (history.monitor, history.score) if history else (None, None)
        if monitor is None or score is None:
            trainer.save_checkpoint(self.last)
            return
        by = [monitor.name, monitor.mode]
        if self._best_by not in (None, by):  # the run was resumed with another monitor
            self.best_score = None
        self._best_by = by
        if not monitor.is_better(score, self.best_score):
            trainer.save_checkpoint(self.last)
            return
        # best.ckpt is first: after a kill between the two, a resumed run repeats this epoch and loses nothing.
        self.best_score = score
        trainer.save_checkpoint(self.best)
        if trainer.is_global_zero:
            with atomic_write(self.last) as temporary:  # no link: what writes into one must not change the other
                shutil.copyfile(self.best, temporary)

    def check_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise ValueError for settings and callbacks with which nothing is trained, or no run can be kept."""
        if trainer.limit_train_batches == 0:
            raise ValueError("trainer.limit_train_batches=0 leaves nothing to train on; null takes all batches")
        for stage in ("train", "val", "test"):
            limit = getattr(trainer, f"limit_{stage}_batches")
            if 0 < limit < 1:
                batches = len(getattr(get_datamodule(trainer), f"{stage}_dataloader")())
                if batches > 0 and batches * limit < 1:
                    setting = f"trainer.limit_{stage}_batches={limit}"
                    raise ValueError(f"{setting} of {pluralize(batches, 'batch', 'batches')} is none; 1 takes one")
        if trainer.val_check_interval == 0:
            raise ValueError(
                "trainer.val_check_interval=0 must be a number of batches or a part of an epoch, such as 0.5; "
                "trainer.limit_val_batches=0 leaves the validation out"
            )
        if internals.starts_copies(trainer):
            raise ValueError(
                "trainer.strategy: processes that are copies of this one cannot give it the run back; "
                "trainer=ddp starts each with the command"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            if isinstance(callback, BatchSizeFinder | LearningRateFinder):
                setting = (
                    "data.batch_size=32,64,128" if isinstance(callback, BatchSizeFinder) else "optimizer.lr=1e-3,1e-2"
                )
                raise ValueError(
                    f"{type(callback).__name__} trains on trial and goes back, which a run here cannot: "
                    f"python train.py -m {setting} compares several"
                )
            if isinstance(callback, DeviceStatsMonitor | LearningRateMonitor) and not trainer.loggers:
                raise ValueError(f"{type(callback).__name__} writes to a logger: logger=tensorboard, not logger=none")
            if type(callback) is EarlyStopping and callback.monitor:
                given = Monitors(callback.monitor, callback.mode)
                given.check_validation(is_validated(trainer, pl_module))
                given.check_possible(possible_of(trainer, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _explain_stop(trainer)
        history = find_metrics_history(trainer)
        if history and self.best_score is None and not internals.stopped_in_epoch(trainer):
            log.info("there is no best.ckpt: %s", history.explain_no_best())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let ``last.ckpt`` hold the weights that are tested, where they were changed after the last epoch.

        Stochastic weight averaging does so. A resumed run continues with the weights of the last step.
        """
        if not self.last.is_file() or (self._trained and not trainer.is_global_zero):
            return
        checkpoint, tested = read_checkpoint(self.last), pl_module.state_dict()
        saved = checkpoint["state_dict"]
        if saved.keys() == tested.keys() and all(_same(saved[name], tested[name]) for name in saved):
            return
        if not self._trained:  # killed before its test
            pl_module.load_state_dict(saved)
            return
        checkpoint |= {"state_dict": tested, "training_state_dict": saved}
        trainer.strategy.save_checkpoint(checkpoint, self.last)
        log.info("last.ckpt holds the weights that are tested, which were changed after the last step of the training")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config
        if internals.stopped_in_epoch(trainer):
            internals.reopen_epoch(checkpoint)
        # The config makes the module again. Arguments that save_hyperparameters() keeps may be no plain values.
        for key in (pl_module.CHECKPOINT_HYPER_PARAMS_KEY, pl_module.CHECKPOINT_HYPER_PARAMS_NAME):
            checkpoint.pop(key, None)
        if not isinstance(pl_module, Exact):
            checkpoint["random_state"] = get_random_state(trainer.strategy.root_device)
        versions = f"torch {torch.__version__}, lightning {pl.__version__}"
        checkpoint["made_by"] = f"lit-classics {self.git_revision}, {versions}"

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._random_state = checkpoint.get("random_state")
        if weights := checkpoint.get("training_state_dict"):
            pl_module.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best_score, "by": self._best_by}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_score, self._best_by = state["best"], state.get("by")


def _explain_stop(trainer: pl.Trainer) -> None:
    """Log why the training stopped before its last epoch, where an early stopping or the time ended it."""
    epochs, limit = internals.completed_epochs(trainer), trainer.max_epochs
    if internals.stopped_in_epoch(trainer) or not trainer.should_stop or (limit is not None and 0 <= limit <= epochs):
        return
    for callback in trainer.early_stopping_callbacks:
        if callback.stopped_epoch != epochs - 1:
            continue
        metric, best = callback.monitor, callback.best_score.item()
        if callback.wait_count >= callback.patience:
            waited = pluralize(callback.wait_count, "measurement")
            shown = format_metric(metric, best)
            log.info("stopped early, after epoch %d: %s was not better than %s for %s", epochs, metric, shown, waited)
        else:
            log.info("stopped early, after epoch %d: %s has reached a limit of its early stopping", epochs, metric)
    if any(isinstance(timer, Timer) and _is_over(timer) for timer in trainer.callbacks):  # type: ignore[attr-defined]
        log.info("stopped early, after epoch %d: its time is over; resume= with a higher limit continues", epochs)


def _is_over(timer: Timer) -> bool:
    remaining = timer.time_remaining()
    return remaining is not None and remaining <= 0


def _same(saved: Any, tested: Any) -> bool:
    if not (isinstance(saved, torch.Tensor) and isinstance(tested, torch.Tensor)):
        return True  # not weights
    return torch.equal(saved.nan_to_num(), tested.cpu().nan_to_num())
