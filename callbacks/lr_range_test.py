"""The learning-rate range test."""

import logging
import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from callbacks import batch_loss

log = logging.getLogger(__name__)

SMALLEST, LARGEST = 1e-6, 10.0
STEPS = 100
SMOOTHING = 0.9  # how much of the mean loss a step leaves
STOPS_ABOVE = 4  # times the lowest mean loss


class LRRangeTest(pl.Callback):
    """Raises the learning rate from batch to batch, evenly on a logarithmic scale, until the loss grows.

    Smith 2017, arXiv:1506.01186. The proposed rate is that of the steepest fall of the smoothed loss.

    Raises:
        ValueError: the model has several optimizers, or none with a learning rate, or its steps return no loss.
    """

    measures = ()

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []  # smoothed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        name, number = type(pl_module).__name__, len(trainer.optimizers)
        if number != 1:
            raise ValueError(f"debug=lr tests the rate of one optimizer, and {name} has {number}")
        if any("lr" not in group for group in trainer.optimizers[0].param_groups):
            raise ValueError(f"debug=lr: {type(trainer.optimizers[0]).__name__} has no learning rate")
        self._rates = np.geomspace(SMALLEST, LARGEST, STEPS).tolist()
        self._mean = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._rates[min(len(self.rates), STEPS - 1)]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (loss := batch_loss(outputs)) is None:
            raise ValueError(f"debug=lr: a step of {type(pl_module).__name__} returns no loss")
        mean = trainer.strategy.reduce(torch.as_tensor(loss).detach().clone(), reduce_op="mean")  # over the ranks
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * float(mean) * trainer.accumulate_grad_batches
        smoothed = self._mean / (1 - SMOOTHING ** (len(self.losses) + 1))
        lowest = min(self.losses, default=smoothed)
        grows = not math.isfinite(smoothed) or (len(self.losses) > 10 and smoothed > STOPS_ABOVE * lowest > 0)
        if not grows:
            self.rates.append(self._rates[len(self.rates)])
            self.losses.append(smoothed)
        trainer.should_stop = grows or len(self.rates) == STEPS

    def suggestion(self) -> float | None:
        """Return the rate, to two digits, at which the loss falls most steeply; None where it never falls."""
        if len(self.losses) < 12:
            return None
        lowest = int(np.argmin(self.losses))
        slopes = np.gradient(self.losses, np.log(self.rates))[5 : lowest + 1]  # the first means are of few batches
        if not len(slopes) or slopes.min() >= 0:
            return None
        return float(f"{self.rates[5 + int(np.argmin(slopes))]:.1e}")
