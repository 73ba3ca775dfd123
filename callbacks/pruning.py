"""Prune hopeless runs of a search."""

from pathlib import Path

import lightning.pytorch as pl
import optuna

from callbacks import get_metrics_history
from sweeps.study import open_study, open_trial, read_trial, storage_errors


class Pruned(Exception):
    """The run was pruned: its metric is worse than the median of the earlier runs at the same epoch."""

    status = "pruned"


class OptunaPruning(pl.Callback):
    """Ends a run of a search when its metric is worse than the median of the earlier runs at the same epoch.

    The metric is the monitored one, which the search is about.

    Args:
        trial: number of the run in the study, which is in the parent of the run directory.
        startup_trials: runs that are trained to their end before any is pruned.
        warmup_epochs: epochs that every run is trained for.

    Raises:
        Pruned: at the start of the next epoch, so that all of the one before is written.
    """

    measures = ()

    def __init__(self, trial: int, startup_trials: int = 5, warmup_epochs: int = 1) -> None:
        self.number = trial
        self.pruner = optuna.pruners.MedianPruner(startup_trials, warmup_epochs)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._sweep_dir = Path(trainer.default_root_dir).parent
            with storage_errors(self._sweep_dir):
                self._study = open_study(self._sweep_dir, pruner=self.pruner)
                self._trial = open_trial(self._study, self._sweep_dir, self.number)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)
        reason = self._reason(trainer) if trainer.is_global_zero else None
        if reason := trainer.strategy.broadcast(reason):
            raise Pruned(reason)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        """Report the last epoch to the study."""
        history = get_metrics_history(trainer)
        if not trainer.is_global_zero or history.score is None:
            return
        epoch = int(history.rows[-1]["epoch"])
        with storage_errors(self._sweep_dir):
            # A resumed run may repeat an epoch whose value is already stored.
            if epoch and epoch not in read_trial(self._study, self.number).intermediate_values:
                self._trial.report(history.score, epoch)

    def _reason(self, trainer: pl.Trainer) -> str | None:
        """Return why the run is pruned after the last epoch, or None if it is not."""
        trial, epoch = read_trial(self._study, self.number), trainer.current_epoch
        # A resumed run may repeat an epoch that it has already reported and was not pruned after.
        if trial.last_step != epoch or not self._study.pruner.prune(self._study, trial):
            return None
        history, value = get_metrics_history(trainer), trial.intermediate_values[epoch]
        name = history.monitor.name if history.monitor else ""
        return f"pruned after epoch {epoch}: {name} {value:.4g} is worse than the median of the earlier runs"
