"""The error of a net for inputs that it does not take."""

from collections.abc import Sequence


def unsupported_inputs(takes: str, input_shape: Sequence[int]) -> ValueError:
    """Return the error of a net for inputs of another shape.

    Args:
        takes: what the net takes, such as ``LeNet takes images (channels, 28, 28)``.
        input_shape: shape of the inputs in the data.
    """
    return ValueError(f"{takes}, not inputs of shape {tuple(input_shape)}; model=mlp takes any inputs")
