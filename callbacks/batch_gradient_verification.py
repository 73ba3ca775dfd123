"""Detect a net that mixes the examples of a batch."""

import logging

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks import get_datamodule

log = logging.getLogger(__name__)


class BatchGradientVerification(pl.Callback):
    """Warns when the output for one example depends on other examples of its batch, as after a wrong ``view``.

    The net is in evaluation mode for this, where batch normalization mixes nothing.
    """

    measures = ()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batch = next(iter(get_datamodule(trainer).train_dataloader()))
        inputs = (batch[0] if isinstance(batch, (list, tuple)) else batch)[:8]
        parameter = next(pl_module.parameters(), None)
        if parameter is None or len(inputs) < 2 or not inputs.is_floating_point():
            return
        inputs = inputs.to(parameter)  # device and dtype
        was_training = pl_module.training
        try:
            with torch.enable_grad():
                inputs = inputs.clone().requires_grad_()
                outputs = pl_module.eval()(inputs)
                # Of several outputs, such as a reconstruction and the codes, the first.
                rows = outputs if isinstance(outputs, Tensor) else next(iter(outputs))
                rows[0].sum().backward()
        except Exception as error:  # its steps may call it with something else
            log.info(
                "whether examples are mixed is not checked: a batch of inputs is not what forward takes (%r)", error
            )
            return
        finally:
            pl_module.train(was_training)
            pl_module.zero_grad()
        if inputs.grad is not None and inputs.grad[1:].any():
            log.warning("the output for one example depends on others of its batch: is there a wrong view or reshape?")
        else:
            log.info("the output for one example depends on that example alone, as it should")
