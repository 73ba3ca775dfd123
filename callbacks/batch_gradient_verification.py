"""Looks at a model for mistakes that a training would not show."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch

from callbacks import get_datamodule

log = logging.getLogger(__name__)


class BatchGradientVerification(pl.Callback):
    """Says so when the answer for one example depends on the others of its batch, as after a wrong ``view``.

    The net is asked as in evaluation, where batch normalisation mixes nothing.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        inputs = next(iter(get_datamodule(trainer).train_dataloader()))[0][:8]
        if len(inputs) < 2 or not inputs.is_floating_point():
            return
        inputs = inputs.to(next(pl_module.parameters()))  # device and type
        training = pl_module.net.training
        with torch.enable_grad():
            inputs = inputs.clone().requires_grad_()
            pl_module.net.eval()(inputs)[0].sum().backward()
        pl_module.net.train(training)
        pl_module.zero_grad()
        if inputs.grad[1:].any():
            log.warning("the answer for one example depends on others of its batch: is there a wrong view or reshape?")
        else:
            log.info("the answer for one example depends on that example alone, as it should")
