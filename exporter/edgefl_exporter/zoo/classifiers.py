"""Classifiers of small images, one layer after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefl_exporter.zoo.entry import seeded


@seeded
def digits() -> tuple[nn.Module, Tensor]:
    """A CNN for scikit-learn's 8x8 digits, pixels 0..1."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [batch, 32, 4, 4]
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return model, torch.zeros(1, 1, 8, 8)


@seeded
def mnist_2nn() -> tuple[nn.Module, Tensor]:
    """FedAvg's "2NN" for MNIST: 784-200-200-10."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )
    return model, torch.zeros(1, 1, 28, 28)


@seeded
def mnist_cnn() -> tuple[nn.Module, Tensor]:
    """FedAvg's CNN for MNIST.

    Only "same" padding gives the paper's 1,663,370 parameters.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [batch, 64, 7, 7]
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )
    return model, torch.zeros(1, 1, 28, 28)


@seeded
def mnist_cnn_gn() -> tuple[nn.Module, Tensor]:
    """A small CNN with GroupNorm for MNIST."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [batch, 32, 7, 7]
        nn.Flatten(),
        nn.Linear(1568, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return model, torch.zeros(1, 1, 28, 28)


@seeded
def lenet5() -> tuple[nn.Module, Tensor]:
    """LeNet-5 for 28x28 digits.

    As it is used today: plain averages instead of trainable pools, every channel connected, a linear output layer.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),  # [batch, 6, 14, 14]
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),  # [batch, 16, 5, 5]
        nn.Conv2d(16, 120, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )
    return model, torch.zeros(1, 1, 28, 28)


@seeded
def vgg11(width: int = 64) -> tuple[nn.Module, Tensor]:
    """VGG-11 with BatchNorm for CIFAR-10, with one linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for step in (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool"):
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
        else:
            out = step * width
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10)), torch.zeros(1, 3, 32, 32)


def vgg11_small() -> tuple[nn.Module, Tensor]:
    """VGG-11 with BatchNorm at a quarter of its width, for CIFAR-10."""
    return vgg11(width=16)


@seeded
def fedmrl_cnn(second: int, hidden: int, features: int = 500) -> tuple[nn.Module, Tensor]:
    """One of FedMRL's five heterogeneous CNNs for CIFAR-10; `features` is the width before its last layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [batch, 16, 14, 14]
        nn.Conv2d(16, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [batch, second, 5, 5]
        nn.Flatten(),
        nn.Linear(second * 25, hidden),
        nn.ReLU(),
        nn.Linear(hidden, features),
        nn.ReLU(),
        nn.Linear(features, 10),
    )
    return model, torch.zeros(1, 3, 32, 32)


def cnn1() -> tuple[nn.Module, Tensor]:
    """FedMRL's CNN-1 for CIFAR-10: 32 channels, 2000 hidden units."""
    return fedmrl_cnn(32, 2000)


def cnn2() -> tuple[nn.Module, Tensor]:
    """FedMRL's CNN-2 for CIFAR-10: 16 channels, 2000 hidden units."""
    return fedmrl_cnn(16, 2000)


def cnn3() -> tuple[nn.Module, Tensor]:
    """FedMRL's CNN-3 for CIFAR-10: 32 channels, 1000 hidden units."""
    return fedmrl_cnn(32, 1000)


def cnn4() -> tuple[nn.Module, Tensor]:
    """FedMRL's CNN-4 for CIFAR-10: 32 channels, 800 hidden units."""
    return fedmrl_cnn(32, 800)


def cnn5(features: int = 500) -> tuple[nn.Module, Tensor]:
    """FedMRL's CNN-5 and shared small model for CIFAR-10: 32 channels, 500 hidden units.

    As the small model it has `features` d1 of 100 to 500.
    """
    return fedmrl_cnn(32, 500, features)
