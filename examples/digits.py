"""A small CNN for handwritten digits of 8x8 pixels: `edgefl export examples/digits.py:model`.

Any function like `model` can be exported: it returns a torch.nn.Module and an example input [batch, ...].
"""

import torch
from torch import nn


def model() -> tuple[nn.Module, torch.Tensor]:
    """Pixels 0..1 as [batch, 1, 8, 8] -> logits [batch, 10]."""
    torch.manual_seed(0)  # everybody starts from the same weights
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [batch, 32, 4, 4]
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return net, torch.rand(16, 1, 8, 8)  # values of 0..1, and so the bundle states that range
