"""Precision-recall curves and the embedding projector of TensorBoard."""

from typing import Any

import lightning.pytorch as pl
import torch

from callbacks import get_datamodule, get_net
from loggers.tensorboard import TensorBoard
from runs.protocols import Classifies


class TensorBoardExtras(pl.Callback):
    """Writes precision-recall curves and the embedding projector of a classifier, from its test set.

    Args:
        examples: number of examples in the projector.
    """

    measures = ()

    def __init__(self, examples: int = 1000) -> None:
        self.examples = examples

    def check_run(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Raise ValueError for a model that is no classifier ending in a linear layer."""
        self.setup(trainer, pl_module, "fit")
        if not (self._layers and get_datamodule(trainer).class_names and isinstance(pl_module, Classifies)):
            raise ValueError("callbacks=tensorboard_extras is for classifiers that end in a linear layer")

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self._layers = [layer for layer in get_net(pl_module).modules() if isinstance(layer, torch.nn.Linear)]

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches: list[tuple[torch.Tensor, ...]] = []  # probabilities (B, C), targets (B,), images (B, C, H, W)
        self._features: list[torch.Tensor] = []  # (B, features)
        self._hook = self._layers[-1].register_forward_pre_hook(
            lambda _, inputs: self._features.append(inputs[0].detach().flatten(1).cpu())
        )

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        images = get_datamodule(trainer).to_uint8(batch[0]) if len(batch[0].shape) == 4 else batch[0][:, :0]
        self._batches.append((pl_module.probabilities(outputs).cpu(), batch[1].cpu(), images.cpu()))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook.remove()
        probs, targets, images = map(torch.cat, zip(*self._batches, strict=True))
        names = get_datamodule(trainer).class_names
        first, step = slice(self.examples), trainer.global_step
        embedding = (
            torch.cat(self._features)[first],
            [names[target] for target in targets[first]],
            images[first].float() / 255 if images[0].numel() else None,
        )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                for number, name in enumerate(names):
                    logger.log_pr_curve(f"test/{name}", targets == number, probs[:, number], step)
                logger.log_embedding("last layer's inputs", *embedding, step)
