"""What a LightningModule may offer beside its steps. Nothing is required; callbacks and commands ask by ``isinstance``.

A class offers a protocol by having its methods, without naming it.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Exact(Protocol):
    """Keeps means over the examples of an epoch, and the random numbers of each step: lit_models.exact.ExactModule."""

    def accumulate(self, stage: str, count: int, means: Mapping[str, Tensor], sums: Any = None) -> None: ...

    def means(self, stage: str) -> dict[str, Tensor]: ...


@runtime_checkable
class Classifies(Protocol):
    """Has classes: what its steps return are logits."""

    def classes(self, outputs: Tensor) -> Tensor:
        """Return the predicted class of each row, int64 ``(B,)``."""
        ...

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, ``(B, classes)``."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """Has codes of its inputs, as an autoencoder."""

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """Return what comes back, of the shape of the inputs and in the values that the net is fed."""
        ...

    def encode(self, inputs: Tensor) -> Tensor:
        """Return codes ``(B, D)``."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return what codes ``(B, D)`` stand for, of the shape of the inputs."""
        ...


@runtime_checkable
class Generates(Protocol):
    """Makes examples from random numbers, as a VAE or a GAN."""

    latent_dim: int

    def sample(self, latents: Tensor) -> Tensor:
        """Return an example for each row of standard normal numbers ``(B, latent_dim)``."""
        ...


@runtime_checkable
class HasUndecidedLoss(Protocol):
    """A GAN whose two losses are known for a discriminator that cannot tell real images from fakes."""

    undecided_loss: float  # of the generator and of the discriminator


@runtime_checkable
class Compares(Protocol):
    """Says whether two inputs are of the same kind, as a siamese net."""

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the probability ``(B,)`` for each pair."""
        ...


@runtime_checkable
class MeasuresGoodness(Protocol):
    """Classifies by how well an input and each class go together, as a forward-forward net."""

    def goodness(self, inputs: Tensor) -> Tensor:
        """Return the goodness of each class in each layer, ``(B, layers, classes)``."""
        ...


@runtime_checkable
class TransformsInputs(Protocol):
    """A net that turns, shifts and scales its images before it reads them."""

    def transform(self, inputs: Tensor) -> Tensor:
        """Return the images as the rest of the net sees them, ``(B, C, H, W)``."""
        ...


@runtime_checkable
class ContinuesSeries(Protocol):
    """Continues series of numbers."""

    def continue_series(self, series: Tensor, steps: int) -> Tensor:
        """Return the next numbers ``(B, steps)`` of series ``(B, T)``."""
        ...


@runtime_checkable
class Exports(Protocol):
    """Names the part of it that one would ship, where that is not ``net``."""

    def export_module(self) -> nn.Module: ...
