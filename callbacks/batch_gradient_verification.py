"""Detect a net that mixes the examples of a batch."""

import logging

import lightning.pytorch as pl
import torch

from callbacks import get_datamodule

log = logging.getLogger(__name__)


class BatchGradientVerification(pl.Callback):
    """Warns when the output for one example depends on other examples of its batch, as after a wrong ``view``.

    The net is in evaluation mode for this, where batch normalization mixes nothing.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batch = next(iter(get_datamodule(trainer).train_dataloader()))
        inputs = (batch[0] if isinstance(batch, (list, tuple)) else batch)[:8]
        if len(inputs) < 2 or not inputs.is_floating_point():
            return
        inputs = inputs.to(next(pl_module.parameters()))  # device and dtype
        was_training = pl_module.training
        with torch.enable_grad():
            inputs = inputs.clone().requires_grad_()
            pl_module.eval()(inputs)[0].sum().backward()
        pl_module.train(was_training)
        pl_module.zero_grad()
        if inputs.grad[1:].any():
            log.warning("the output for one example depends on others of its batch: is there a wrong view or reshape?")
        else:
            log.info("the output for one example depends on that example alone, as it should")
