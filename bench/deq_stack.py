"""The explicit network beside an equilibrium: its injection and head, with a stack of layers in the block's place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefl_exporter.zoo import ZOO


class Layer(nn.Module):
    """z + relu(norm(3x3 convolution of z)), of [batch, channels, height, width]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, channels)

    def forward(self, z: Tensor) -> Tensor:
        return z + torch.relu(self.norm(self.convolution(z)))


def stack(equilibrium: str, layers: int) -> tuple[nn.Module, Tensor]:
    """The network and an example of its input, for a convolutional equilibrium of the zoo."""
    model, example = ZOO[equilibrium].make()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        channels = model.inject(example).shape[1]
        return nn.Sequential(model.inject, *(Layer(channels) for _ in range(layers)), model.head), example
