"""LightningModules: one class for each training procedure."""

from lit_models.finetuning import FineTuning
from lit_models.line import LineByAutograd, LineByHand
from lit_models.speedrun import Speedrun
from lit_models.supervised import Classifier, Supervised

__all__ = ["Classifier", "FineTuning", "LineByAutograd", "LineByHand", "Speedrun", "Supervised"]
