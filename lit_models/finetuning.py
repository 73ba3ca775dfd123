"""Fine-tuning: training that starts from pretrained weights."""

from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn

from lit_models.supervised import Classifier
from runs.checkpoint import check_undamaged, load_plain


class FineTuning(Classifier):
    """Classification that may start from ImageNet weights. A head for another number of classes starts at random.

    Args:
        net: names its weights as torchvision does. Its attribute ``head`` is the name of the last layer.
        weights: None, ``DEFAULT`` for torchvision's ImageNet weights (downloaded once), or a file with a state dict.
        frozen: train the head alone.
        **kwargs: see :class:`Supervised`.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ConnectionError: the weights cannot be downloaded.
        ValueError: the weights are those of another net.
    """

    measures = Classifier.measures

    def __init__(self, net: nn.Module, weights: str | None = None, frozen: bool = False, **kwargs: Any) -> None:
        super().__init__(net=net, **kwargs)
        self.frozen = frozen
        if weights is not None:
            _load(net, weights)
        if frozen:
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(name.startswith(f"{net.head}."))

    def on_train_epoch_start(self) -> None:
        if self.frozen:  # batch norm keeps its pretrained statistics
            self.net.eval()


def _load(net: nn.Module, weights: str) -> None:
    state = _download() if weights == "DEFAULT" else _read(Path(weights))
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    if set(state) != set(shapes):
        raise ValueError(
            f"model.weights={weights} holds the weights of another net: those of {type(net).__name__} have other names"
        )
    fitting = {name: tensor for name, tensor in state.items() if tensor.shape == shapes[name]}
    if other := [name for name in shapes if name not in fitting and not name.startswith(f"{net.head}.")]:
        raise ValueError(f"model.weights={weights} holds {other[0]} of another size than {type(net).__name__}")
    net.load_state_dict(fitting, strict=False)


def _download() -> dict[str, Tensor]:
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"model.weights=DEFAULT: {weights.url} could not be downloaded ({error}); "
            "give a file with model.weights=FILE, or start at random with model.weights=null"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"model.weights={path} is not a file; null and DEFAULT are the other choices")
    try:
        check_undamaged(path)
        state = load_plain(path)
    except Exception as error:  # torch raises anything for a foreign file
        damage = f": {error}" if isinstance(error, ValueError) else ""
        raise ValueError(f"model.weights={path} is not a file of weights that torch can read safely{damage}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"model.weights={path} is not a state dict")
    return state
