"""What nets say of inputs that they cannot take."""

from collections.abc import Sequence


def unsupported_inputs(takes: str, input_shape: Sequence[int]) -> ValueError:
    """Return the error of a net that takes something else.

    Args:
        takes: ``LeNet takes images (channels, 28, 28)``.
        input_shape: of the inputs that the data has.
    """
    return ValueError(f"{takes}, not inputs of shape {tuple(input_shape)}; model=mlp takes any inputs")
