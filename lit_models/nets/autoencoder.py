"""Autoencoders of linear layers. Shapes in the comments are those for a 28 x 28 gray image."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lit_models.nets.mlp import MLP


class MLPAutoencoder(nn.Module):
    """An encoder of linear layers with ReLU between them, and a decoder that mirrors it.

    With the defaults on MNIST, 784-64-3 and 3-64-784: 101,651 parameters.

    Args:
        input_shape: shape of one input.
        hidden_sizes: widths of the layers between the input and the code.
        latent_dim: numbers in a code.
    """

    numbers_per_latent = 1  # that the encoder returns

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden_sizes: Sequence[int] = (64,),
        latent_dim: int = 3,
    ) -> None:
        super().__init__()
        if type(latent_dim) is not int or latent_dim < 1:
            raise ValueError(f"model.net.latent_dim={latent_dim} must be a whole number of at least 1")
        self.latent_dim = latent_dim
        self.encoder = MLP(input_shape, self.numbers_per_latent * latent_dim, hidden_sizes)
        self.decoder = nn.Sequential(
            MLP((latent_dim,), math.prod(input_shape), hidden_sizes[::-1]),  # (B, 784)
            nn.Unflatten(1, tuple(input_shape)),  # (B, 1, 28, 28)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, *input_shape)
        return self.decoder(self.encoder(x))  # (B, *input_shape)


class MLPVAE(MLPAutoencoder):
    """An :class:`MLPAutoencoder` whose encoder returns means and log-variances, ``(B, 2 * latent_dim)``.

    With ``hidden_sizes=(400,)`` and ``latent_dim=20`` on MNIST: 652,824 parameters (pytorch/examples, vae).
    """

    numbers_per_latent = 2

    def forward(self, x: Tensor) -> Tensor:  # (B, *input_shape)
        mean, _ = self.encoder(x).chunk(2, 1)  # (B, latent_dim)
        return self.decoder(mean)  # (B, *input_shape)
