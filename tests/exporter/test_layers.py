"""Layer by layer: whole training steps of a small net agree with PyTorch. `export` proves it or raises ParityError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgefl_exporter import SGD, export

IMAGE = (2, 3, 9, 9)
ROW = (2, 8)


def image_net(*layers: nn.Module, width: int) -> nn.Module:
    """A convolution, the layers, a linear head: the layers get a gradient and pass one on."""
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *layers, nn.Flatten(), nn.Linear(width, 5))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.shortcut = nn.Conv2d(6, 8, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + self.shortcut(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x.reshape(-1, 2, 4).repeat(1, 1, 2))[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)), ROW),
    "layer norm, gelu": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5)),
        ROW,
    ),
    "batch norm 1d": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)),
        ROW,
    ),
    "batch norm, max pool": (
        lambda: image_net(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), width=96),
        IMAGE,
    ),
    "group norm, silu": (lambda: image_net(nn.GroupNorm(2, 6), nn.SiLU(), width=486), IMAGE),
    "strided, dilated": (
        lambda: image_net(nn.Conv2d(6, 9, 3, 2, 1), nn.ReLU(), nn.Conv2d(9, 4, 2, dilation=2), width=36),
        IMAGE,
    ),
    "even kernel": (lambda: image_net(nn.Conv2d(6, 8, (2, 4), (1, 3), (0, 1)), width=192), IMAGE),
    "depthwise, pointwise": (
        lambda: image_net(nn.Conv2d(6, 6, 3, 2, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1), width=64),
        IMAGE,
    ),
    "transposed": (lambda: image_net(nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.ReLU(), width=1296), IMAGE),
    "overlapping max pool": (lambda: image_net(nn.ReLU(), nn.MaxPool2d(3, 2, 1), width=150), IMAGE),
    "ceil max pool": (lambda: image_net(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), width=150), IMAGE),
    "average pool": (lambda: image_net(nn.AvgPool2d(2), nn.ReLU(), width=96), IMAGE),
    "padded average pool": (
        lambda: image_net(nn.AvgPool2d(3, 2, 1, count_include_pad=False), width=150),
        IMAGE,
    ),
    "uneven adaptive pool": (lambda: image_net(nn.AdaptiveAvgPool2d(4), width=96), IMAGE),
    "residual, global pool": (lambda: image_net(Residual(), nn.AdaptiveAvgPool2d(1), width=8), IMAGE),
    "recurrent": (Recurrent, ROW),
    "tied weights": (Tied, ROW),
}


@pytest.mark.parametrize("name", LAYERS)
def test_training_steps_equal_pytorch(name: str, tmp_path: Path) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(1)
    bundle = export(
        make(),
        torch.zeros(shape),
        out=tmp_path / "net.bundle",
        name="net",
        programs=("train",),
        optimizer=SGD(momentum=0.9, weight_decay=1e-3),
    )
    program = bundle.manifest.program("train")
    assert program.parity.checks["batches"] < 1e-4
    assert program.file.size_bytes < 64 * 1024  # weights are inputs; nothing large is baked in
