"""The MNIST tutorial as a script, for speed.py: torchvision's data set, a transform for each image, a DataLoader.

    python benchmarks/tutorial_mnist_cnn.py ROOT [--workers 2] [--epochs 10]

ROOT holds MNIST as torchvision keeps it.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.pooling = nn.MaxPool2d(2)
        self.fc = nn.Linear(320, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pooling(self.conv1(x)))
        x = F.relu(self.pooling(self.conv2(x)))
        return self.fc(x.flatten(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_set = datasets.MNIST(arguments.root, train=True, transform=transform)
    test_set = datasets.MNIST(arguments.root, train=False, transform=transform)
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, num_workers=arguments.workers)
    test_loader = DataLoader(test_set, batch_size=64, num_workers=arguments.workers)
    model = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    for epoch in range(arguments.epochs):
        running_loss = 0.0
        for batch_idx, (inputs, target) in enumerate(train_loader):
            optimizer.zero_grad()
            loss = criterion(model(inputs), target)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if batch_idx % 300 == 299:
                print(f"[{epoch + 1}, {batch_idx + 1:5d}] loss: {running_loss / 300:.3f}")
                running_loss = 0.0
        correct = 0
        with torch.no_grad():
            for inputs, target in test_loader:
                correct += (model(inputs).argmax(dim=1) == target).sum().item()
        print(f"accuracy on test set: {100 * correct / len(test_set):.2f} %")


if __name__ == "__main__":
    main()
