"""Optimizers and learning rate schedules that torch.optim does not have, or that are written out to be read."""

from lit_models.optim.linear_decay import LinearDecay
from lit_models.optim.muon import Muon
from lit_models.optim.plain_sgd import PlainSGD

__all__ = ["LinearDecay", "Muon", "PlainSGD"]
