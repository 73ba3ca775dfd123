"""A siamese net: it tells whether two images show the same."""

import torch
from torch import Tensor

from lit_models.supervised import Classifier


class Siamese(Classifier):
    """Classification of pairs of images as different, 0, or equal, 1 (Bromley et al. 1993, Koch et al. 2015).

    A pair is two images on top of each other, ``(2 * C, H, W)``, as data=mnist_pairs gives them.
    """

    measures = Classifier.measures

    def compare(self, first: Tensor, second: Tensor) -> Tensor:  # (B, C, H, W) each
        """Return the probability that two images show the same, ``(B,)``."""
        return self.probabilities(self(torch.cat([first, second], 1)))[:, 1]
