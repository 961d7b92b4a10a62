"""Four architectures for handwritten digits of 8x8 pixels, which have nothing in common, and a student.

For codream.toml. Each gives a module, pixels 0..1 as [batch, 1, 8, 8] -> logits [batch, 10], and an example input.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor]


def dense() -> Made:
    return made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))


def lenet() -> Made:
    """As LeNet: convolutions and average pooling, without normalisation."""
    return made(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
    )


def residual() -> Made:
    """Two residual blocks with BatchNorm."""
    return made(
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            Block(16),
            Block(16),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    )


def grouped() -> Made:
    """Convolutions with GroupNorm."""
    return made(
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
    )


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def made(make: Callable[[], nn.Module]) -> Made:
    torch.manual_seed(0)
    return make(), torch.zeros(1, 1, 8, 8)
