"""Recurrent nets: one for series of numbers, and one that reads images row by row."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lit_models.nets.errors import unsupported_inputs


class SeriesLSTM(nn.Module):
    """LSTM layers (Hochreiter and Schmidhuber 1997) and a linear layer, which predict the next number of a series.

    Args:
        hidden_size: units in each layer.
        num_layers: layers, each on the outputs of the one before.
    """

    def __init__(self, hidden_size: int = 51, num_layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, series: Tensor) -> Tensor:  # (B, T)
        return self.read(series)[0]

    def read(self, series: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return a prediction of the number after each one of the series, ``(B, T)``, and the state after the last.

        Args:
            series: ``(B, T)``.
            state: after the numbers before these. None starts a series.
        """
        outputs, state = self.lstm(series[..., None], state)  # (B, T, hidden_size)
        return self.head(outputs)[..., 0], state


class RowLSTM(nn.Module):
    """An LSTM that reads an image row by row, and two linear layers on what it knows after the last row.

    The net of pytorch/examples, mnist_rnn; 26,602 parameters on MNIST. Returns logits.

    Args:
        input_shape: ``(C, H, W)``. The channels of a row are read together.
        num_classes: number of logits.
        hidden_size: units of the LSTM.

    Raises:
        ValueError: the inputs are not images.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, hidden_size: int = 64) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise unsupported_inputs("a net that reads rows takes images (channels, height, width)", input_shape)
        channels, _, width = input_shape
        self.lstm = nn.LSTM(channels * width, hidden_size, batch_first=True)
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(hidden_size),
            nn.Dropout(0.25),
            nn.Linear(hidden_size, 32),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(32, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        rows = x.transpose(1, 2).flatten(2)  # (B, H, C * W)
        outputs, _ = self.lstm(rows)  # (B, H, hidden_size)
        return self.classifier(outputs[:, -1])  # (B, num_classes)
