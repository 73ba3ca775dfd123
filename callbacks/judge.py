"""Figures of a generator that can be wrong: a classifier of another run judges what it makes."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from callbacks import get_datamodule, get_net
from runs.protocols import Classifies, Generates

log = logging.getLogger(__name__)

FIGURES = ("recognized", "class_entropy", "frechet")
CONFIDENT = 0.9  # probability from which an image counts as recognized


class Judge(pl.Callback):
    """Logs how a classifier judges as many generated images as there are real ones in a validation or a test.

    - ``recognized``: the share that it gives a class with a probability of at least 0.9.
    - ``class_entropy``: of the predicted classes, in bits; log2 of their number where all are equally frequent.
    - ``frechet``: the Fréchet distance of the generated images from the real ones, between the inputs of its last
      layer. It is that of Heusel et al. 2017 (arXiv:1706.08500) with this classifier in place of Inception, so it
      compares only runs with the same judge and the same real images.

    Generated images are rounded to the bytes that they would be stored as. The latent vectors are always the same. What
    the judge recognizes of the real images is printed once: a net that was trained with label smoothing is never sure.

    Args:
        run: of the classifier.
        classifier: the datamodule and the LightningModule of that run.

    Raises:
        ValueError: the run has no classifier of such images, or the model does not generate any.
    """

    measures = tuple(f"{stage}/{name}" for stage in ("val", "test") for name in FIGURES)

    def __init__(self, run: str, classifier: tuple[Any, Any]) -> None:
        self.run = run
        self._data, self._model = classifier
        layers = [layer for layer in get_net(self._model).modules() if isinstance(layer, nn.Linear)]
        if not (self._data.class_names and isinstance(self._model, Classifies) and layers):
            raise ValueError(f"callbacks.judge.run={run} is not the run of a classifier that ends in a linear layer")
        layers[-1].register_forward_pre_hook(self._keep_features)
        self._num_features = layers[-1].in_features
        self._distances: dict[str, FrechetInceptionDistance] = {}  # val and test, each with its real images

    def _keep_features(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0].flatten(1)  # (B, features)

    def check_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise ValueError for a model that does not generate, or not images as the classifier's."""
        data = get_datamodule(trainer)
        if not isinstance(pl_module, Generates):
            name = type(pl_module).__name__
            raise ValueError(
                f"callbacks=judge is for models that generate, such as model=vae and model=gan, not {name}"
            )
        ours, theirs = ((type(one).__name__, tuple(one.shape), one.class_names) for one in (data, self._data))
        if ours != theirs:
            raise ValueError(
                f"callbacks.judge.run={self.run} learned {theirs[0]} in {theirs[1]}, and these are images of {ours[0]} "
                f"in {ours[1]}"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._model.to(pl_module.device).eval()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start("val", trainer.global_rank, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start("test", 0, pl_module)  # all processes test on all examples

    def _start(self, stage: str, rank: int, pl_module: pl.LightningModule) -> None:
        if stage not in self._distances:
            extractor = _Features(self._num_features)
            self._distances[stage] = FrechetInceptionDistance(extractor, reset_real_features=False)
        self._distance = self._distances[stage].to(pl_module.device)
        self._distance.reset()
        self._needs_real = not self._distance.real_features_num_samples  # they are the same in every epoch
        self._real: list[Tensor] = []  # whether each is recognized, bool (B,)
        self._generator = torch.Generator().manual_seed(rank)
        classes = len(self._data.class_names)
        self._counts = torch.zeros(1 + classes, dtype=torch.long, device=pl_module.device)  # recognized, by class

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._update(get_datamodule(trainer), pl_module, batch[0])

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._update(get_datamodule(trainer), pl_module, batch[0])

    def _update(self, data: Any, pl_module: Any, images: Tensor) -> None:
        if not len(images):
            return
        if self._needs_real:
            probs, features = self._judge(data.to_uint8(images))
            self._distance.update(features, real=True)
            self._real.append(probs.amax(1) >= CONFIDENT)
        latents = torch.randn(len(images), pl_module.latent_dim, generator=self._generator).to(images)
        probs, features = self._judge(data.to_uint8(pl_module.sample(latents)))
        self._distance.update(features, real=False)
        confidences, classes = probs.max(1)
        recognized = (confidences >= CONFIDENT).sum()
        self._counts += torch.cat([recognized[None], classes.bincount(minlength=probs.shape[1])])

    @torch.no_grad()
    def _judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities ``(B, classes)`` and the features ``(B, features)`` of images, uint8."""
        outputs = self._model(self._data.normalize(images))
        return self._model.probabilities(outputs), self._features

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log("test", trainer, pl_module)

    def _log(self, stage: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._real and trainer.is_global_zero:
            real = torch.cat(self._real)
            share, count = real.float().mean().item(), f"{len(real):,}"
            log.info("the judge recognizes %.1f %% of %s real images", 100 * share, count)
        recognized, *counts = trainer.strategy.reduce(self._counts, reduce_op="sum").double()
        shares = torch.stack(counts) / sum(counts)
        figures = {
            "recognized": recognized / sum(counts),
            "class_entropy": -(shares * shares.clamp_min(1e-12).log2()).sum(),
            "frechet": self._distance.compute(),
        }
        # MetricsHistory passes them to the loggers.
        pl_module.log_dict({f"{stage}/{name}": value.float() for name, value in figures.items()}, logger=False)


class _Features(nn.Identity):
    """Passes on features that are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
