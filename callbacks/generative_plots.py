"""Plots of what a model makes: images from random numbers, reconstructions, codes, and continued series."""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks import get_datamodule
from plots.generative import code_plane, latent_walk, project_codes, reconstructions, sample_grid, samples_over_epochs
from plots.series import continuations
from runs.format import one_line
from runs.protocols import ContinuesSeries, Generates, Reconstructs

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 64  # in generated.png
COLUMNS = 10  # of reconstructions, and of samples over the epochs
MAX_EPOCHS = 12  # in generated_epochs.png; every checkpoint holds the samples of each
MAX_CODES = 5000  # in codes.png
WALK = 16  # steps along each axis of walk.png
SERIES = 3  # in continuation.png


class GenerativePlots(pl.Callback):
    """What :class:`callbacks.plots.Plots` draws of models that generate, encode and reconstruct, or continue inputs.

    Of generators: ``generated``, images of the same latent vectors after each epoch, and ``generated_epochs``, the
    first of them over the epochs. Of autoencoders: ``codes`` of test examples in the plane, ``reconstructions`` of test
    images and, where a code has two numbers, ``walk``, the images along a grid of codes. Of models of series:
    ``continuation``, the first test series, each continued by as many numbers as it has.
    """

    def __init__(self) -> None:
        # Epoch -> images, uint8: 0 is before training, then every ``_sample_stride`` epochs.
        self.samples: dict[int, Tensor] = {}
        self._sample_stride = 1
        self._not_drawn: set[str] = set()

    @contextlib.contextmanager
    def _drawing(self, what: str) -> Iterator[None]:
        """Log once that something could not be drawn, and go on: a run is worth more than its pictures."""
        try:
            yield
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, OSError):  # a signal, or a full disk
                raise
            if what not in self._not_drawn:
                self._not_drawn.add(what)
                kind = type(error).__name__
                log.warning("%s cannot be drawn: %s: %s; the run continues", what, kind, one_line(error))

    # --- generators -------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0 and isinstance(pl_module, Generates) and _has_images(trainer):
            self._record_samples(0, _samples(trainer, pl_module))

    def _record_samples(self, epoch: int, images: Tensor) -> None:
        if epoch % self._sample_stride:
            return
        self.samples[epoch] = images[:COLUMNS].clone()
        if len(self.samples) > MAX_EPOCHS:
            self._sample_stride *= 2
            self.samples = {e: images for e, images in self.samples.items() if e % self._sample_stride == 0}

    def _epoch_figures(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, "Figure"]:
        """Record images of a generator after an epoch, and return their figure."""
        if not (isinstance(pl_module, Generates) and _has_images(trainer)):
            return {}
        images, epoch = _samples(trainer, pl_module), trainer.current_epoch + 1
        self._record_samples(epoch, images)
        figures: dict[str, Figure] = {}
        with self._drawing("generated.png"):
            figures["generated"] = sample_grid(images, f"generated after epoch {epoch}")
        return figures

    def _strip_figures(self) -> dict[str, "Figure"]:
        if len(self.samples) < 2:
            return {}
        figures: dict[str, Figure] = {}
        with self._drawing("generated_epochs.png"):
            title = "the same latent vectors, one in each column"
            figures["generated_epochs"] = samples_over_epochs(self.samples, title)
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "sample_stride": self._sample_stride}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self._sample_stride = state.get("samples", {}), state.get("sample_stride", 1)

    # --- autoencoders and forecasts ---------------------------------------------------------------------------------

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._codes: list[Tensor] = []  # (B, D)
        self._code_targets: list[Tensor] = []  # (B,)
        self._reconstructions: tuple[Tensor, Tensor] | None = None  # uint8 (N, C, H, W) each
        self._continuations: tuple[Tensor, Tensor] | None = None  # (N, T) each

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if isinstance(pl_module, ContinuesSeries) and self._continuations is None:
            series = batch[0][:SERIES]
            self._continuations = series.cpu(), pl_module.continue_series(series, series.shape[1]).cpu()
        if not isinstance(pl_module, Reconstructs) or sum(map(len, self._codes)) >= MAX_CODES:
            return
        inputs, targets = batch if isinstance(batch, (tuple, list)) else (batch, batch)
        self._codes.append(pl_module.encode(inputs).float().cpu())
        self._code_targets.append(targets.cpu())
        if self._reconstructions is None and len(inputs) and _has_images(trainer):
            to_uint8, some = get_datamodule(trainer).to_uint8, inputs[: 2 * COLUMNS]
            self._reconstructions = to_uint8(some).cpu(), to_uint8(pl_module.reconstruct(some)).cpu()

    def _code_figures(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, "Figure"]:
        figures: dict[str, Figure] = {}
        if self._reconstructions is not None:
            with self._drawing("reconstructions.png"):
                figures["reconstructions"] = reconstructions(*self._reconstructions, COLUMNS)
        if self._continuations is not None:
            series, continued = (part.double().numpy() for part in self._continuations)
            labels = [f"test series {number}" for number in range(1, len(series) + 1)]
            with self._drawing("continuation.png"):
                figures["continuation"] = continuations(series, continued, labels)
        if not self._codes or self._codes[0].shape[1] < 2:
            return figures
        codes, targets = torch.cat(self._codes)[:MAX_CODES], torch.cat(self._code_targets)[:MAX_CODES]
        with self._drawing("codes.png"):
            figures["codes"] = code_plane(codes, targets, get_datamodule(trainer).class_names)
        if codes.shape[1] == 2 and _has_images(trainer):
            low, high = codes.quantile(0.02, 0), codes.quantile(0.98, 0)
            first = torch.linspace(low[0].item(), high[0].item(), WALK)
            second = torch.linspace(high[1].item(), low[1].item(), WALK)  # the first row is at the top
            grid = torch.cartesian_prod(second, first).flip(1)  # (WALK * WALK, 2)
            with self._drawing("walk.png"), _evaluating(pl_module):
                images = get_datamodule(trainer).to_uint8(pl_module.decode(grid.to(next(pl_module.parameters())))).cpu()
                figures["walk"] = latent_walk(images, first.tolist(), second.tolist(), project_codes(codes)[1])
        return figures


def _has_images(trainer: pl.Trainer) -> bool:
    """Return whether the data is images, and with it what a model reconstructs or generates."""
    return len(get_datamodule(trainer).shape) == 3


def _samples(trainer: pl.Trainer, pl_module: Any) -> Tensor:
    """Return images of always the same latent vectors, uint8 ``(SAMPLES, C, H, W)``."""
    latents = torch.randn(SAMPLES, pl_module.latent_dim, generator=torch.Generator().manual_seed(0))
    with _evaluating(pl_module):
        return get_datamodule(trainer).to_uint8(pl_module.sample(latents.to(next(pl_module.parameters())))).cpu()


@contextlib.contextmanager
def _evaluating(pl_module: pl.LightningModule) -> Iterator[None]:
    """Leave training mode, whose batch norm would learn from what is only looked at."""
    modes = {module: module.training for module in pl_module.modules()}
    pl_module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
