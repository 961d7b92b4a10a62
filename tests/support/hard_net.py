"""A net that onnxruntime-training cannot differentiate by itself."""

from __future__ import annotations

import torch
from torch import nn


def hard_net() -> nn.Module:
    """Layers that onnxruntime-training's own gradient builder lacks or gets wrong, one of each."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.ConvTranspose2d(8, 8, 2, stride=2),
        nn.GroupNorm(2, 8),
        nn.ELU(),
        nn.InstanceNorm2d(8, affine=True),
        nn.Softplus(),
        nn.PReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
