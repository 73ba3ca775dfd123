"""Plots of a run, in its directory ``pictures/`` and in each logger that takes pictures."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from callbacks import get_datamodule, get_metrics_history, get_net, num_examples
from callbacks.generative_plots import GenerativePlots
from plots.classification import (
    confusion_matrix,
    decision_boundaries,
    decision_boundary,
    goodness_of_labels,
    per_class_accuracy,
)
from plots.figure import to_pixels
from plots.generative import adversarial_losses, transformed_images
from plots.images import filters, image_grid, predictions
from plots.line import line_fit, loss_surface
from plots.training import accuracy_curve, loss_curve
from runs import internals
from runs.files import write_png
from runs.format import check_positive_int
from runs.protocols import Classifies, HasUndecidedLoss, MeasuresGoodness, TransformsInputs

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_MISTAKES = 24  # in mistakes.png
MAX_SNAPSHOTS = 100  # of the weights; every checkpoint holds all of them


class Plots(GenerativePlots):
    """Draws the training after its end, on request also during it, and the test.

    Of every run: ``loss`` and, for classifiers, ``accuracy``, ``confusion`` and ``classes``. Of images: ``samples``,
    ``predictions``, ``mistakes``, for nets that begin with a convolution ``filters``, for those that judge each label
    ``goodness``, and for those that transform their images ``transformed``. Of points in the plane: ``boundary``, and
    ``boundaries`` over the epochs. Of lines: ``line``, and ``surface``, the loss over weight and bias with the path of
    the training. Of what generates, reconstructs or continues: see :class:`GenerativePlots`.

    Args:
        every_n_epochs: also draws the training every n epochs. None draws it only after its end.
    """

    measures = ()

    def __init__(self, every_n_epochs: int | None = None) -> None:
        if every_n_epochs is not None:
            check_positive_int("callbacks.pictures.every_n_epochs", every_n_epochs)
        super().__init__()
        self.every_n_epochs = every_n_epochs
        # Epoch -> state dict of a small net: 0 is before training, then every ``_stride`` epochs.
        self.weight_history: dict[int, dict[str, Tensor]] = {}
        self._stride = 1
        self.write_error: OSError | None = None  # after which nothing more is drawn

    # --- record -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self._drawing("the pictures of the training"):
            super().on_train_start(trainer, pl_module)
        is_small = sum(parameter.numel() for parameter in pl_module.parameters()) < 1e4
        self._keeps_weights = is_small and get_datamodule(trainer).shape in ((1,), (2,))
        if not self.weight_history:
            self._record_weights(0, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record_weights(trainer.current_epoch + 1, pl_module)
        if not internals.stopped_in_epoch(trainer):
            with self._drawing("the pictures of an epoch"):
                self._draw(trainer, self._epoch_figures(trainer, pl_module))

    def _record_weights(self, epoch: int, pl_module: pl.LightningModule) -> None:
        if not self._keeps_weights or epoch % self._stride:
            return
        weights = get_net(pl_module).state_dict()
        self.weight_history[epoch] = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        if len(self.weight_history) > MAX_SNAPSHOTS:
            self._stride *= 2
            self.weight_history = {e: weights for e, weights in self.weight_history.items() if e % self._stride == 0}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"weight_history": self.weight_history, "stride": self._stride}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weight_history, self._stride = state["weight_history"], state["stride"]

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._is_classifier = bool(get_datamodule(trainer).class_names) and isinstance(pl_module, Classifies)
        self._probs: list[Tensor] = []  # (B, classes)
        self._targets: list[Tensor] = []  # (B,)
        self._mistakes: list[tuple[Tensor, ...]] = []  # images (B, C, H, W), probs (B, classes), targets (B,)
        self._first_images: tuple[Tensor, ...] | None = None  # the same for the first test images
        self._goodness: Tensor | None = None  # of these images, (B, layers, classes)
        self._transformed: tuple[Tensor, Tensor] | None = None  # ten images, and the same transformed

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        with self._drawing("the pictures of the test"):
            super().on_test_batch_end(trainer, pl_module, outputs, batch)
            self._record_predictions(trainer, pl_module, outputs, batch)

    def _record_predictions(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any) -> None:
        if not self._is_classifier or not isinstance(outputs, Tensor):
            return
        inputs, targets = batch
        probs = pl_module.probabilities(outputs).float()
        self._probs.append(probs.cpu())
        self._targets.append(targets.cpu())
        if inputs.dim() == 4:
            to_uint8 = get_datamodule(trainer).to_uint8
            confidence, predicted = probs.max(1)
            order = torch.where(predicted == targets, -1.0, confidence).argsort(descending=True)[:MAX_MISTAKES]
            wrong = order[(predicted != targets)[order]]
            self._mistakes.append((to_uint8(inputs[wrong]).cpu(), probs[wrong].cpu(), targets[wrong].cpu()))
            if self._first_images is None and len(targets):
                self._first_images = to_uint8(inputs[:6]).cpu(), probs[:6].cpu(), targets[:6].cpu()
                if isinstance(pl_module, MeasuresGoodness):
                    self._goodness = pl_module.goodness(inputs[:6]).cpu()
                if isinstance(net := get_net(pl_module), TransformsInputs):
                    self._transformed = to_uint8(inputs[:10]).cpu(), to_uint8(net.transform(inputs[:10])).cpu()

    # --- draw -------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The row of an epoch is written by the time the next one starts.
        if self.every_n_epochs and trainer.current_epoch and trainer.current_epoch % self.every_n_epochs == 0:
            self._draw_training(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw_training(trainer, pl_module)

    def _draw_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self._drawing("the pictures of the training"):
            self._draw(trainer, self._training_figures(trainer, pl_module))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self._drawing("the pictures of the test"):
            if self._is_classifier and any(map(len, self._targets)):  # not where each file of the test set is broken
                self._draw(trainer, self._test_figures(trainer))
            self._draw(trainer, self._code_figures(trainer, pl_module))

    def _training_figures(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, "Figure"]:
        history, datamodule = get_metrics_history(trainer), get_datamodule(trainer)
        names = {"val": "validation", "train": "training set, after the epoch"}
        checked_on = names.get(datamodule.validate_on, datamodule.validate_on)
        figures = self._strip_figures()
        repeats = getattr(pl_module, "steps_per_batch", 1)  # how often a batch is seen in an epoch
        examples = repeats * num_examples(trainer, trainer.num_training_batches)  # seen in an epoch
        curves = {name: [(repeats * seen, loss) for seen, loss in points] for name, points in history.curves.items()}
        if any("train/loss" in row for row in history.rows):
            with self._drawing("loss.png"):
                figures["loss"] = loss_curve(history.rows, curves.get("loss", []), examples, checked_on)
        elif any("train/g_loss" in row for row in history.rows):
            undecided = pl_module.undecided_loss if isinstance(pl_module, HasUndecidedLoss) else None
            with self._drawing("losses.png"):
                figures["losses"] = adversarial_losses(history.rows, curves, examples, undecided)
        if any("train/acc" in row or "val/acc" in row for row in history.rows):
            with self._drawing("accuracy.png"):
                figures["accuracy"] = accuracy_curve(history.rows, checked_on)
        layers = (layer for layer in get_net(pl_module).modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))
        # Of a module without one net, the first convolution may be far from the images.
        if isinstance(first := next(layers, None), nn.Conv2d) and first.in_channels == datamodule.shape[0]:
            with self._drawing("filters.png"):
                figures["filters"] = filters(first.weight.detach().cpu())
        if self.weight_history:
            with self._drawing("the pictures of the weights"):
                figures |= self._weight_figures(datamodule, pl_module)
        return figures

    def _weight_figures(self, datamodule: Any, pl_module: Any) -> dict[str, "Figure"]:
        """Return the figures that the recorded weights of a small net allow."""
        net = get_net(pl_module)
        if datamodule.shape == (2,) and len(datamodule.class_names) == 2 and isinstance(pl_module, Classifies):
            return self._boundary_figures(datamodule, pl_module)
        if callable(getattr(net, "coefficients", None)) and isinstance(getattr(pl_module, "loss", None), nn.MSELoss):
            inputs, targets = datamodule.load()[0]
            recorded = [[tensor.item() for tensor in state.values()] for state in self.weight_history.values()]
            path = np.array([*recorded, [parameter.item() for parameter in net.parameters()]])  # (n, 2)
            path = path[np.isfinite(path).all(1)]
            x, y = datamodule.normalize(inputs)[:, 0].numpy(), targets[:, 0].numpy()
            return {"line": line_fit(x, y, *path[-1]), "surface": loss_surface(x, y, path)}
        return {}

    @torch.no_grad()
    def _boundary_figures(self, datamodule: Any, pl_module: Any) -> dict[str, "Figure"]:
        net, final = get_net(pl_module), -1
        training = net.training
        states = self.weight_history | {final: {name: tensor.clone() for name, tensor in net.state_dict().items()}}

        def probs_at(epoch: int, points: Tensor) -> Tensor:  # (N, 2)
            net.load_state_dict(states[epoch])
            inputs = datamodule.normalize(points).to(next(net.parameters()))
            return pl_module.probabilities(net(inputs)).float().cpu()

        (points, targets), names = datamodule.load()[0], datamodule.class_names
        axis_names = getattr(datamodule, "columns", ("first feature", "second feature"))
        net.eval()
        try:
            return {
                "boundary": decision_boundary(partial(probs_at, final), points, targets, names, axis_names),
                "boundaries": decision_boundaries(probs_at, list(self.weight_history), points, targets, names),
            }
        finally:
            net.load_state_dict(states[final])
            net.train(training)

    def _test_figures(self, trainer: pl.Trainer) -> dict[str, "Figure"]:
        names = get_datamodule(trainer).class_names
        probs, targets = torch.cat(self._probs), torch.cat(self._targets)
        pairs = torch.bincount(targets * len(names) + probs.argmax(1), minlength=len(names) ** 2)
        counts = pairs.view(len(names), len(names)).numpy()  # (true class, predicted class)
        figures: dict[str, Figure] = {}
        with self._drawing("confusion.png"):
            figures["confusion"] = confusion_matrix(counts, names)
        with self._drawing("classes.png"):
            figures["classes"] = per_class_accuracy(counts, names)
        if self._first_images is None:
            return figures
        images, first_probs, first_targets = self._first_images
        with self._drawing("samples.png"):
            figures["samples"] = image_grid(images, [names[target] for target in first_targets])
        with self._drawing("predictions.png"):
            figures["predictions"] = predictions(images, first_probs, first_targets, names)
        if self._goodness is not None:
            with self._drawing("goodness.png"):
                figures["goodness"] = goodness_of_labels(images, self._goodness, first_targets, names)
        if self._transformed is not None:
            with self._drawing("transformed.png"):
                figures["transformed"] = transformed_images(*self._transformed)
        images, wrong_probs, wrong_targets = (torch.cat(part) for part in zip(*self._mistakes, strict=True))
        if len(images):
            order = wrong_probs.max(1).values.argsort(descending=True)[:MAX_MISTAKES]
            title = f"the most confident of {int((probs.argmax(1) != targets).sum()):,} mistakes"
            with self._drawing("mistakes.png"):
                figures["mistakes"] = predictions(images[order], wrong_probs[order], wrong_targets[order], names, title)
        return figures

    def _draw(self, trainer: pl.Trainer, figures: dict[str, "Figure"]) -> None:
        if not trainer.is_global_zero:
            return
        for name, figure in figures.items():
            if self.write_error:
                return
            with self._drawing(f"{name}.png"):
                try:
                    pixels = to_pixels(figure)
                    write_png(Path(trainer.default_root_dir) / "pictures" / f"{name}.png", pixels)
                except OSError as error:  # a run does not end for a plot
                    self.write_error = error
                    log.warning("no more plots are drawn: %s; the run continues", error)
                    return
                for logger in trainer.loggers:
                    if hasattr(logger, "log_plot"):
                        logger.log_plot(f"pictures/{name}", pixels, trainer.global_step)
