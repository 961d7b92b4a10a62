"""Five models for handwritten digits of 8x8 pixels, by the size of a device, and a small one that all share.

For fedmrl.toml. Each gives a module, pixels 0..1 as [batch, 1, 8, 8] -> logits [batch, 10], and an example input.
"""

import itertools

import torch
from torch import nn

Made = tuple[nn.Module, torch.Tensor]


def small() -> Made:
    """What all devices share: 2,410 parameters, 32 features before the last layer."""
    return dense(32)


def tiny() -> Made:
    return dense(48)


def modest() -> Made:
    return dense(128, 64)


def medium() -> Made:
    return convolutional(8, 64)


def large() -> Made:
    return convolutional(16, 128)


def huge() -> Made:
    return convolutional(32, 256)


def dense(*widths: int) -> Made:
    torch.manual_seed(0)  # everybody starts from the same weights
    layers: list[nn.Module] = [nn.Flatten()]
    for before, width in itertools.pairwise((64, *widths)):
        layers += [nn.Linear(before, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10)), torch.zeros(1, 1, 8, 8)


def convolutional(channels: int, hidden: int) -> Made:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [batch, 2 * channels, 4, 4]
        nn.Flatten(),
        nn.Linear(2 * channels * 16, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
    return net, torch.zeros(1, 1, 8, 8)
