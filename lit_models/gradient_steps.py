"""Gradient steps: by Lightning where something needs its automatic optimization, else by a few fast lines."""

import contextlib
import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from runs import internals
from runs.format import check_positive_int


class GradientSteps(pl.LightningModule):
    """Gradient steps on the loss that ``training_step`` returns, and the schedules of their learning rates.

    Lightning's overhead in a gradient step is as long as the step of a small net. Where nothing needs Lightning's step,
    :meth:`gradient_step` replaces it. With several processes Lightning makes the steps, and the gradient is the
    mean over the examples, not over the processes.

    A subclass with several optimizers sets ``automatic_optimization = False`` in its constructor and makes its own
    steps in ``training_step``, as with plain Lightning.

    Args:
        steps_per_batch: gradient steps on each batch, in one call of ``training_step``. For a net of a few weights
            Lightning's overhead per call is longer than the step.
    """

    own_gradient_step = False  # whether the steps must be those of gradient_step, never Lightning's

    def __init__(self, steps_per_batch: int = 1) -> None:
        super().__init__()
        check_positive_int("model.steps_per_batch", steps_per_batch)
        self.steps_per_batch = steps_per_batch
        self._fast = self._distributed = self._tiny_batches = False
        self._followed = ""  # the metric that ReduceLROnPlateau follows
        self._evaluates_again = False  # whether L-BFGS has the loss of the running step already
        self._outside_autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def check_trainer(self, trainer: pl.Trainer) -> None:
        """Raise ValueError for settings of a Trainer that the gradient steps cannot be combined with.

        ``train.py`` calls this before a run writes anything, and a fit in its first hook.
        """
        name, steps = type(self).__name__, f"model.steps_per_batch={self.steps_per_batch}"
        check_choices(getattr(self, "optimizer", None), getattr(self, "scheduler", None), trainer)
        lbfgs = isinstance(make := getattr(self, "optimizer", None), functools.partial) and make.func is LBFGS
        manual = not (self._fast or self.automatic_optimization)  # the subclass makes them, in its training_step
        if lbfgs and (manual or self.own_gradient_step):
            raise ValueError(f"{name} makes its own gradient steps and cannot be combined with L-BFGS")
        if manual and self.steps_per_batch > 1:
            raise ValueError(f"{steps} cannot be combined with {name}, which makes its own gradient steps")
        if manual:
            return
        if reason := self._requires_automatic_optimization(trainer):
            if self.own_gradient_step:
                raise ValueError(f"{name} makes its own gradient steps and cannot be combined with {reason}")
            if self.steps_per_batch > 1:
                raise ValueError(f"{steps} cannot be combined with {reason}; model.steps_per_batch=1 can")
            if lbfgs:  # Lightning would take the loss of the last evaluation for that of the step
                raise ValueError(
                    f"L-BFGS evaluates the loss several times in a step and cannot be combined with {reason}"
                )

    def configure_callbacks(self) -> list[pl.Callback]:
        # Here because it is the first hook that Lightning calls.
        if self.trainer.training:  # the Trainer of an evaluation says nothing about the training
            self.check_trainer(self.trainer)
        self._distributed = self.trainer.world_size > 1
        self.__dict__.pop("training_step", None)  # left by an earlier fit
        if self._fast:
            self._fast, self.automatic_optimization = False, True
        if not self.automatic_optimization:
            return []
        if self._requires_automatic_optimization(self.trainer):
            if self._distributed:
                self.training_step = self._weighted_training_step  # type: ignore[method-assign]
            return []
        self._fast, self.automatic_optimization = True, False
        self.training_step = self._fast_training_step  # type: ignore[method-assign]
        self._outside_autocast = contextlib.nullcontext
        if isinstance(plugin := self.trainer.precision_plugin, MixedPrecision):
            # Lightning runs all of training_step under autocast, which is meant for the forward pass only.
            self._outside_autocast = functools.partial(torch.autocast, plugin.device, enabled=False)
        return []

    def _requires_automatic_optimization(self, trainer: pl.Trainer) -> str | None:
        """Return what needs Lightning's automatic optimization, or None."""
        if trainer.world_size > 1:
            return "several processes (trainer.devices, trainer.num_nodes)"
        if trainer.gradient_clip_val or trainer.accumulate_grad_batches > 1:
            return "trainer.gradient_clip_val and trainer.accumulate_grad_batches"
        if getattr(trainer.precision_plugin, "scaler", None):  # of gradients in float16
            return f"trainer.precision={trainer.precision}"
        hooks = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            methods = {hook: getattr(callback, hook) for hook in hooks}
            if isinstance(callback, (GradientAccumulationScheduler, StochasticWeightAveraging)) or any(
                getattr(method, "__func__", method) is not getattr(pl.Callback, hook)
                for hook, method in methods.items()
            ):
                return f"the callback {type(callback).__name__}"
        return None

    @property
    def uses_lbfgs(self) -> bool:
        """Whether an optimizer evaluates the loss several times in a step."""
        return any(isinstance(optimizer, LBFGS) for optimizer in self.trainer.optimizers)

    def on_fit_start(self) -> None:
        if not self.uses_lbfgs:
            return
        if self.own_gradient_step or not (self._fast or self.automatic_optimization):
            raise ValueError(f"{type(self).__name__} makes its own gradient steps and cannot be combined with L-BFGS")
        if not self._fast:  # Lightning would take the loss of the last evaluation for that of the step
            reason = self._requires_automatic_optimization(self.trainer)
            raise ValueError(f"L-BFGS evaluates the loss several times in a step and cannot be combined with {reason}")

    def gradient_step(self, batch: Any, batch_idx: int, optimizer: Optimizer) -> Tensor:
        """Make one gradient step on the loss that ``training_step`` returns, and return that loss.

        L-BFGS evaluates the loss at several points. That of the first one, where the step begins, is returned.
        """
        if isinstance(optimizer, LBFGS):
            return self._lbfgs_step(batch, batch_idx, optimizer)
        optimizer.zero_grad()
        loss = self._training_loss(batch, batch_idx)
        with self._outside_autocast():
            loss.backward()
            optimizer.step()
        return loss.detach()

    def _lbfgs_step(self, batch: Any, batch_idx: int, optimizer: LBFGS) -> Tensor:
        def evaluate() -> Tensor:
            optimizer.zero_grad()
            loss = self._training_loss(batch, batch_idx)
            self._evaluates_again = True
            with self._outside_autocast():
                loss.backward()
            for parameter in self.parameters():  # L-BFGS takes views of them; those of convolutions are channels-last
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.contiguous()
            return loss

        try:
            first: Any = optimizer.step(evaluate)
            self._evaluate_without_learning(batch, batch_idx)  # its last update comes after its last evaluation
        finally:
            self._evaluates_again = False
        return first.detach()

    @torch.no_grad()
    def _evaluate_without_learning(self, batch: Any, batch_idx: int) -> None:
        """Compute the loss of a batch, which reports one that is not finite, and change nothing, such as batch norm."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        self._training_loss(batch, batch_idx)
        for module, training in modes.items():
            module.training = training

    def _training_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Call the class's ``training_step``, which :meth:`configure_callbacks` may have replaced on the instance."""
        output: Any = type(self).training_step(self, batch, batch_idx)
        return output["loss"] if isinstance(output, dict) else output

    def _fast_training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if len(self.trainer.optimizers) != 1:
            raise ValueError(
                f"{type(self).__name__} has {len(self.trainer.optimizers)} optimizers: set automatic_optimization = "
                "False in its constructor, and make the steps in training_step"
            )
        (optimizer,) = self.trainer.optimizers
        with self._convolution_backend():
            for _ in range(self.steps_per_batch):
                loss = self.gradient_step(batch, batch_idx, optimizer)
                self._step_schedulers("step")
        internals.count_steps(self.trainer, self.steps_per_batch)
        return loss

    def _convolution_backend(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for the convolutions of a step: without oneDNN for tiny batches."""
        if not self._tiny_batches:
            return contextlib.nullcontext()
        unchanged: Any = None  # the defaults warn on machines without an Intel GPU, and take 17 us where this takes 6
        return torch.backends.mkldnn.flags(enabled=False, allow_tf32=unchanged, fp32_precision=unchanged)

    def _weighted_training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._training_loss(batch, batch_idx) * self._ddp_loss_weight(self.batch_examples(batch), batch_idx)

    def batch_examples(self, batch: Any) -> int:
        """Return the number of examples in a batch: a tensor, or a tuple of tensors."""
        return len(batch if isinstance(batch, Tensor) else batch[0])

    def _ddp_loss_weight(self, examples: int, batch_idx: int) -> float:
        """Return the weight of this process's loss in DistributedDataParallel's mean over the processes.

        With it the mean is one over the examples, of which the last batch may give the processes unequal numbers.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "train_indices"):
            return 1.0
        processes, total = self.trainer.world_size, len(data.train_indices)
        size = (data.batch_size or total) * processes
        return processes * examples / min(size, total - batch_idx * size)

    def schedule(
        self, scheduler: Callable[..., LRScheduler], optimizer: Optimizer, optimizers: int = 1
    ) -> dict[str, Any]:
        """Return Lightning's entry for a scheduler.

        A scheduler with an argument for the length of the training (``total_steps``, ``T_max``) gets it, and steps
        after every gradient step; ``total_steps`` may be set to more than that. Any other steps after every epoch.
        ``ReduceLROnPlateau`` follows the loss, or the accuracy with ``mode=max``, of the validation if there is one.

        Args:
            scheduler: makes the scheduler of an optimizer.
            optimizer: whose learning rate it changes.
            optimizers: number of those that step on each batch. ``trainer.max_steps`` counts the steps of all.
        """
        lengths = _lengths(scheduler)
        if not lengths:
            made: Any = scheduler(optimizer)
            entry = {"scheduler": made, "interval": "epoch"}
            if isinstance(made, ReduceLROnPlateau):
                data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning declares it nowhere
                validates = self.trainer.limit_val_batches and data is not None and len(data.val_dataloader())
                self._followed = f"{'val' if validates else 'train'}/{'loss' if made.mode == 'min' else 'acc'}"
                if validates:
                    entry["frequency"] = self.trainer.check_val_every_n_epoch
                if self.automatic_optimization:  # else _step_schedulers follows it
                    entry["monitor"] = self._followed
            return entry
        steps = self.trainer.estimated_stepping_batches * self.steps_per_batch
        internals.forget_train_loader(self.trainer)
        if 0 <= (limit := self.trainer.max_steps / optimizers) < steps:
            # Training stops after the batch that reaches the limit.
            steps = math.ceil(limit / self.steps_per_batch) * self.steps_per_batch
        if not math.isfinite(steps):  # of a loader without a length
            raise ValueError(UNKNOWN_LENGTH)
        set_length = getattr(scheduler, "keywords", {}).get("total_steps")
        if set_length is not None and set_length < steps:
            raise ValueError(f"scheduler.total_steps={set_length} is below the {steps:,} steps of the training")
        length = int(steps) if set_length is None else set_length
        return {"scheduler": scheduler(optimizer, **dict.fromkeys(lengths, length)), "interval": "step"}

    def _step_schedulers(self, interval: str) -> None:
        """Step the schedulers, as Lightning does in automatic optimization."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval or (self.trainer.current_epoch + 1) % config.frequency:
                continue
            scheduler: Any = config.scheduler
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif (value := self.trainer.callback_metrics.get(self._followed)) is not None:
                scheduler.step(value)
            else:
                measured = ", ".join(self.trainer.callback_metrics)
                raise ValueError(f"the scheduler follows {self._followed}, which is not measured; there are {measured}")


# Arguments of schedulers that say how long the training is, in units of their own.
REFUSED_LENGTHS = ("T_max", "epochs", "steps_per_epoch")
UNKNOWN_LENGTH = (
    "this scheduler needs the length of the training: give trainer.max_epochs or trainer.max_steps, "
    "or choose scheduler=none or scheduler=step"
)


def check_choices(optimizer: Any, scheduler: Any, trainer: pl.Trainer) -> None:
    """Check the arguments of an optimizer and a scheduler before anything is made with them.

    Raises:
        ValueError: one does not take its arguments, or the scheduler gets the length of the training from elsewhere, or
            needs one that the training does not have.
    """
    lengths = _lengths(scheduler)
    for name, make, later in (("optimizer", optimizer, ()), ("scheduler", scheduler, lengths)):
        if not isinstance(make, functools.partial):
            continue
        if given := [length for length in REFUSED_LENGTHS if later and length in make.keywords]:
            raise ValueError(
                f"scheduler.{given[0]}={make.keywords[given[0]]}: {make.func.__name__} gets the length of the whole "
                "training, from trainer.max_epochs or trainer.max_steps; leave it out"
            )
        try:
            inspect.signature(make.func).bind(None, *make.args, **(dict.fromkeys(later) | make.keywords))
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            reason = f"takes no argument {unknown[1]}" if unknown else f"is {error}"
            raise ValueError(f"{make.func.__name__} {reason} ({name}=)") from error
        if make.func is LBFGS and make.keywords.get("line_search_fn") not in (None, "strong_wolfe"):
            raise ValueError(f"optimizer.line_search_fn={make.keywords['line_search_fn']} must be strong_wolfe or null")
    _try_out(optimizer, scheduler, lengths)
    if lengths and trainer.max_epochs in (None, -1) and trainer.max_steps == -1:
        raise ValueError(UNKNOWN_LENGTH)


def _try_out(optimizer: Any, scheduler: Any, lengths: set[str]) -> None:
    """Raise ValueError where an optimizer or a scheduler of torch or of this project refuses its arguments.

    They are made for one parameter, and the scheduler takes one step.
    """
    known = [
        isinstance(make, functools.partial) and make.func.__module__.startswith(("torch.optim", "lit_models.optim"))
        for make in (optimizer, scheduler)
    ]
    make = optimizer if known[0] else functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer precedes that of the scheduler
        try:
            made = make([torch.nn.Parameter(torch.zeros(2, 2))])
            # A list has a value for each group of the model's parameters.
            lists = isinstance(scheduler, functools.partial) and [
                value for value in scheduler.keywords.values() if isinstance(value, Sequence) and type(value) is not str
            ]
            if known[1] and not lists:
                make = scheduler
                schedule = scheduler(made, **dict.fromkeys(lengths, 10))
                if not isinstance(schedule, ReduceLROnPlateau):
                    schedule.step()
        except (ValueError, TypeError, ArithmeticError, AssertionError, LookupError) as error:
            name = "optimizer" if make is optimizer else "scheduler"
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{make.func.__name__}: {reason} ({name}=)") from error


def _lengths(scheduler: Any) -> set[str]:
    """Return the arguments of a scheduler that get the length of the training."""
    if scheduler is None:
        return set()
    taken = inspect.signature(scheduler.func if isinstance(scheduler, functools.partial) else scheduler).parameters
    return {"total_steps", "T_max"} & set(taken)
