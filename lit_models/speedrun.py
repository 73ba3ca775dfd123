"""Classification in as few seconds as possible."""

from typing import Any

from lit_models.nets import CifarNet
from lit_models.supervised import Batch, Classifier


class Speedrun(Classifier):
    """Classification by a net whose first layer is whitened before training, as in the CIFAR-10 speedruns.

    The net is :class:`lit_models.nets.CifarNet`. Its parameters come in groups that :class:`lit_models.optim.Muon`
    treats in different ways.

    Args:
        whitening_images: number of training images that the whitening is computed from.
        whitening_until: fraction of the training during which the bias of the whitening layer is trained.
        **kwargs: see :class:`Supervised`.
    """

    measures = Classifier.measures
    net: CifarNet

    def __init__(self, whitening_images: int = 5000, whitening_until: float = 0.375, **kwargs: Any) -> None:
        if not 0 < whitening_until <= 1:
            raise ValueError(f"model.whitening_until={whitening_until} must be above 0 and at most 1")
        super().__init__(**kwargs)
        self.whitening_images, self.whitening_until = whitening_images, whitening_until

    def setup(self, stage: str) -> None:
        # Called before the weights of a checkpoint are read: a resumed run keeps its own whitening.
        if stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.net.init_whiten(data.first_inputs(self.whitening_images))

    def parameter_groups(self) -> list[dict[str, Any]]:
        net, groups = self.net, self.net.groups
        return [
            {"kind": "filters", "params": [weight for weight in groups.parameters() if weight.dim() == 4]},
            {"kind": "biases", "params": [bias for name, bias in groups.named_parameters() if name.endswith("bias")]},
            {"kind": "head", "params": [net.head.weight]},
            {"kind": "biases", "params": [net.whitening.bias], "until": self.whitening_until},
        ]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if not self.automatic_optimization:  # several processes wait for every gradient
            # Without this gradient the backward pass ends before the costly convolution on the whole image.
            learns = self.trainer.optimizers[0].param_groups[-1]["lr"] > 0
            self.net.get_parameter("whitening.bias").requires_grad_(learns)
