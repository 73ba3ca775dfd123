"""Prune hopeless runs of a search."""

from pathlib import Path

import lightning.pytorch as pl
import optuna

from sweeps.study import open_study, open_trial, read_trial, storage_errors


class Pruned(Exception):
    """The run was pruned: its metric is worse than the median of the earlier runs at the same epoch."""

    status = "pruned"


class OptunaPruning(pl.Callback):
    """Ends a run of a search when its metric is worse than the median of the earlier runs at the same epoch.

    Args:
        trial: number of the run in the study, which is in the parent of the run directory.
        metric: name of a validation metric.
        startup_trials: runs that are trained to their end before any is pruned.
        warmup_epochs: epochs that every run is trained for.

    Raises:
        Pruned: at the start of the next epoch, so that all of the one before is written.
        ValueError: the metric is not measured.
    """

    def __init__(self, trial: int, metric: str, startup_trials: int = 5, warmup_epochs: int = 1) -> None:
        self.number, self.metric = trial, metric
        self.pruner = optuna.pruners.MedianPruner(startup_trials, warmup_epochs)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._sweep_dir = Path(trainer.default_root_dir).parent
            with storage_errors(self._sweep_dir):
                self._study = open_study(self._sweep_dir, pruner=self.pruner)
                self._trial = open_trial(self._study, self._sweep_dir, self.number)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            measured = ", ".join(trainer.callback_metrics)
            raise ValueError(f"callbacks.pruning.metric={self.metric} is not measured; there are {measured}")
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        with storage_errors(self._sweep_dir):
            # A resumed run may repeat an epoch whose value is already stored.
            if epoch not in read_trial(self._study, self.number).intermediate_values:
                self._trial.report(trainer.callback_metrics[self.metric].item(), epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reason = self._reason(trainer.current_epoch) if trainer.is_global_zero else None
        if reason := trainer.strategy.broadcast(reason):
            raise Pruned(reason)

    def _reason(self, epoch: int) -> str | None:
        """Return why the run is pruned after an epoch, or None if it is not."""
        trial = read_trial(self._study, self.number)
        # A resumed run may repeat an epoch that it has already reported and was not pruned after.
        if trial.last_step != epoch or not self._study.pruner.prune(self._study, trial):
            return None
        value = trial.intermediate_values[epoch]
        return f"pruned after epoch {epoch}: {self.metric} {value:.4g} is worse than the median of the earlier runs"
