"""The state of all random number generators, as the plain values that a checkpoint may hold."""

import random
from typing import Any

import numpy as np
import torch

from runs.internals import check_mersenne_twister


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the generators of Python, numpy and torch: on the CPU and on the device."""
    numbers: Any = np.random.get_state()
    state: dict[str, Any] = {"python": random.getstate()}
    state["numpy"] = [torch.from_numpy(numbers[1].astype(np.int64)), *numbers[2:]]
    state["torch"] = torch.get_rng_state()
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue with random numbers from a state that :func:`get_random_state` returned.

    A run that goes on on another device continues with the CPU's generators alone.

    Raises:
        ValueError: it is no such state. The checkpoint may come from anyone.
    """
    try:
        version, keys, gauss = state["python"]
        random.setstate((version, tuple(keys), gauss))
        numbers, position, *rest = state["numpy"]
        if len(numbers) != 624 or not 0 <= position <= 624:  # numpy would read what lies behind them in memory
            raise ValueError(f"there is no position {position} in 624 numbers")
        np.random.set_state(("MT19937", numbers.numpy().astype(np.uint32), position, *rest))
        check_mersenne_twister(state["torch"])
        torch.set_rng_state(state["torch"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
        elif device.type == "mps" and "mps" in state:
            torch.mps.set_rng_state(state["mps"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the random_state in the checkpoint is none: {error}") from error
