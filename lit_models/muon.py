"""Muon, and the schedule that goes with it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Muon(Optimizer):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) for filters and matrices, with the weights brought
    to one size before each step; for everything else SGD with Nesterov momentum.

    Args:
        params: parameters, of which those with fewer than two dimensions are for SGD, or groups with a ``kind``:
            ``filters`` for Muon, ``biases`` and ``head`` for SGD.
        lr, momentum: of Muon.
        bias_lr, head_lr: of SGD. Their ratios to ``lr`` are kept, so that a schedule holds for all three.
        sgd_momentum: of SGD.
        weight_decay: the share of its parameters that SGD takes away in a step at its full rate, before momentum.
        iterations: of Newton and Schulz.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        bias_lr: float,
        head_lr: float,
        sgd_momentum: float,
        weight_decay: float = 0.0,
        iterations: int = 3,
    ) -> None:
        groups: list[Any] = list(params)
        if isinstance(groups[0], Tensor):
            filters = [weight for weight in groups if weight.dim() > 1]
            biases = [weight for weight in groups if weight.dim() < 2]
            groups = [{"kind": "filters", "params": filters}, {"kind": "biases", "params": biases}]
        kinds = {"filters": {"ratio": 1.0, "momentum": momentum, "weight_decay": 0.0}}
        for kind, rate in (("biases", bias_lr), ("head", head_lr)):
            decay = weight_decay / rate if rate else 0.0
            kinds[kind] = {"ratio": rate / lr if lr else 0.0, "momentum": sgd_momentum, "weight_decay": decay}
        groups = [kinds[group["kind"]] | group for group in groups if group["params"]]
        super().__init__(groups, {"lr": lr, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = tuple(weight.grad for weight in weights)
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, gradients)
            updates = torch._foreach_add(gradients, momenta, alpha=group["momentum"])  # Nesterov's
            if group["kind"] == "filters":
                iterations = group["iterations"]
                updates = tuple(orthogonal(update.flatten(1), iterations).view_as(update) for update in updates)
                for weight in weights:
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
            torch._foreach_add_(weights, updates, alpha=-group["lr"] * group["ratio"])
        return loss


def orthogonal(matrix: Tensor, iterations: int = 3) -> Tensor:
    """Nearly the matrix with the same singular vectors whose singular values are all 1: most are between 0.5 and 1.3,
    after an iteration of Newton and Schulz with a polynomial of degree 5 whose coefficients Jordan chose for speed.

    Args:
        matrix: ``(m, n)``. On a GPU the answer is computed in bfloat16, which is enough.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / (x.norm() + 1e-7)  # no singular value is above 1
    wide = x if x.shape[0] <= x.shape[1] else x.mT
    for _ in range(iterations):
        gram = wide @ wide.mT
        factor = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = torch.addmm(wide, factor, wide, beta=3.4445)
    return (wide if x.shape[0] <= x.shape[1] else wide.mT).to(matrix.dtype)


class LinearDecay(LRScheduler):
    """From the learning rate straight down to zero, changed every step.

    Args:
        optimizer: a group of its parameters may say in ``until`` at which share of the training it is at zero.
        total_steps: of the training.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, last_epoch: int = -1) -> None:
        self.total_steps = total_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        # From the start and not from the rate before: a training that is made longer follows its new line.
        ends = [self.total_steps * group.get("until", 1.0) for group in self.optimizer.param_groups]
        return [rate * max(0.0, 1 - self.last_epoch / end) for rate, end in zip(self.base_lrs, ends, strict=True)]
