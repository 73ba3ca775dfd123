"""Gives up on the hopeless runs of a search."""

from pathlib import Path

import lightning.pytorch as pl
import optuna

from sweeps.study import open_study


class Pruned(Exception):
    """The run was given up: others were better after as many epochs."""

    status = "pruned"


class OptunaPruning(pl.Callback):
    """Ends a run of a search when its metric is worse than the median of the earlier runs after as many epochs.

    Args:
        trial: number of the run in the study, which lies beside the run's folder.
        metric: measured in validation.
        startup_trials: runs that are trained to their end before any is given up.
        warmup_epochs: epochs that every run gets.

    Raises:
        Pruned: at the start of the next epoch, so that all of the one before is written.
        ValueError: the metric is not measured.
    """

    def __init__(self, trial: int, metric: str, startup_trials: int = 5, warmup_epochs: int = 1) -> None:
        self.number, self.metric = trial, metric
        self.pruner = optuna.pruners.MedianPruner(startup_trials, warmup_epochs)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._study = open_study(Path(trainer.default_root_dir).parent, pruner=self.pruner)
        trials = self._study.get_trials(deepcopy=False)
        self._id = next(trial._trial_id for trial in trials if trial.number == self.number)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            measured = ", ".join(trainer.callback_metrics)
            raise ValueError(f"callbacks.pruning.metric={self.metric} is not measured; there are {measured}")
        if trainer.is_global_zero:
            value = trainer.callback_metrics[self.metric].item()
            self._study._storage.set_trial_intermediate_value(self._id, trainer.current_epoch + 1, value)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reason = self._reason(trainer.current_epoch) if trainer.is_global_zero else None
        if reason := trainer.strategy.broadcast(reason):
            raise Pruned(reason)

    def _reason(self, epoch: int) -> str | None:
        """Why the run is given up after so many epochs, if it is."""
        trial = self._study._storage.get_trial(self._id)
        # A resumed run may do an epoch again that it has reported before: that is for its own end to judge.
        if trial.last_step != epoch or not self._study.pruner.prune(self._study, trial):
            return None
        value = trial.intermediate_values[epoch]
        return f"given up after epoch {epoch}: {self.metric} {value:.4g} is worse than the others' median"
