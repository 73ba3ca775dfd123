"""The forward-forward algorithm: layers that learn by themselves, without backpropagation through the net."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lit_models.nets import ForwardForwardNet
from lit_models.supervised import Batch, Classifier
from runs.format import check_positive_int


class ForwardForward(Classifier):
    """Trains each layer to find inputs with their own label good, and those with a wrong label not (Hinton 2022,
    arXiv:2212.13345).

    The goodness of a layer minus the threshold is its log-odds for "this label is right", and the loss is the
    cross-entropy with that. Gradients end at the input of a layer. The predicted label is the one with the most
    goodness in all layers. Its probability takes the layers for independent witnesses, one label being right: the
    softmax of the goodness.

    ``train/loss`` is the sum over the layers that learn. There is no loss of a validation or a test.

    Args:
        net: has layers whose outputs can be computed one by one.
        loss: takes log-odds and whether each label is right, 0 or 1, both float ``(B,)``.
        threshold: goodness of a label that is as likely right as wrong.
        epochs_per_layer: the layers learn one after the other, each in so many epochs, and the last one in all that are
            left. None trains all of them at once, each on what the layer before gives at that moment.
        **kwargs: see :class:`Supervised`.
    """

    measures = ("train/loss", "val/acc", "test/acc")
    net: ForwardForwardNet

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        threshold: float = 2.0,
        epochs_per_layer: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, loss=loss, **kwargs)
        if epochs_per_layer is not None:
            check_positive_int("model.epochs_per_layer", epochs_per_layer)
        self.threshold, self.epochs_per_layer = threshold, epochs_per_layer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, labels = batch
        right, wrong = (self.net.with_labels(inputs, these) for these in (labels, self.wrong_labels(labels)))
        x = torch.cat([right, wrong])  # (2 * B, 784)
        is_right = torch.cat([torch.ones_like(labels), torch.zeros_like(labels)]).to(x.dtype)
        learning, losses = self.learning_layers(), []
        for number in range(learning.stop):
            with torch.set_grad_enabled(number in learning):
                x = self.net.run_layer(number, x.detach())
            if number in learning:
                losses.append(self.loss(x.square().mean(1) - self.threshold, is_right))
        loss = torch.stack(losses).sum()
        self.accumulate("train", len(labels), {"loss": loss})
        return loss

    def wrong_labels(self, labels: Tensor) -> Tensor:
        """Return a wrong label for each of ``(B,)``, drawn with the same random numbers for each batch.

        Where all examples are one batch in a constant order, an example thus keeps its wrong label.
        """
        generator = torch.Generator().manual_seed(self.seed)
        shifts = torch.randint(1, self.net.num_classes, (len(labels),), generator=generator)
        return (labels + shifts.to(labels.device)) % self.net.num_classes

    def learning_layers(self) -> range:
        """Return the numbers of the layers that learn in this epoch."""
        layers = len(self.net.layers)
        if self.epochs_per_layer is None:
            return range(layers)
        number = min(self.current_epoch // self.epochs_per_layer, layers - 1)
        return range(number, number + 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, stage: str) -> Tensor:
        inputs, labels = batch
        goodness = self(inputs)  # (B, num_classes)
        self.accumulate(stage, len(labels), {}, self.compute_metrics(goodness, labels))
        return goodness

    def goodness(self, inputs: Tensor) -> Tensor:  # (B, *input_shape)
        """Return the goodness of each label in each layer, ``(B, layers, num_classes)``."""
        return self.net.goodness(inputs)

    def check_trainer(self, trainer: pl.Trainer) -> None:
        if trainer.world_size > 1:  # DistributedDataParallel waits for gradients of layers that do not learn
            raise ValueError("a forward-forward net trains in one process: trainer.devices=1 trainer.num_nodes=1")
        validated_on = getattr(getattr(trainer, "datamodule", None), "validate_on", None)
        if (
            trainer.limit_train_batches == 1
            and isinstance(trainer.limit_train_batches, int)
            and validated_on == "train"
        ):
            raise ValueError(
                "debug=overfit: a forward-forward net learns from one wrong label for each image of a batch, always "
                "the same, and cannot tell the others from the right one"
            )
        super().check_trainer(trainer)

    def check_data(self, datamodule: Any) -> None:
        """Raise ValueError for data whose targets are not classes."""
        if not datamodule.class_names:
            raise ValueError("a forward-forward net learns labels, and the targets of the data are numbers")
