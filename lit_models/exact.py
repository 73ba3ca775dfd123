"""The base class that makes any training procedure exact and fast. The procedures are in the other modules."""

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from torch import Tensor

from lit_models.epoch_means import EpochMeans, widest_dtype
from lit_models.gradient_steps import GradientSteps
from runs import internals
from runs.threads import TINY_BATCH

log = logging.getLogger(__name__)


class ExactModule(GradientSteps):
    """A LightningModule that resumes to the bit, reports means over examples, and has a fast gradient step.

    A subclass is written as Lightning's documentation has it, and calls :meth:`accumulate` in each of its steps:

    - It reports the means over the examples of an epoch as ``{train,val,test}/<metric>``, over all processes.
    - The random numbers of a training step depend only on the seed and the number of the batch, and those of a
      validation or a test only on the seed.
    - A checkpoint in the middle of an epoch holds what the epoch has accumulated.
    - Convolutions run channels-last, which takes a third less time.

    Args:
        seed: of the random numbers that a step draws (dropout, noise).
        steps_per_batch: see :class:`GradientSteps`.
        allow_divergence: continue training when a loss is not finite.

    Raises:
        FloatingPointError: a training loss is not finite. The update that would ruin the weights is not made (on a
            GPU it is not saved).
    """

    def __init__(self, seed: int = 1, steps_per_batch: int = 1, allow_divergence: bool = False) -> None:
        super().__init__(steps_per_batch)
        self.seed, self.allow_divergence = seed, allow_divergence
        self._epochs: defaultdict[str, EpochMeans] = defaultdict(EpochMeans)  # one for each stage

    # --- means over the examples of an epoch -------------------------------------------------------------------------

    def accumulate(
        self, stage: str, count: int, means: Mapping[str, Tensor], sums: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add a batch to what ``stage`` reports at the end of the epoch.

        Of the evaluations that L-BFGS makes in a step, the first one counts.

        Args:
            stage: ``train``, ``val`` or ``test``.
            count: examples in the batch.
            means: scalars that are means over the batch, such as losses. In training they must be finite.
            sums: scalars that are sums over the batch, such as the number of correct predictions.
        """
        if stage == "train":
            self._check_finite(means)
            if self._evaluates_again:
                return
        self._epochs[stage].add(count, means, sums or {})

    def means(self, stage: str) -> dict[str, Tensor]:
        """Return the means over the examples that this process has seen in the running epoch."""
        return {f"{stage}/{name}": mean for name, mean in self._epochs[stage].compute().items()}

    def on_train_epoch_end(self) -> None:
        if internals.stopped_in_epoch(self.trainer):
            return  # the checkpoint keeps the sums until the epoch is resumed
        self._log_epoch("train")
        if self._fast:
            self._step_schedulers("epoch")

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    def _log_epoch(self, stage: str) -> None:
        self._epochs[stage].reduce(self._all_reduce_sum)
        means = self.means(stage)
        if self._epochs[stage].sums and not means:
            log.warning("%s/: nothing is measured, because no example could be read", stage)
        if stage == "train":  # before this epoch is saved
            for name, mean in means.items():
                self._raise_if_not_finite(name.partition("/")[2], mean.item())
        self.log_dict(means, logger=False)  # MetricsHistory passes them to the loggers, once per epoch
        self._epochs[stage].clear()

    def _all_reduce_sum(self, number: Any) -> Tensor:
        """Return the sum of a number over all processes."""
        # A copy, because Lightning adds in place.
        number = torch.as_tensor(number, dtype=widest_dtype(self.device), device=self.device).clone()
        return self.trainer.strategy.reduce(number, reduce_op="sum")

    def _check_finite(self, losses: Mapping[str, Tensor]) -> None:
        # Reading a loss waits for the GPU, and several processes, which must stop together, wait for each other. So
        # this checks only every log_every_n_steps steps.
        # L-BFGS reads every loss itself.
        if self._distributed or (self.device.type != "cpu" and not self._evaluates_again):
            every = self.trainer.log_every_n_steps or 50  # type: ignore[attr-defined]  # Lightning declares it nowhere
            if self.global_step % every:
                return
        if self._distributed:
            losses = {name: self._all_reduce_sum(loss.detach()) for name, loss in losses.items()}
        for name, loss in losses.items():
            self._raise_if_not_finite(name, loss.item())

    def _raise_if_not_finite(self, name: str, value: float) -> None:
        if not (self.allow_divergence or math.isfinite(value)):
            remedy = ""
            if self.uses_lbfgs:
                remedy = ", or optimizer.line_search_fn=strong_wolfe"
            elif self._fast or self.automatic_optimization:  # Lightning clips no gradients of manual optimization
                remedy = ", or gradient clipping with trainer.gradient_clip_val=1"
            raise FloatingPointError(
                f"the training {name} is {value} after step {self.global_step}; try a smaller optimizer.lr{remedy}"
            )

    # --- random numbers ----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._seed_device(self._step_seed + internals.total_batch_idx(self.trainer))

    def on_validation_epoch_start(self) -> None:
        self._seed_device(_derive_seed(self.seed, self.global_rank, "evaluation"))

    def on_test_epoch_start(self) -> None:  # all processes test on all examples
        self._seed_device(_derive_seed(self.seed, 0, "evaluation"))

    def _seed_device(self, seed: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long

    # --- weights and checkpoints -------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        # Before a checkpoint is read, whose weights and optimizer state would otherwise be rounded to float32.
        try:
            trainer = self.trainer
        except RuntimeError:  # there is none: the weights are loaded to predict
            return
        if isinstance(trainer.precision_plugin, (DoublePrecision, HalfPrecision)):
            trainer.precision_plugin.convert_module(self)
        data = trainer.datamodule if trainer.training else None  # type: ignore[attr-defined]
        size = getattr(data, "batch_size", None) or math.inf
        self._tiny_batches = self._fast and trainer.strategy.root_device.type == "cpu" and size <= TINY_BATCH
        self.to(memory_format=self._memory_format())

    def _memory_format(self) -> torch.memory_format:
        return torch.contiguous_format if self._tiny_batches else torch.channels_last

    def in_memory_format(self, inputs: Tensor) -> Tensor:
        """Return images ``(B, C, H, W)`` in the memory format of the weights, and anything else as it is."""
        if inputs.dim() != 4:
            return inputs
        tiny = self._tiny_batches and self.training
        return inputs.contiguous(memory_format=torch.contiguous_format if tiny else torch.channels_last)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        internals.share_step_counter(self.trainer)
        self._step_seed = _derive_seed(self.seed, self.global_rank)
        # The sums were read from a checkpoint before the module was on its device. They are those of all processes, so
        # only rank zero continues with them.
        for epoch in self._epochs.values():
            state = {name: 0 if self.global_rank else total for name, total in epoch.sums.items()}
            epoch.load_state_dict(state, self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = self._epochs["train"].state_dict(self._all_reduce_sum)
        for name, total in sums.items():
            self._raise_if_not_finite(name, total)
        for name, weight in self.named_parameters():  # the loss before the last step tells nothing about that step
            if not weight.isfinite().all():
                self._raise_if_not_finite(f"weight {name}", weight[~weight.isfinite()][0].item())
        checkpoint["epoch_sums"] = sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if sums := checkpoint.get("epoch_sums"):
            self._epochs["train"].load_state_dict(sums, torch.device("cpu"))
        # The fused optimizers assume that the weights and their state have the same memory format.
        for optimizer in checkpoint["optimizer_states"]:
            for state in optimizer["state"].values():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.dim() == 4:
                        state[name] = value.contiguous(memory_format=self._memory_format())
        for state in checkpoint["lr_schedulers"]:
            for name in internals.SCHEDULE_LENGTH_KEYS:
                state.pop(name, None)


def _derive_seed(*parts: int | str) -> int:
    """Return one seed derived from numbers and words."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())
