"""Networks made for phones: depthwise convolutions, squeeze-and-excitation, ConvNeXt blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefl_exporter.zoo.entry import seeded


class Excite(nn.Module):
    """Squeeze-and-excitation: every channel times a factor 0..1 that depends on all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(x)
        return x * gate


class Inverted(nn.Module):
    """Widen with 1x1, filter each channel, narrow with 1x1; plus the input where the shapes agree."""

    def __init__(
        self, channels: int, hidden: int, out: int, stride: int, act: type[nn.Module], kernel: int = 3, se: bool = False
    ) -> None:
        super().__init__()
        widen = [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), act()]
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.body = nn.Sequential(
            *(widen if hidden != channels else []),
            depthwise,
            nn.BatchNorm2d(hidden),
            act(),
            *([Excite(hidden)] if se else []),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.keeps = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.keeps else y


# Expansion, channels, blocks, stride of the first. MobileNetV2's stages at half width and fewer blocks, and with
# fewer strides: CIFAR's images are 7 times smaller.
V2_STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 2, 2), (6, 32, 2, 2), (6, 48, 1, 1), (6, 80, 1, 2))


@seeded
def mobilenetv2(stages: tuple[tuple[int, int, int, int], ...] = V2_STAGES) -> tuple[nn.Module, Tensor]:
    """MobileNetV2 at half width and 9 blocks, for CIFAR-10."""
    channels = 16
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6()]
    for expansion, out, count, stride in stages:
        for index in range(count):
            layers.append(Inverted(channels, channels * expansion, out, 1 if index else stride, nn.ReLU6))
            channels = out
    last = 4 * channels
    layers += [nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10))
    return model, torch.zeros(1, 3, 32, 32)


def mobilenetv2_small() -> tuple[nn.Module, Tensor]:
    """MobileNetV2 with 7 blocks of 8 to 40 channels and expansion 4, for CIFAR-10."""
    return mobilenetv2(((1, 8, 1, 1), (4, 16, 2, 2), (4, 24, 2, 2), (4, 40, 2, 2)))


# Kernel, hidden channels, channels, squeeze-and-excitation, activation, stride: rows of MobileNetV3-small's table.
V3_BLOCKS: tuple[tuple[int, int, int, bool, type[nn.Module], int], ...] = (
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 120, 40, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 2),
)


@seeded
def mobilenetv3(
    blocks: tuple[tuple[int, int, int, bool, type[nn.Module], int], ...] = V3_BLOCKS,
) -> tuple[nn.Module, Tensor]:
    """MobileNetV3-small's kind of blocks, six of them, for CIFAR-10."""
    channels = 16
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.Hardswish(),
    ]
    for kernel, hidden, out, se, act, stride in blocks:
        layers.append(Inverted(channels, hidden, out, stride, act, kernel, se))
        channels = out
    last = 6 * channels
    layers += [nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.Hardswish()]
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 128), nn.Hardswish(), nn.Linear(128, 10)
    )
    return model, torch.zeros(1, 3, 32, 32)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [batch, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers over the channels with GELU between, scaled and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        # ConvNeXt's 1e-6 is for very deep nets; these few blocks may speak from the start.
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # [batch, height, width, channels]
        y = self.scale * self.narrow(nn.functional.gelu(self.widen(y)))
        return x + y.permute(0, 3, 1, 2)


@seeded
def convnext(widths: tuple[int, ...] = (32, 64), blocks: int = 2) -> tuple[nn.Module, Tensor]:
    """ConvNeXt blocks in two stages for CIFAR-10."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0])]
    for stage, width in enumerate(widths):
        if stage:
            layers += [ChannelNorm(widths[stage - 1]), nn.Conv2d(widths[stage - 1], width, 2, stride=2)]
        layers += [ConvNeXtBlock(width) for _ in range(blocks)]
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], 10)
    )
    return model, torch.zeros(1, 3, 32, 32)
