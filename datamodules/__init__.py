"""LightningDataModules. Each has the ``shape`` of an input, ``num_classes`` and ``class_names``."""

from datamodules.batch_loader import BatchLoader
from datamodules.csv_table import CSVTable
from datamodules.image_folder import ImageFolder
from datamodules.images import CIFAR10, MNIST, FashionMNIST
from datamodules.in_memory import InMemoryDataModule
from datamodules.pairs import MNISTPairs
from datamodules.synthetic import XOR, Blobs, OneRandom, Separable, Sines, Table, Tabular

__all__ = [
    "CIFAR10",
    "MNIST",
    "XOR",
    "BatchLoader",
    "Blobs",
    "CSVTable",
    "FashionMNIST",
    "ImageFolder",
    "InMemoryDataModule",
    "MNISTPairs",
    "OneRandom",
    "Separable",
    "Sines",
    "Table",
    "Tabular",
]
