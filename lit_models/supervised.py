"""Supervised learning: one step function for regression and classification, training, validation and test."""

import contextlib
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_models.losses import BinaryCrossEntropy, CrossEntropyOfSoftmax

Batch = tuple[Tensor, Tensor]

# Of so few examples oneDNN's convolutions take more time to prepare than they save, and torch's own, in torch's default
# memory format, take a quarter less time for a step of LeNet; with 8 examples oneDNN wins.
TINY_BATCH = 4

LOSSES_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, BinaryCrossEntropy, CrossEntropyOfSoftmax)
LOSSES_OF_NUMBERS = (nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss)


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # a descriptor
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]


class Supervised(pl.LightningModule):
    """Minimises ``loss(net(inputs), targets)`` and reports ``{train,val,test}/loss``, the mean over the examples.

    Args:
        net: maps a batch of inputs to predictions.
        loss: mean loss of predictions and targets.
        optimizer: makes an optimizer from parameters.
        scheduler: makes a scheduler from an optimizer, or None for a constant learning rate.
        seed: of the random numbers that a step draws (dropout).
        steps_per_batch: gradient steps on each batch, in one call of :meth:`training_step`: for a net of a few weights
            Lightning's work around a call costs more than the step.
        allow_divergence: trains on with a loss that is not finite.

    Raises:
        FloatingPointError: the training loss is not finite. The update that would spoil the weights is not made (on a
            GPU: is not saved).
    """

    by_hand = False  # whether a subclass has a gradient step of its own

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        seed: int = 1,
        steps_per_batch: int = 1,
        allow_divergence: bool = False,
    ) -> None:
        super().__init__()
        if steps_per_batch < 1:
            raise ValueError(f"model.steps_per_batch={steps_per_batch} must be at least 1")
        # Convolutions take a third less time in this memory format; other layers do not notice it.
        self.net, self.loss = net.to(memory_format=torch.channels_last), loss
        self._tiny_batches = self._several = False
        self._outside_autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed, self.steps_per_batch, self.allow_divergence = seed, steps_per_batch, allow_divergence
        self._sums: dict[str, dict[str, Any]] = {}  # stage -> name -> sum over the examples seen in this epoch

    def check_targets(self, classes: bool) -> None:
        """Raises ValueError where the loss is for classes and the targets are numbers, or the other way round."""
        for takes_classes, losses in ((True, LOSSES_OF_CLASSES), (False, LOSSES_OF_NUMBERS)):
            if isinstance(self.loss, losses) and takes_classes != classes:
                learns, has = ("classes", "numbers") if takes_classes else ("numbers", "classes")
                loss = type(self.loss).__name__
                raise ValueError(
                    f"this model learns {learns} (its loss is {loss}), and the targets of the data are {has}; "
                    f"model={'mlp' if classes else 'mlp_regression'} learns {has}"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning writes this name some forty times a step, and nn.Module's way of writing takes 2 us each time.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, inputs: Tensor) -> Tensor:  # (B, *shape) to logits (B, classes), or values (B, 1)
        if inputs.dim() == 4:
            tiny = self._tiny_batches and self.training
            inputs = inputs.contiguous(memory_format=torch.contiguous_format if tiny else torch.channels_last)
        return self.net(inputs)

    # --- one step, whatever the stage -----------------------------------------------------------------------------

    def measure(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What to sum over the examples besides the loss: name -> scalar tensor."""
        return {}

    def step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch and the predictions; adds both to what this epoch has seen."""
        inputs, targets = batch
        predictions = self(inputs)
        # Of several processes one may get nothing of the last batch: its gradient is zero.
        loss = self.loss(predictions, targets) if len(targets) else predictions.sum()
        if stage == "train":
            self._watch(loss)
        self._add(stage, len(targets), loss.detach(), self.measure(predictions.detach(), targets))
        return loss, predictions

    def _add(self, stage: str, count: int, loss: Tensor, others: dict[str, Tensor]) -> None:
        """Adds the mean loss of ``count`` examples, and what was measured, to the sums of the epoch."""
        sums = self._sums.setdefault(stage, {})
        if not sums:
            sums |= {"count": 0} | {name: self._sum() for name in ("loss", *others)}
        sums["count"] += count
        if loss.device.type == "cpu":
            sums["loss"] += count * loss.item()
            for name, value in others.items():
                sums[name] += value.item()
        else:
            sums["loss"].add_(loss, alpha=count)
            for name, value in others.items():
                sums[name].add_(value)

    def _sum(self, start: float = 0.0) -> float | Tensor:
        """A number on a CPU, where Python adds faster than torch; a tensor on a GPU, where to read it is to wait."""
        return start if self.device.type == "cpu" else self._exact(start)

    def _exact(self, number: Any) -> Tensor:
        # In float32 the sum of 60,000 losses would round; Apple's GPUs have no float64.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.as_tensor(number, dtype=dtype, device=self.device)

    def means(self, stage: str) -> dict[str, Tensor]:
        """The means over the examples that this process has seen in the running epoch."""
        sums = self._sums.get(stage, {})
        means = {name: total / sums["count"] for name, total in sums.items() if name != "count"}
        return {f"{stage}/{name}": torch.as_tensor(mean, dtype=torch.float32) for name, mean in means.items()}

    def _log_epoch(self, stage: str) -> None:
        sums = self._sums.get(stage, {})
        sums.update({name: self._total(number) for name, number in sums.items()})
        if stage == "train" and sums:
            self._stop_if_not_finite(self.means(stage)["train/loss"].item())  # before this epoch is saved
        self.log_dict(self.means(stage), logger=False)  # the loggers hear it from callbacks.record, once an epoch
        sums.clear()

    def _total(self, number: Any) -> Tensor:
        """The sum over all processes."""
        # Lightning adds in place.
        return self.trainer.strategy.reduce(self._exact(number).clone(), reduce_op="sum")

    # --- training ------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[pl.Callback]:
        # Lightning asks this first. Its own work around a gradient step takes as long as the step of a small net does:
        # it is for those who need it. The others get the three lines of `gradient_step`.
        self._several = self.trainer.world_size > 1
        self._outside_autocast = contextlib.nullcontext
        if isinstance(plugin := self.trainer.precision_plugin, MixedPrecision):
            # Lightning has all of training_step under autocast, which is for the forward pass.
            self._outside_autocast = functools.partial(torch.autocast, plugin.device, enabled=False)
        self.automatic_optimization = bool(reason := self._needs_help())
        if reason and self.by_hand:
            raise ValueError(f"{type(self).__name__} makes its gradient steps itself, which does not go with {reason}")
        if reason and self.steps_per_batch > 1:
            steps = f"model.steps_per_batch={self.steps_per_batch}"
            raise ValueError(f"{steps} does not go with {reason}; model.steps_per_batch=1 does")
        return []

    def _needs_help(self) -> str | None:
        """What needs Lightning's automatic optimization."""
        trainer = self.trainer
        if trainer.world_size > 1:
            return "several processes (trainer.devices, trainer.num_nodes)"
        if trainer.gradient_clip_val or trainer.accumulate_grad_batches > 1:
            return "trainer.gradient_clip_val and trainer.accumulate_grad_batches"
        if getattr(trainer.precision_plugin, "scaler", None):  # of gradients in float16
            return f"trainer.precision={trainer.precision}"
        inside = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            if isinstance(callback, (GradientAccumulationScheduler, StochasticWeightAveraging)) or any(
                is_overridden(hook, callback) for hook in inside
            ):
                return f"the callback {type(callback).__name__}"
        return None

    def configure_model(self) -> None:
        # Asked before the weights and the optimizer's state are read from a checkpoint.
        trainer = self.trainer
        on_cpu = trainer.strategy.root_device.type == "cpu"
        data = trainer.datamodule if trainer.training else None  # type: ignore[attr-defined]
        size = data.batch_size if data else None
        self._tiny_batches = on_cpu and not self.automatic_optimization and (size or math.inf) <= TINY_BATCH
        self.net.to(memory_format=self._memory_format())

    def _memory_format(self) -> torch.memory_format:
        return torch.contiguous_format if self._tiny_batches else torch.channels_last

    def on_fit_start(self) -> None:
        # Steps are counted in one place, whoever makes them: a run may go on in the other way.
        loop = self.trainer.fit_loop.epoch_loop
        loop.manual_optimization.optim_step_progress = loop.automatic_optimization.optim_progress.optimizer.step
        digest = hashlib.blake2b(repr((self.seed, self.global_rank)).encode(), digest_size=7).digest()
        self._step_seed = int.from_bytes(digest)
        for sums in self._sums.values():  # of a checkpoint, which is read before the module is on its device
            # They are those of all processes: the first one goes on with them.
            totals = {name: 0.0 if self.global_rank else float(total) for name, total in sums.items()}
            sums.update({name: total if name == "count" else self._sum(total) for name, total in totals.items()})

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # The random numbers of a batch depend on (seed, its number) alone: a run that is resumed draws the same ones.
        seed = self._step_seed + self.trainer.fit_loop.epoch_loop.total_batch_idx
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.automatic_optimization:
            loss, _ = self.step(batch, "train")
            return loss * self._share(len(batch[1]), batch_idx) if self._several else loss
        (optimizer,) = self.trainer.optimizers
        with _without_onednn() if self._tiny_batches else contextlib.nullcontext():
            for _ in range(self.steps_per_batch):
                loss = self.gradient_step(batch, optimizer)
                self._step_schedulers("step")
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for counter in (progress.total, progress.current):
            counter.ready += self.steps_per_batch
            counter.completed += self.steps_per_batch
        return loss

    # Lightning looks at the signature before every step, and Python works it out anew each time unless it is here.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def _share(self, examples: int, batch_idx: int) -> float:
        """What makes DistributedDataParallel's mean over the processes one over the examples, of which they may have
        unequal numbers in the last batch."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        processes, total = self.trainer.world_size, len(data.train_indices)
        size = (data.batch_size or total) * processes
        return processes * examples / min(size, total - batch_idx * size)

    def gradient_step(self, batch: Batch, optimizer: Optimizer) -> Tensor:
        """One step without Lightning's help; returns the loss before it."""
        optimizer.zero_grad()
        loss, _ = self.step(batch, "train")
        with self._outside_autocast():
            loss.backward()
            optimizer.step()
        return loss.detach()

    def _step_schedulers(self, interval: str) -> None:
        """What Lightning does by itself in automatic optimization."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval:
                scheduler: LRScheduler = config.scheduler
                scheduler.step()

    def _watch(self, loss: Tensor) -> None:
        # On a GPU a look at the loss waits for the card; several processes, who have to stop together, wait for each
        # other: it is had once in a while.
        if self._several or loss.device.type != "cpu":
            every = self.trainer.log_every_n_steps or 50  # type: ignore[attr-defined]
            if self.global_step % every:
                return
        if self._several:
            loss = self._total(loss.detach())
        self._stop_if_not_finite(loss.item())

    def _stop_if_not_finite(self, loss: float) -> None:
        if not (self.allow_divergence or math.isfinite(loss)):
            raise FloatingPointError(
                f"the training loss is {loss} after step {self.global_step}; try a smaller optimizer.lr, "
                "or gradient clipping with trainer.gradient_clip_val=1"
            )

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")
        if not self.automatic_optimization:
            self._step_schedulers("epoch")

    # --- validation and test --------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.step(batch, "val")[1]

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.step(batch, "test")[1]

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    # --- optimizer and scheduler ----------------------------------------------------------------------------------

    def parameter_groups(self) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        """What the optimizer is made for: the parameters, or groups of them with settings of their own."""
        return self.parameters()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameter_groups())
        if self.scheduler is None:
            return optimizer
        # A schedule that must know how long training is takes its step after every batch, any other after every epoch.
        lengths = {"total_steps", "T_max"} & set(inspect.signature(self.scheduler).parameters)
        total = int(self.trainer.estimated_stepping_batches) * self.steps_per_batch
        # To count them Lightning has set up the loader, too early for the place in a checkpoint: it does that again.
        self.trainer.fit_loop._combined_loader = None
        scheduler = self.scheduler(optimizer, **dict.fromkeys(lengths, total))
        return [optimizer], [{"scheduler": scheduler, "interval": "step" if lengths else "epoch"}]

    # --- checkpoints in the middle of an epoch --------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = self._sums.get("train", {})
        checkpoint["epoch_sums"] = {name: float(self._total(number)) for name, number in sums.items()}
        self._stop_if_not_finite(checkpoint["epoch_sums"].get("loss", 0.0))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["epoch_sums"]:
            self._sums["train"] = checkpoint["epoch_sums"]
        # The fused optimizers take for granted that the weights and their state lie in memory in the same order.
        for optimizer in checkpoint["optimizer_states"]:
            for state in optimizer["state"].values():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.dim() == 4:
                        state[name] = value.contiguous(memory_format=self._memory_format())
        # The place in a schedule is restored; its length is that of the training from now on.
        for state in checkpoint["lr_schedulers"]:
            for name in ("total_steps", "_schedule_phases", "T_max"):
                state.pop(name, None)


class Classifier(Supervised):
    """Supervised learning of classes: reports ``{train,val,test}/acc``, the share that is right, as well.

    The net returns logits: ``(B, num_classes)``, or ``(B, 1)`` for the log-odds of class 1.
    """

    def measure(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if targets.is_floating_point():  # a vector, not a class
            return {}
        return {"acc": (self.classes(predictions) == targets).count_nonzero()}

    @staticmethod
    def classes(logits: Tensor) -> Tensor:
        """The most probable class of each row of logits, int64 ``(B,)``."""
        return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Of each class, ``(B, C)``; log-odds ``(B, 1)`` give two."""
        return torch.cat([-logits, logits], 1).sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
