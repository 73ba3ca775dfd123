"""Stop training when the monitored metric no longer improves."""

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from callbacks import get_metrics_history, is_validated, possible_of
from runs import internals
from runs.monitor import Monitors, check_setting


class EarlyStopping(LightningEarlyStopping, Checkpoint):
    """Lightning's EarlyStopping on the metric that chooses ``best.ckpt``.

    Subclasses Checkpoint so that it runs when the metrics of the epoch are known.

    Args:
        monitor: another metric; None is that of the run.
        patience: number of measurements without an improvement.
        mode: of another metric, ``min`` or ``max``. None takes the one that the metric is known for.
        **options: see Lightning's class.
    """

    measures = ()

    def __init__(self, monitor: str | None = None, patience: int = 3, mode: str | None = None, **options: Any) -> None:
        self.asked, self.asked_mode = monitor, mode
        self.options = {"patience": patience, "check_on_train_epoch_end": True, **options}
        self._state: dict[str, Any] | None = None  # from a checkpoint, until the metric is known
        super().__init__("", **self.options)

    @property
    def state_key(self) -> str:
        # Lightning's holds the metric, which is not known yet when a checkpoint is read.
        return f"{type(self).__qualname__}{self.asked or ''}"

    def check_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise ValueError for a metric that this run cannot measure."""
        with _named():
            check_setting(self.asked, self.asked_mode)
            if self.asked:
                named = Monitors(self.asked, self.asked_mode or "min")  # a mistyped name has no known mode
                named.check_validation(is_validated(trainer, pl_module))
                named.check_possible(possible_of(trainer, pl_module))
                self._given(trainer)

    def _given(self, trainer: pl.Trainer) -> Monitors | None:
        """Return the other metric. Its mode is that of ``metrics=``, where it is one of those."""
        modes = get_metrics_history(trainer).monitors.modes
        return Monitors(self.asked, self.asked_mode, modes=modes) if self.asked else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state
        super().load_state_dict(state)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = get_metrics_history(trainer)
        if not self.monitor and history.validated:
            if given := self._given(trainer):
                with _named():
                    given.check_measured(history.measured)
            if best := given.resolve(history.measured) if given else history.monitor:
                super().__init__(best.name, mode=best.mode, **self.options)  # the worst score depends on the mode
                if self._state:
                    super().load_state_dict(self._state)
        value = history.rows[-1].get(self.monitor) if history.rows else None
        if value is None or internals.stopped_in_epoch(trainer):  # such as after an epoch without a validation
            return
        trainer.callback_metrics[self.monitor] = torch.tensor(value)  # the module may log it under another name
        super().on_train_epoch_end(trainer, pl_module)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Say in an error whose monitor and mode it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"callbacks.early_stopping.{error}") from error
