"""Architectures: plain ``nn.Module`` classes that know torch alone. All return logits."""

from lit_models.nets.cifar_net import CifarNet
from lit_models.nets.cnn import CNN, DropoutCNN, QuickCNN, ResidualCNN
from lit_models.nets.lenet import LeNet
from lit_models.nets.line import Line, RawLine
from lit_models.nets.mlp import MLP, BinaryMLP
from lit_models.nets.resnet import ResNet18

__all__ = [
    "CNN",
    "MLP",
    "BinaryMLP",
    "CifarNet",
    "DropoutCNN",
    "LeNet",
    "Line",
    "QuickCNN",
    "RawLine",
    "ResNet18",
    "ResidualCNN",
]
