"""A generative adversarial network: a generator and a discriminator, each with an optimizer of its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_models.exact import ExactModule
from lit_models.supervised import Batch
from runs import internals
from runs.format import check_positive_int


class GAN(ExactModule):
    """Trains a generator to make images that a discriminator takes for real (Goodfellow et al. 2014, arXiv:1406.2661).

    In each batch the generator makes a step first, to be taken for real, then the discriminator, on the same fakes and
    as many real images. Lightning counts both as gradient steps. It reports ``g_loss`` and ``d_loss``, the mean of the
    discriminator's losses on real images and on fakes. There is no ``loss`` that falls as the images get better.

    Args:
        generator: makes a net from ``latent_dim`` and ``output_shape``, which takes latent vectors to images.
        discriminator: makes a net from ``input_shape``, which takes images to the logits of "real", ``(B, 1)``.
        input_shape: of an image, ``(C, H, W)``.
        optimizer: makes an optimizer from parameters, for each of the two.
        scheduler: makes a scheduler from an optimizer. None keeps the learning rates constant.
        latent_dim: numbers in a latent vector.
        **kwargs: see :class:`ExactModule`.
    """

    measures = ("g_loss", "d_loss")
    undecided_loss = math.log(2)  # of both, where the discriminator gives each image a probability of a half

    def __init__(
        self,
        generator: Callable[..., nn.Module],
        discriminator: Callable[..., nn.Module],
        input_shape: Sequence[int],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        latent_dim: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive_int("model.latent_dim", latent_dim)
        self.automatic_optimization = False
        self.latent_dim = latent_dim
        self.generator = generator(latent_dim=latent_dim, output_shape=input_shape)
        self.discriminator = discriminator(input_shape=input_shape)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.example_input_array = torch.zeros(2, latent_dim)  # what forward takes, which is not what the data gives
        self.to(memory_format=self._memory_format())

    def forward(self, latents: Tensor) -> Tensor:  # (B, latent_dim)
        return self.generator(latents)  # (B, C, H, W)

    def sample(self, latents: Tensor) -> Tensor:
        """Return images from standard normal latent vectors ``(B, latent_dim)``, normalized as the data is."""
        return self.generator(latents)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images = self.in_memory_format(batch[0])
        optimizers: Any = self.optimizers()
        g_optimizer, d_optimizer = optimizers
        fakes = self.generator(self._latents(images))

        self.toggle_optimizer(g_optimizer)  # no gradients of the discriminator's weights
        g_loss = self._g_loss(fakes)
        self._step(g_optimizer, {"g_loss": g_loss})
        self.untoggle_optimizer(g_optimizer)

        self.toggle_optimizer(d_optimizer)
        d_loss = self._d_loss(images, fakes.detach())
        self._step(d_optimizer, {"d_loss": d_loss})
        self.untoggle_optimizer(d_optimizer)

        self._step_schedulers("step")
        losses = {"g_loss": g_loss.detach(), "d_loss": d_loss.detach()}
        self.accumulate("train", len(images), losses)
        return losses

    def _step(self, optimizer: Any, named_loss: dict[str, Tensor]) -> None:
        self._check_finite(named_loss)
        (loss,) = named_loss.values()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, stage: str) -> None:
        images = self.in_memory_format(batch[0])
        fakes = self.generator(self._latents(images))
        self.accumulate(stage, len(images), {"g_loss": self._g_loss(fakes), "d_loss": self._d_loss(images, fakes)})

    def _latents(self, images: Tensor) -> Tensor:
        """Return a latent vector for each image."""
        return torch.randn(len(images), self.latent_dim, dtype=images.dtype, device=images.device)

    def _g_loss(self, fakes: Tensor) -> Tensor:
        return _cross_entropy(self.discriminator(fakes), 1)

    def _d_loss(self, images: Tensor, fakes: Tensor) -> Tensor:
        return (_cross_entropy(self.discriminator(images), 1) + _cross_entropy(self.discriminator(fakes), 0)) / 2

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if not internals.stopped_in_epoch(self.trainer):
            self._step_schedulers("epoch")

    def configure_optimizers(self) -> Any:
        optimizers = [self.optimizer(net.parameters()) for net in (self.generator, self.discriminator)]
        both = len(optimizers)
        return optimizers, [self.schedule(self.scheduler, one, both) for one in optimizers if self.scheduler]

    def check_trainer(self, trainer: pl.Trainer) -> None:
        if trainer.world_size > 1:
            raise ValueError("a GAN trains in one process: trainer.devices=1 trainer.num_nodes=1")
        super().check_trainer(trainer)

    def export_module(self) -> nn.Module:
        """Return the generator."""
        return self.generator

    def check_data(self, datamodule: Any) -> None:
        """Raise ValueError for data that is not images."""
        if len(datamodule.shape) != 3:
            raise ValueError(
                f"a GAN takes images (channels, height, width), not inputs of shape {tuple(datamodule.shape)}"
            )


def _cross_entropy(logits: Tensor, target: int) -> Tensor:
    """Return the mean binary cross-entropy of logits ``(B, 1)`` with one target, 0 or 1."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
