"""Stop training when the monitored metric no longer improves."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from callbacks import get_metrics_history, is_validated, possible_of
from runs import internals
from runs.monitor import Monitors


class EarlyStopping(LightningEarlyStopping, Checkpoint):
    """Lightning's EarlyStopping on the metric that chooses ``best.ckpt``.

    Subclasses Checkpoint so that it runs when the metrics of the epoch are known.

    Args:
        monitor: another metric; None is that of the run.
        patience: number of measurements without an improvement.
        mode: of another metric, ``min`` or ``max``.
        **options: see Lightning's class.
    """

    measures = ()

    def __init__(self, monitor: str | None = None, patience: int = 3, mode: str = "min", **options: Any) -> None:
        self.options = {"patience": patience, "check_on_train_epoch_end": True, **options}
        self.given = Monitors(monitor, mode) if monitor else None
        self._state: dict[str, Any] | None = None  # from a checkpoint, until the metric is known
        super().__init__("", mode=mode, **self.options)

    @property
    def state_key(self) -> str:
        # Lightning's holds the metric, which is not known yet when a checkpoint is read.
        return f"{type(self).__qualname__}{self.given.asked if self.given else ''}"

    def check_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise ValueError for a metric that this run cannot measure."""
        if self.given:
            self.given.check_validation(is_validated(trainer, pl_module))
            self.given.check_possible(possible_of(trainer, pl_module))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state
        super().load_state_dict(state)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = get_metrics_history(trainer)
        if not self.monitor and history.validated:
            if self.given:
                self.given.check_measured(history.measured)
            if best := self.given.resolve(history.measured) if self.given else history.monitor:
                super().__init__(best.name, mode=best.mode, **self.options)  # the worst score depends on the mode
                if self._state:
                    super().load_state_dict(self._state)
        value = history.rows[-1].get(self.monitor) if history.rows else None
        if value is None or internals.stopped_in_epoch(trainer):  # such as after an epoch without a validation
            return
        trainer.callback_metrics[self.monitor] = torch.tensor(value)  # the module may log it under another name
        super().on_train_epoch_end(trainer, pl_module)
