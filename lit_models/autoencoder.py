"""Autoencoders: nets that give their inputs back through a code of few numbers."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lit_models.nets import MLPVAE, MLPAutoencoder
from lit_models.supervised import Batch, Supervised


class Autoencoder(Supervised):
    """Minimizes ``loss(net(inputs), inputs)``. The targets of the data are not used.

    Args:
        net: has an ``encoder`` from inputs to codes ``(B, D)`` and a ``decoder`` from codes to inputs.
        **kwargs: see :class:`Supervised`.
    """

    measures = Supervised.measures
    net: MLPAutoencoder

    def model_step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        inputs, _ = batch
        return super().model_step((inputs, inputs), stage)

    def encode(self, inputs: Tensor) -> Tensor:  # (B, *input_shape)
        """Return the codes of a batch, ``(B, D)``."""
        return self.net.encoder(self.in_memory_format(inputs))

    def decode(self, codes: Tensor) -> Tensor:  # (B, D)
        """Return inputs from codes, ``(B, *input_shape)``."""
        return self.net.decoder(codes)

    def reconstruct(self, inputs: Tensor) -> Tensor:  # (B, *input_shape)
        """Return what is left of a batch after its way through the codes, ``(B, *input_shape)``."""
        return self.decode(self.encode(inputs))

    def export_module(self) -> nn.Module:
        """Return the encoder."""
        return self.net.encoder

    def check_data(self, datamodule: Any) -> None:
        """Accept any data: what a batch has besides its inputs is not used."""


class VAE(Autoencoder):
    """A variational autoencoder of images (Kingma and Welling 2013, arXiv:1312.6114).

    The encoder returns the mean and the log-variance of a normal distribution over the codes, and the decoder the
    logits of pixels from 0 to 1. Besides ``loss``, the sum of both, it reports ``reconstruction``, the loss of the
    decoder for a random code, and ``kl``, the divergence of the distribution from the standard normal one. All three
    are sums over an image, and means over the images.

    Args:
        mean: of the normalization of the images, which is undone before pixels are compared. None leaves them.
        std: of the same normalization.
        **kwargs: see :class:`Supervised`. The loss takes logits and pixels.
    """

    measures = ("loss", "reconstruction", "kl")
    net: MLPVAE
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, numbers in (("mean", mean or [0.0]), ("std", std or [1.0])):
            self.register_buffer(name, torch.tensor(list(numbers)).view(-1, 1, 1), persistent=False)  # (C, 1, 1)

    @property
    def latent_dim(self) -> int:
        return self.net.latent_dim

    def model_step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        inputs, _ = batch
        mean, log_variance = self.net.encoder(self.in_memory_format(inputs)).chunk(2, 1)  # (B, latent_dim) each
        codes = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        logits = self.net.decoder(codes)  # (B, C, H, W)
        reconstruction = self.loss(logits, self._pixels(inputs))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / max(len(inputs), 1)
        loss = reconstruction + kl
        self.accumulate(stage, len(inputs), {"loss": loss, "reconstruction": reconstruction, "kl": kl})
        return loss, logits

    def forward(self, inputs: Tensor) -> Tensor:  # (B, C, H, W), as everything in between
        return self.reconstruct(inputs)

    def encode(self, inputs: Tensor) -> Tensor:  # (B, C, H, W)
        """Return the means of the codes of a batch, ``(B, latent_dim)``."""
        return super().encode(inputs).chunk(2, 1)[0]

    def decode(self, codes: Tensor) -> Tensor:  # (B, latent_dim)
        """Return images from codes, ``(B, C, H, W)``, normalized as the data is."""
        return (super().decode(codes).sigmoid() - self.mean) / self.std

    def sample(self, latents: Tensor) -> Tensor:
        """Return images from standard normal latent vectors ``(B, latent_dim)``, normalized as the data is."""
        return self.decode(latents)

    def _pixels(self, images: Tensor) -> Tensor:
        """Return normalized images as pixels from 0 to 1."""
        return images * self.std + self.mean

    def export_module(self) -> nn.Module:
        """Return the decoder, from latent vectors to pixels from 0 to 1."""
        return nn.Sequential(self.net.decoder, nn.Sigmoid())

    def check_data(self, datamodule: Any) -> None:
        """Raise ValueError for data that is not images."""
        if len(datamodule.shape) != 3:
            raise ValueError(
                "a VAE takes images (channels, height, width), whose pixels it reads as probabilities, not inputs of "
                f"shape {tuple(datamodule.shape)}; model=autoencoder takes any inputs"
            )

    def check_trainer(self, trainer: pl.Trainer) -> None:
        super().check_trainer(trainer)
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "train_indices"):  # it is not loaded yet
            return
        pixels = self._pixels(data.first_inputs(100).to(self.mean))
        low, high = pixels.aminmax()
        if low < -1e-4 or high > 1 + 1e-4:
            raise ValueError(
                f"a VAE reads pixels as probabilities, and these are from {low:.3g} to {high:.3g}; "
                "model.mean and model.std say how the data normalizes them"
            )
