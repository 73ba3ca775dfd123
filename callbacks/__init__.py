"""Callbacks, one per file, and what they read from the Trainer and the module."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from runs import internals
from runs.format import round_float32
from runs.monitor import metric_name, possible_metrics

if TYPE_CHECKING:
    from callbacks.metrics_history import MetricsHistory


def get_datamodule(trainer: pl.Trainer) -> Any:
    """Return the datamodule, which Lightning's Trainer does not declare."""
    return trainer.datamodule  # type: ignore[attr-defined]


def get_net(pl_module: pl.LightningModule) -> nn.Module:
    """Return the net of a module that has one called ``net``, else the module itself."""
    net = getattr(pl_module, "net", None)
    return net if isinstance(net, nn.Module) else pl_module


def find_metrics_history(trainer: pl.Trainer) -> "MetricsHistory | None":
    """Return the callback that holds the metrics of every epoch. Only train.py adds it to a Trainer."""
    from callbacks.metrics_history import MetricsHistory

    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, MetricsHistory)), None)


def get_metrics_history(trainer: pl.Trainer) -> "MetricsHistory":
    """Return the callback that holds the metrics of every epoch, in a Trainer that has it."""
    history = find_metrics_history(trainer)
    assert history is not None
    return history


def num_parameters(pl_module: pl.LightningModule) -> int:
    """Return the number of parameters of a module that are trained or in its net, so not those of a teacher."""
    net = {id(parameter) for parameter in get_net(pl_module).parameters()}
    counted = (one for one in pl_module.parameters() if one.requires_grad or id(one) in net)
    return sum(parameter.numel() for parameter in counted)


def num_examples(trainer: pl.Trainer, batches: float) -> int:
    """Return the number of training examples in the first batches of an epoch, over all ranks.

    Lightning's ``trainer.num_training_batches`` is a whole number, or inf before the data is loaded.
    """
    data = get_datamodule(trainer)
    total = len(data.train_indices)
    return int(min(batches * (data.batch_size or total) * trainer.world_size, total))


def format_epoch(trainer: pl.Trainer, epoch: int) -> str:
    """Format ``epoch 2/5``, or ``epoch 2`` of a training whose epochs have no limit."""
    return f"epoch {epoch}" + (f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else "")


def logged_metrics(trainer: pl.Trainer, stage: str) -> dict[str, float]:
    """Return what was logged over ``train``, ``val`` or ``test``, at its end: ``STAGE/METRIC`` -> value."""
    logged, _ = internals.epoch_results(trainer)
    values = {name: round_float32(value.item()) for name, value in logged.items() if value.numel() == 1}
    found = {metric_name(stage, name): value for name, value in values.items()}
    return dict(sorted(found.items(), key=lambda item: item[0].partition("/")[2] not in ("loss", "acc")))


def has_step(pl_module: pl.LightningModule, stage: str) -> bool:
    """Return whether a module has a ``validation_step`` or a ``test_step``."""
    return is_overridden({"val": "validation_step"}.get(stage, f"{stage}_step"), pl_module)


def is_validated(trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
    """Return whether a training has validations, once its data is loaded."""
    limited = not trainer.limit_val_batches or not len(get_datamodule(trainer).val_dataloader())
    return not limited and has_step(pl_module, "val")


def possible_of(trainer: pl.Trainer, pl_module: pl.LightningModule) -> set[str] | None:
    """Return the metrics of training and validation, or None where a part of the run does not say what it logs."""
    parts = (pl_module, *trainer.callbacks)  # type: ignore[attr-defined]  # Lightning declares it nowhere
    possible = possible_metrics(parts)
    stages = ("train/", "val/") if is_validated(trainer, pl_module) else ("train/",)
    return None if possible is None else {name for name in possible if name.startswith(stages)}


def batch_loss(outputs: Any) -> Tensor | None:
    """Return the loss in the outputs of a training step, or None when it returned none.

    Lightning has divided it by ``trainer.accumulate_grad_batches``.
    """
    return outputs.get("loss") if isinstance(outputs, Mapping) else None


def batch_losses(outputs: Any) -> dict[str, Tensor]:
    """Return what the curves of the loss are made of: ``loss``, or else all that is called ``…_loss``."""
    if (loss := batch_loss(outputs)) is not None:
        return {"loss": loss}
    items = outputs.items() if isinstance(outputs, Mapping) else ()
    return {name: value.detach() for name, value in items if name.endswith("_loss") and isinstance(value, Tensor)}


def write_errors(trainer: pl.Trainer) -> list[OSError]:
    """Return the write errors of callbacks and loggers that did not end the run."""
    parts = (*trainer.callbacks, *trainer.loggers)  # type: ignore[attr-defined]  # Lightning declares it nowhere
    return [error for part in parts if (error := getattr(part, "write_error", None))]


def at_optimizer_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether a checkpoint can be saved after this batch, in the middle of an epoch.

    This needs a batch with no accumulated gradients left. After the last batch the checkpoint of the epoch is saved.
    """
    return not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
