"""Means over the examples of an epoch, whatever the sizes of its batches."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class EpochMeans:
    """Sums of any number of metrics, and how many examples went into them.

    On a CPU a sum is a Python float, which Python adds faster than torch does. On another device it is a tensor:
    reading a number there waits for the device.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}  # metric name -> sum over the examples; "count" -> number of examples

    def add(self, count: int, means: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Add the metrics of a batch of ``count`` examples: means over the batch, and sums over it."""
        totals = self.sums
        totals["count"] = totals.get("count", 0) + count
        for weight, metrics in ((count, means), (1, sums)):
            for name, value in metrics.items():
                if value.device.type == "cpu":
                    totals[name] = totals.get(name, 0.0) + weight * value.item()
                elif name in totals:
                    totals[name].add_(value.detach(), alpha=weight)
                else:
                    totals[name] = weight * value.detach().to(widest_dtype(value.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each metric over the examples added so far, float32; nothing where there was none."""
        count = self.sums.get("count", 0)
        if not count:  # such as of image files that are all broken
            return {}
        means = {name: total / count for name, total in self.sums.items() if name != "count"}
        return {name: torch.as_tensor(mean, dtype=torch.float32) for name, mean in means.items()}

    def reduce(self, all_reduce_sum: Callable[[Any], Any]) -> None:
        """Replace each sum by the sum over all processes."""
        self.sums = {name: all_reduce_sum(total) for name, total in self.sums.items()}

    def state_dict(self, all_reduce_sum: Callable[[Any], Any]) -> dict[str, float]:
        """Return the sums over all processes as plain numbers."""
        return {name: float(all_reduce_sum(total)) for name, total in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, float], device: torch.device) -> None:
        """Continue from sums that :meth:`state_dict` returned."""
        self.sums = dict(state)
        if device.type != "cpu":
            dtype = widest_dtype(device)
            for name in self.sums.keys() - {"count"}:
                self.sums[name] = torch.tensor(state[name], dtype=dtype, device=device)

    def clear(self) -> None:
        """Forget the sums, for the next epoch."""
        self.sums = {}


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums. In float32 a sum of 60,000 losses loses digits; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
