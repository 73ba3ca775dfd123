"""A loader that slices whole batches from one tensor, without worker processes or Python code per example."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, torch.Generator, int, Tensor], Tensor]  # inputs, generator, epoch, indices


class BatchLoader:
    """Yields ``(normalize(inputs[i]), targets[i])`` for each batch of indices ``i``.

    Lightning accepts it as a DataLoader: it has a length, a ``state_dict`` with its position, and a ``sampler`` with
    ``set_epoch``. The order is a function of (seed, epoch), so a resumed run gets the batches that it would have got.

    Args:
        inputs: ``(N, ...)``, on the device of the training.
        targets: ``(N, ...)``, on the same device.
        indices: the examples to serve, int64 ``(M,)``.
        batch_size: examples per step and process. The last batch holds the remainder.
        normalize: applied to each batch of inputs.
        augment: applied before ``normalize``, with a generator seeded by (seed, epoch, batch), the epoch, and the
            indices of the examples.
        seed: shuffles the indices anew in every epoch; None keeps their order.
        rank: rank of this process. Each takes its part of a global batch of ``batch_size * world_size`` examples.
        world_size: number of processes.
        smallest: a last batch with fewer examples per process than this is left out, unless it is the only one.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        indices: Tensor,
        batch_size: int,
        normalize: Callable[[Tensor], Tensor] | None = None,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        augment: Augment | None = None,
        smallest: int = 0,
    ) -> None:
        self.inputs, self.targets, self.indices = inputs, targets, indices
        self.batch_size, self.normalize, self.seed = batch_size, normalize, seed
        self.rank, self.world_size, self.augment, self.smallest = rank, world_size, augment, smallest
        self.epoch = 0
        self._position = (0, 0)  # the current epoch, and how many of its batches were served
        self._resumes = False  # whether the next iteration continues from there

    def __len__(self) -> int:
        return math.ceil((len(self.indices) - self.left_out) / (self.batch_size * self.world_size))

    @property
    def left_out(self) -> int:
        """How many examples of each epoch are not served, because their batch would be too small."""
        batches, rest = divmod(len(self.indices), self.batch_size * self.world_size)
        return rest if batches and rest < self.smallest * self.world_size else 0

    def __iter__(self) -> Iterator[Batch]:
        # A generator function, so that the work starts at the first next(): Lightning calls iter() before set_epoch().
        order = self._order()
        epoch, start = self._position
        if not self._resumes or epoch != self.epoch or start == len(self):
            start = 0
        self._resumes = False  # what was left unfinished, such as a sanity check, is not continued
        global_batch = self.batch_size * self.world_size
        batches = list(order[start * global_batch :].split(global_batch))[: len(self) - start]
        if self.world_size > 1:
            batches = [index.tensor_split(self.world_size)[self.rank] for index in batches]
        for number, (index, inputs, targets) in enumerate(self._fetch(batches), start):
            if self.augment is not None:
                generator = torch.Generator().manual_seed(derive_seed(self.seed or 0, self.epoch, number, self.rank))
                inputs = self.augment(inputs, generator, self.epoch, index)
            self._position = (self.epoch, number + 1)
            yield inputs if self.normalize is None else self.normalize(inputs), targets

    def _fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each batch of indices with its stored inputs and its targets."""
        for index in batches:
            yield index, self.inputs.index_select(0, index), self.targets.index_select(0, index)

    def _order(self) -> Tensor:
        if self.seed is None:
            return self.indices
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        permutation = torch.randperm(len(self.indices), generator=generator)
        return self.indices[permutation.to(self.indices.device)]

    @property
    def sampler(self) -> "BatchLoader":
        return self  # Lightning calls sampler.set_epoch

    batch_sampler = None  # Lightning tries its set_epoch first

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._position[0], "batch": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position, self._resumes = (state["epoch"], state["batch"]), True


def derive_seed(*numbers: int) -> int:
    """Return one seed derived from several numbers. The order counts: (1, 2) and (2, 1) give different seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
