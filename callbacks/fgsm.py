"""The fast gradient sign attack on a classifier of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks import get_datamodule
from plots.adversarial import adversarial_examples
from plots.figure import to_pixels
from runs.files import atomic_write_text, write_png
from runs.format import text_columns
from runs.protocols import Classifies

CHUNK = 100  # images whose gradients are held in memory at once
COLUMNS = 8  # examples of each epsilon in the figure


class FGSM(pl.Callback):
    """Measures the accuracy of a classifier on images that are changed to raise its loss.

    Each pixel, from 0 to 1, moves by epsilon in the direction of the sign of the loss's gradient, and is clamped to
    0..1 (Goodfellow et al. 2014, arXiv:1412.6572). As in PyTorch's tutorial, an image that is mistaken without an
    attack is not attacked and counts as wrong. The loss is the cross-entropy of the true class.

    Args:
        epsilons: numbers from 0 to 1. With 0 the images are those of the data set.

    Raises:
        ValueError: an epsilon is out of range; later, the model classifies no images.
    """

    def __init__(self, epsilons: Any) -> None:
        numbers = [] if isinstance(epsilons, str) or not isinstance(epsilons, Sequence) else list(epsilons)
        valid = all(type(one) in (int, float) and 0 <= one <= 1 for one in numbers)
        if not numbers or not valid or len(set(numbers)) < len(numbers):
            raise ValueError(f"epsilons={epsilons} must be a list of different numbers from 0 to 1, such as [0, 0.1]")
        self.epsilons = sorted(map(float, numbers))
        self.count = 0
        self._correct: dict[float, Any] = dict.fromkeys(self.epsilons, 0)
        # Epsilon -> images uint8 (N, C, H, W), true and predicted classes (N,) that the figure shows.
        self._examples: dict[float, tuple[Tensor, Tensor, Tensor]] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = get_datamodule(trainer)
        if not isinstance(pl_module, Classifies) or not data.class_names or len(data.shape) != 3:
            raise ValueError(
                f"attack=fgsm is for a classifier of images, not for {type(pl_module).__name__} with inputs of shape "
                f"{tuple(data.shape)}"
            )

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        inputs, targets = batch
        if not isinstance(outputs, Tensor) or len(outputs) != len(targets):
            raise ValueError(f"attack=fgsm needs logits, and a step of {type(pl_module).__name__} does not return them")
        for part in zip(*(whole.split(CHUNK) for whole in (inputs, targets, outputs)), strict=True):
            if len(part[0]):
                self._attack(get_datamodule(trainer), pl_module, *part)

    def on_validation_batch_end(self, *arguments: Any) -> None:  # of a module without a test step
        self.on_test_batch_end(*arguments)

    def _attack(self, data: Any, pl_module: Any, inputs: Tensor, targets: Tensor, logits: Tensor) -> None:
        stored = data.to_uint8(inputs)  # (B, C, H, W)
        span = (inputs.amax() - inputs.amin()).item()
        if (data.normalize(stored) - inputs).abs().max() > 0.02 * span:
            raise ValueError(f"attack=fgsm changes pixels from 0 to 255, and {type(data).__name__} holds other images")
        unchanged = pl_module.classes(logits)
        known = unchanged == targets
        signs = input_gradients(pl_module, inputs, targets).sign()
        for epsilon in self.epsilons:
            pixels, predicted = stored / 255, unchanged
            if epsilon:
                pixels = (pixels + epsilon * signs).clamp(0, 1)
                predicted = pl_module.classes(pl_module(data.normalize(255 * pixels).to(inputs.dtype)))
            right = known & (predicted == targets)
            self._correct[epsilon] += right.count_nonzero()
            self._keep_examples(epsilon, known & ~right if epsilon else right, pixels, targets, predicted)
        self.count += len(inputs)

    def _keep_examples(self, epsilon: float, shown: Tensor, pixels: Tensor, targets: Tensor, predicted: Tensor) -> None:
        """Keep the first images that an attack turns into mistakes, for the figure."""
        before = self._examples.get(epsilon)
        room = COLUMNS - (len(before[0]) if before else 0)
        indices = shown.nonzero()[:room, 0]
        new = [part[indices].cpu() for part in ((255 * pixels).round().to(torch.uint8), targets, predicted)]
        old = before or [part[:0] for part in new]
        images, true, guesses = (torch.cat(pair) for pair in zip(old, new, strict=True))
        self._examples[epsilon] = images, true, guesses

    def accuracies(self) -> dict[float, float]:
        """Return the fraction of correct predictions for each epsilon."""
        return {epsilon: int(correct) / self.count for epsilon, correct in self._correct.items()}

    def table(self) -> str:
        """Return the accuracies as lines of text."""
        rows = [(f"{epsilon:g}", f"{100 * accuracy:.2f} %") for epsilon, accuracy in self.accuracies().items()]
        return "\n".join(text_columns([("epsilon", "accuracy"), *rows]))

    def write(self, path: Path, split: str, checkpoint: Path, class_names: Sequence[str]) -> None:
        """Write the accuracies as ``.json``, and their curve with some examples of each epsilon as ``.png``."""
        accuracies = {f"{epsilon:g}": round(accuracy, 6) for epsilon, accuracy in self.accuracies().items()}
        result = {"checkpoint": str(checkpoint), "split": split, "attack": "fgsm", "metrics": {"acc": accuracies}}
        atomic_write_text(path.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
        figure = adversarial_examples(self.accuracies(), self._examples, class_names)
        write_png(path.with_suffix(".png"), to_pixels(figure))


def input_gradients(pl_module: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the summed cross-entropy for a batch of inputs, of their shape."""
    # A test runs in inference mode, where nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = inputs.clone().requires_grad_(), targets.clone()
        probs = pl_module.probabilities(pl_module(inputs).float())  # (B, classes)
        loss = -probs.gather(1, targets[:, None]).clamp_min(1e-38).log().sum()
        (gradients,) = torch.autograd.grad(loss, inputs)
    return gradients
