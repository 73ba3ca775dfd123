"""Pictures of a run, into its folder ``pictures/`` and into TensorBoard."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from callbacks import get_datamodule, get_metrics_history
from plots.classification import confusion_matrix, decision_boundaries, decision_boundary, per_class_accuracy
from plots.figure import to_pixels
from plots.images import filters, image_grid, predictions
from plots.line import line_fit, loss_surface
from plots.training import accuracy_curve, loss_curve
from runs.files import write_png

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 24  # mistakes in one picture


class Plots(pl.Callback):
    """Draws what a run learnt: at the end, those of the training also in between.

    Of all runs: ``loss`` and, of classifiers, ``accuracy``, ``confusion``, ``classes``. Of images: ``samples``,
    ``predictions``, ``mistakes`` and, of nets that begin with a convolution, ``filters``. Of points in the plane:
    ``boundary`` and ``boundaries``, its way over the epochs. Of lines: ``line`` and ``surface``, the loss over weight
    and bias with the path that was walked.

    Args:
        every_n_epochs: in between means after every so many epochs; None is never.
    """

    def __init__(self, every_n_epochs: int | None = None) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"callbacks.pictures.every_n_epochs={every_n_epochs} must be at least 1")
        self.every_n_epochs = every_n_epochs
        # The way of a net of a few weights: its weights before the training and after every so many epochs.
        self.way: dict[int, dict[str, Tensor]] = {}
        self._stride = 1
        self.write_error: OSError | None = None  # after which no more are drawn

    # --- what has to be remembered ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._follow = (
            get_datamodule(trainer).shape in ((1,), (2,)) and sum(p.numel() for p in pl_module.parameters()) < 1e4
        )
        if not self.way:
            self._remember(0, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remember(trainer.current_epoch + 1, pl_module)

    def _remember(self, epoch: int, pl_module: Any) -> None:
        if self._follow and epoch % self._stride == 0:
            state = pl_module.net.state_dict()
            self.way[epoch] = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
            if len(self.way) > 100:  # all of it is in every checkpoint
                self._stride *= 2
                self.way = {number: state for number, state in self.way.items() if number % self._stride == 0}

    def state_dict(self) -> dict[str, Any]:
        return {"way": self.way, "stride": self._stride}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.way, self._stride = state["way"], state["stride"]

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._classifies = bool(get_datamodule(trainer).class_names) and hasattr(pl_module, "probabilities")
        self._shares: list[Tensor] = []  # (B, classes)
        self._targets: list[Tensor] = []  # (B,)
        self._worst: list[tuple[Tensor, ...]] = []  # images (B, C, H, W), shares (B, classes), targets (B,)
        self._first: tuple[Tensor, ...] | None = None

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if not self._classifies:
            return
        inputs, targets = batch
        shares = pl_module.probabilities(outputs).float()
        self._shares.append(shares.cpu())
        self._targets.append(targets.cpu())
        if inputs.dim() == 4:
            pictures = get_datamodule(trainer).to_uint8
            confidence, label = shares.max(1)
            order = torch.where(label == targets, -1.0, confidence).argsort(descending=True)[:MOST]
            worst = order[(label != targets)[order]]
            self._worst.append((pictures(inputs[worst]).cpu(), shares[worst].cpu(), targets[worst].cpu()))
            if self._first is None and len(targets):
                self._first = pictures(inputs[:6]).cpu(), shares[:6].cpu(), targets[:6].cpu()

    # --- when they are drawn ----------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # At the start of the next epoch, when the row of the last one is written.
        if self.every_n_epochs and trainer.current_epoch and trainer.current_epoch % self.every_n_epochs == 0:
            self._draw(trainer, self._of_training(trainer, pl_module))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, self._of_training(trainer, pl_module))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._classifies and self._targets:
            self._draw(trainer, self._of_test(trainer))

    def _of_training(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, "Figure"]:
        history = get_metrics_history(trainer)
        datamodule, net = get_datamodule(trainer), pl_module.net
        checked_on = {"val": "validation", "train": "training set, after the epoch"}.get(
            datamodule.validate_on, datamodule.validate_on
        )
        figures = {}
        if any("train/loss" in row for row in history.rows):
            figures["loss"] = loss_curve(history.rows, history.curve, len(datamodule.train_indices), checked_on)
        if any("train/acc" in row for row in history.rows):
            figures["accuracy"] = accuracy_curve(history.rows, checked_on)
        first = next((layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))), None)
        if isinstance(first, nn.Conv2d):
            figures["filters"] = filters(first.weight.detach().cpu())
        two = datamodule.shape == (2,) and len(datamodule.class_names) == 2
        if self.way and two and hasattr(pl_module, "probabilities"):
            figures |= self._boundaries(datamodule, pl_module)
        if self.way and hasattr(net, "coefficients") and isinstance(pl_module.loss, nn.MSELoss):
            inputs, targets = datamodule.load()[0]
            path = np.array([[tensor.item() for tensor in state.values()] for state in self.way.values()])  # (n, 2)
            path = np.vstack([path, [parameter.item() for parameter in net.parameters()]])
            path = path[np.isfinite(path).all(1)]
            x, y = datamodule.normalize(inputs)[:, 0].numpy(), targets[:, 0].numpy()
            figures |= {"line": line_fit(x, y, *path[-1]), "surface": loss_surface(x, y, path)}
        return figures

    @torch.no_grad()
    def _boundaries(self, datamodule: Any, pl_module: Any) -> dict[str, "Figure"]:
        net, final = pl_module.net, -1
        training = net.training
        states = self.way | {final: {name: tensor.clone() for name, tensor in net.state_dict().items()}}

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
                "boundaries": decision_boundaries(probs_at, list(self.way), points, targets, names),
            }
        finally:
            net.load_state_dict(states[final])
            net.train(training)

    def _of_test(self, trainer: pl.Trainer) -> dict[str, "Figure"]:
        names = get_datamodule(trainer).class_names
        shares, targets = torch.cat(self._shares), torch.cat(self._targets)
        pairs = torch.bincount(targets * len(names) + shares.argmax(1), minlength=len(names) ** 2)
        counts = pairs.view(len(names), len(names)).numpy()
        figures = {"confusion": confusion_matrix(counts, names), "classes": per_class_accuracy(counts, names)}
        if self._first is not None:
            pictures, first_shares, first_targets = self._first
            figures["samples"] = image_grid(pictures, [names[target] for target in first_targets])
            figures["predictions"] = predictions(pictures, first_shares, first_targets, names)
            worst = [torch.cat(part) for part in zip(*self._worst, strict=True)]
            if len(worst[0]):
                order = worst[1].max(1).values.argsort(descending=True)[:MOST]
                title = f"the most confident of {int((shares.argmax(1) != targets).sum()):,} mistakes"
                pictures, worst_shares, worst_targets = (part[order] for part in worst)
                figures["mistakes"] = predictions(pictures, worst_shares, worst_targets, names, title)
        return figures

    def _draw(self, trainer: pl.Trainer, figures: dict[str, "Figure"]) -> None:
        if not trainer.is_global_zero:
            return
        for name, figure in figures.items():
            if self.write_error:
                return
            try:
                picture = to_pixels(figure)
                write_png(Path(trainer.default_root_dir) / "pictures" / f"{name}.png", picture)
            except OSError as error:  # the run is worth more than its pictures
                self.write_error = error
                log.warning("no more pictures: %s; the run goes on", error)
                return
            for logger in trainer.loggers:
                if hasattr(logger, "log_picture"):
                    logger.log_picture(f"pictures/{name}", picture, trainer.global_step)
