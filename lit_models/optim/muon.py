"""Muon: momentum with orthogonalized updates."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """Muon for filters and matrices, and SGD with Nesterov momentum for everything else.

    The weights that Muon trains are scaled to a fixed norm before each step (Jordan 2024,
    https://kellerjordan.github.io/posts/muon, and the airbench94_muon speedrun).

    Args:
        params: parameters, of which those with fewer than two dimensions go to SGD, or groups with a ``kind``:
            ``filters`` for Muon, ``biases`` and ``head`` for SGD.
        lr, momentum: settings of Muon.
        bias_lr, head_lr: learning rates of SGD. A schedule scales them with ``lr``.
        sgd_momentum: momentum of SGD.
        weight_decay: the fraction of its parameters that SGD subtracts in a step at its full rate, before momentum.
        ns_steps: Newton-Schulz iterations.
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
        ns_steps: int = 3,
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
        super().__init__(groups, {"lr": lr})
        self.ns_steps = ns_steps

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)
        return loss

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient = weight.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        if "momentum" not in self.state[weight]:
            self.state[weight]["momentum"] = torch.zeros_like(weight)
        momentum = self.state[weight]["momentum"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(momentum, alpha=group["momentum"])  # Nesterov's
        if group["kind"] == "filters":
            update = newton_schulz(update.flatten(1), self.ns_steps).view_as(update)
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(1e-7))  # a layer may begin with zeros
        weight.add_(update, alpha=-group["lr"] * group["ratio"])


def newton_schulz(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return an approximation of the matrix with the same singular vectors and all singular values 1.

    Most of the result's singular values are between 0.5 and 1.3. It comes from a Newton-Schulz iteration with a
    polynomial of degree 5, whose coefficients Jordan chose for speed.

    Args:
        matrix: ``(m, n)``. On a GPU the result is computed in bfloat16, which is enough.
        steps: iterations.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / (x.norm() + 1e-7)  # no singular value is above 1
    wide = x if x.shape[0] <= x.shape[1] else x.mT
    for _ in range(steps):
        gram = wide @ wide.mT
        factor = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = torch.addmm(wide, factor, wide, beta=3.4445)
    return (wide if x.shape[0] <= x.shape[1] else wide.mT).to(matrix.dtype)
