"""A recurrent net for series of numbers."""

from typing import Any

from torch import Tensor, nn


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
