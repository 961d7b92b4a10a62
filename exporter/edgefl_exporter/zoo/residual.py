"""Residual networks for CIFAR-10: ResNet and Wide ResNet."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl_exporter.zoo.entry import seeded

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.Module:
    """Groups of 8 channels: no statistics of the batch, so nothing drifts apart between devices."""
    return nn.GroupNorm(channels // 8, channels)


class Block(nn.Module):
    """Two convolutions of 3x3 beside a shortcut without parameters: every second pixel, and zeros for new channels."""

    def __init__(self, channels: int, out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = norm(out)
        self.stride, self.new = stride, out - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return F.relu(y + x)


def resnet(depth: int, norm: Norm, width: int = 16, image: int = 32, colours: int = 3) -> tuple[nn.Module, Tensor]:
    """A ResNet of 6n+2 = `depth` layers in three stages of `width`, 2 `width` and 4 `width` channels."""
    blocks: list[nn.Module] = []
    channels = width
    for stage in range(3):
        for index in range((depth - 2) // 6):
            out = width * 2**stage
            blocks.append(Block(channels, out, 2 if stage and not index else 1, norm))
            channels = out
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(colours, width, 3, padding=1, bias=False), norm(width), nn.ReLU()),
        *blocks,
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)),
    )
    return model, torch.zeros(1, colours, image, image)


@seeded
def mnist_resnet8() -> tuple[nn.Module, Tensor]:
    """ResNet-8 with BatchNorm for MNIST: one block per stage."""
    return resnet(8, nn.BatchNorm2d, image=28, colours=1)


@seeded
def resnet8() -> tuple[nn.Module, Tensor]:
    """ResNet-8 with BatchNorm for CIFAR-10: one block per stage."""
    return resnet(8, nn.BatchNorm2d)


@seeded
def resnet8_gn() -> tuple[nn.Module, Tensor]:
    """ResNet-8 with GroupNorm for CIFAR-10."""
    return resnet(8, group_norm)


@seeded
def resnet20() -> tuple[nn.Module, Tensor]:
    """ResNet-20 with BatchNorm for CIFAR-10: three blocks per stage."""
    return resnet(20, nn.BatchNorm2d)


@seeded
def resnet20_gn() -> tuple[nn.Module, Tensor]:
    """ResNet-20 with GroupNorm for CIFAR-10."""
    return resnet(20, group_norm)


class WideBlock(nn.Module):
    """Norm and ReLU before each of two convolutions; where the shape changes, the shortcut is a convolution of 1x1."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return y + (self.shortcut(active) if self.shortcut is not None else x)


@seeded
def wrn_16_1(depth: int = 16, width: int = 16) -> tuple[nn.Module, Tensor]:
    """Wide ResNet of 16 layers and widening factor 1 for CIFAR-10."""
    blocks: list[nn.Module] = []
    channels = width
    for stage in range(3):
        for index in range((depth - 4) // 6):
            out = width * 2**stage
            blocks.append(WideBlock(channels, out, 2 if stage and not index else 1))
            channels = out
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        *blocks,
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )
    return model, torch.zeros(1, 3, 32, 32)
