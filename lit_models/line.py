"""The gradient of a line's squared error, by hand and by autograd. ``model=line`` leaves both to Lightning."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_models.supervised import Batch, Supervised


class LineByAutograd(Supervised):
    """Gradient steps as a tutorial writes them (``GradientSteps.gradient_step``): zero_grad, ``loss.backward()``, step.

    The net is :class:`lit_models.nets.RawLine`, and the loss the mean squared error.
    """

    measures = Supervised.measures
    own_gradient_step = True


class LineByHand(LineByAutograd):
    """Gradient steps with derivatives that are written out: autograd is off.

    For ``loss = mean((w x + b - y)^2)`` they are ``2 mean((w x + b - y) x)`` for w and ``2 mean(w x + b - y)`` for b.
    """

    measures = Supervised.measures

    @torch.no_grad()
    def gradient_step(self, batch: Batch, batch_idx: int, optimizer: Optimizer) -> Tensor:
        loss, predictions = self.model_step(batch, "train")
        inputs, targets = batch
        errors = predictions - targets  # (B, 1)
        self.net.weight.grad = 2 * (errors * inputs).mean()
        self.net.bias.grad = 2 * errors.mean()
        optimizer.step()
        return loss
