"""LightningModules: one class for each training procedure."""

from lit_models.autoencoder import VAE, Autoencoder
from lit_models.distillation import Distillation
from lit_models.finetuning import FineTuning
from lit_models.forecaster import Forecaster
from lit_models.forward_forward import ForwardForward
from lit_models.gan import GAN
from lit_models.line import LineByAutograd, LineByHand
from lit_models.siamese import Siamese
from lit_models.speedrun import Speedrun
from lit_models.supervised import Classifier, Supervised

__all__ = [
    "GAN",
    "VAE",
    "Autoencoder",
    "Classifier",
    "Distillation",
    "FineTuning",
    "Forecaster",
    "ForwardForward",
    "LineByAutograd",
    "LineByHand",
    "Siamese",
    "Speedrun",
    "Supervised",
]
