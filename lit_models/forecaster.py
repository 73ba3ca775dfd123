"""Forecasting: a net learns the next number of a series, and continues series by itself."""

from typing import Any

import torch
from torch import Tensor

from lit_models.nets import SeriesLSTM
from lit_models.supervised import Supervised


class Forecaster(Supervised):
    """Minimizes the loss between predictions of the next number and the next number, over all numbers of all series.

    Args:
        **kwargs: see :class:`Supervised`.
    """

    measures = Supervised.measures
    net: SeriesLSTM

    def continue_series(self, series: Tensor, steps: int) -> Tensor:  # (B, T)
        """Return the next numbers of series, ``(B, steps)``: each prediction is what the net reads next."""
        predictions, state = self.net.read(series)
        numbers = [predictions[:, -1:]]  # (B, 1) each
        while len(numbers) < steps:
            prediction, state = self.net.read(numbers[-1], state)
            numbers.append(prediction)
        return torch.cat(numbers, 1)

    def check_data(self, datamodule: Any) -> None:
        """Raise ValueError where the targets are not one number for each number of a series."""
        shape = tuple(datamodule.shape)
        if len(shape) != 1 or shape[0] < 2 or datamodule.class_names or datamodule.num_classes != shape[0]:
            gives = f"classes of {shape}" if datamodule.class_names else f"{datamodule.num_classes} targets of {shape}"
            raise ValueError(
                "this model takes series of numbers, with the next number after each one as its target, such as "
                f"data=sines; the data gives {gives} inputs"
            )
