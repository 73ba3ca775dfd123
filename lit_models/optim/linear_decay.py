"""A learning rate that falls in a straight line."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class LinearDecay(LRScheduler):
    """Lowers the learning rate in a straight line to zero, after every step.

    Args:
        optimizer: a parameter group may hold ``until``, the fraction of the training at which its rate reaches zero.
        total_steps: length of the training.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, last_epoch: int = -1) -> None:
        self.total_steps = total_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        # From the initial rate, not the previous one, so that a training with more epochs follows its new line.
        ends = [self.total_steps * group.get("until", 1.0) for group in self.optimizer.param_groups]
        return [rate * max(0.0, 1 - self.last_epoch / end) for rate, end in zip(self.base_lrs, ends, strict=True)]
