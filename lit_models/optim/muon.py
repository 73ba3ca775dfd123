"""Muon: momentum with orthogonalized updates."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from runs import internals


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
            if weights := [weight for weight in group["params"] if weight.grad is not None]:
                self._step(weights, group)
        return loss

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        # One call for all weights: on a GPU calls for each take longer than what they compute.
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if group["weight_decay"]:
            gradients = list(internals.foreach_add(gradients, weights, alpha=group["weight_decay"]))
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        internals.foreach_mul_(momenta, group["momentum"])
        internals.foreach_add_(momenta, gradients)
        updates = list(internals.foreach_add(gradients, momenta, alpha=group["momentum"]))  # Nesterov's
        if group["kind"] == "filters":
            updates = self._orthogonalize(updates)
            norms = list(internals.foreach_norm(weights))
            internals.foreach_clamp_min_(norms, 1e-7)  # a layer may begin with zeros
            internals.foreach_div_(norms, [len(weight) ** 0.5 for weight in weights])
            internals.foreach_div_(weights, norms)
        internals.foreach_add_(weights, updates, alpha=-group["lr"] * group["ratio"])

    def _orthogonalize(self, updates: list[Tensor]) -> list[Tensor]:
        """Return :func:`newton_schulz` of each update as a matrix. Those of the same shape are computed together."""
        shapes: defaultdict[torch.Size, list[int]] = defaultdict(list)
        for number, update in enumerate(updates):
            shapes[update.shape].append(number)
        results = list(updates)
        for shape, numbers in shapes.items():
            matrices = torch.stack([updates[number].flatten(1) for number in numbers])
            for number, matrix in zip(numbers, newton_schulz(matrices, self.ns_steps), strict=True):
                results[number] = matrix.view(shape)
        return results


def newton_schulz(matrices: Tensor, steps: int = 3) -> Tensor:
    """Return approximations of matrices with the same singular vectors and all singular values 1.

    Most of the results' singular values are between 0.5 and 1.3. They come from a Newton-Schulz iteration with a
    polynomial of degree 5, whose coefficients Jordan chose for speed.

    Args:
        matrices: ``(N, m, n)``. On a GPU the results are computed in bfloat16, which is enough.
        steps: iterations.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value is above 1
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    for _ in range(steps):
        gram = wide @ wide.mT
        factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = torch.baddbmm(wide, factor, wide, beta=3.4445)
    return (wide if x.shape[1] <= x.shape[2] else wide.mT).to(matrices.dtype)
