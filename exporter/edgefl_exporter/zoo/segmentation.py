"""Models that give every pixel a class."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from edgefl_exporter.zoo.entry import seeded


def double(channels: int, out: int) -> nn.Module:
    """Two convolutions of 3x3 that keep the size."""
    layers: list[nn.Module] = []
    for source in (channels, out):
        layers += [nn.Conv2d(source, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images [batch, 3, H, W] -> logits [batch, classes, H, W]; H and W are multiples of 2 ** depth."""

    def __init__(self, classes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(depth + 1)]
        self.first = double(3, width)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(double(small, large) for small, large in pairwise(sizes))
        back = list(pairwise(sizes[::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(large, small, 2, stride=2) for large, small in back)
        self.join = nn.ModuleList(double(2 * small, small) for _, small in back)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for down in self.down:
            kept.append(down(self.pool(kept[-1])))
        y = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            y = join(torch.cat([kept.pop(), up(y)], 1))
        logits: Tensor = self.head(y)
        return logits


@seeded
def unet(width: int = 8, depth: int = 2, image: int = 64) -> tuple[nn.Module, Tensor]:
    """A small U-Net, three classes for every pixel of 64x64 (pet, background, border)."""
    return UNet(3, width, depth), torch.zeros(1, 3, image, image)
