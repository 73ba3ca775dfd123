"""Architectures: plain ``nn.Module`` classes that import torch and torchvision only. Classifiers return logits."""

from lit_models.nets.autoencoder import MLPVAE, MLPAutoencoder
from lit_models.nets.cifar_net import CifarNet
from lit_models.nets.cnn import CNN, DropoutCNN, ExampleCNN, QuickCNN, ResidualCNN, StackedCNN
from lit_models.nets.forward_forward import ForwardForwardNet
from lit_models.nets.gan import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
from lit_models.nets.lenet import LeNet
from lit_models.nets.line import Line, RawLine
from lit_models.nets.lstm import RowLSTM, SeriesLSTM
from lit_models.nets.mlp import MLP, BinaryMLP
from lit_models.nets.resnet import ResNet18
from lit_models.nets.siamese import SiameseNet
from lit_models.nets.spatial_transformer import SpatialTransformer
from lit_models.nets.vit import ViT

__all__ = [
    "CNN",
    "MLP",
    "MLPVAE",
    "BinaryMLP",
    "CifarNet",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DropoutCNN",
    "ExampleCNN",
    "ForwardForwardNet",
    "LeNet",
    "Line",
    "MLPAutoencoder",
    "MLPDiscriminator",
    "MLPGenerator",
    "QuickCNN",
    "RawLine",
    "ResNet18",
    "ResidualCNN",
    "RowLSTM",
    "SeriesLSTM",
    "SiameseNet",
    "SpatialTransformer",
    "StackedCNN",
    "ViT",
]
