"""LightningModules: one class for each training procedure."""

from lit_models.supervised import Classifier, Supervised

__all__ = ["Classifier", "Supervised"]
