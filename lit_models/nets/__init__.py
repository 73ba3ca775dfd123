"""Architectures: plain ``nn.Module`` classes that know torch alone. All return logits."""

from lit_models.nets.cnn import CNN, DropoutCNN, QuickCNN, ResidualCNN
from lit_models.nets.lenet import LeNet
from lit_models.nets.line import Line, RawLine
from lit_models.nets.mlp import MLP, BinaryMLP
from lit_models.nets.resnet import ResNet18
from lit_models.nets.speedrun import SpeedrunNet

__all__ = [
    "CNN",
    "MLP",
    "BinaryMLP",
    "DropoutCNN",
    "LeNet",
    "Line",
    "QuickCNN",
    "RawLine",
    "ResNet18",
    "ResidualCNN",
    "SpeedrunNet",
]
