"""Architectures: plain ``nn.Module`` classes that know torch alone. All return logits."""

from lit_models.nets.cnn import CNN, DropoutCNN, ResidualCNN
from lit_models.nets.lenet import LeNet
from lit_models.nets.mlp import MLP

__all__ = ["CNN", "MLP", "DropoutCNN", "LeNet", "ResidualCNN"]
