"""A network of two layers, exported: 2 numbers, a body of 3 tanh units, a head of one number; squared error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl_exporter import SGD, export


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))).squeeze(1)


def make_layers() -> Layers:
    torch.manual_seed(1)
    return Layers()


def export_layers(out: Path, **options: Any) -> Bundle:
    chosen = {"loss": "mse", "optimizer": SGD(0.1), "programs": ("train", "evaluate")} | options
    return export(make_layers(), torch.zeros(1, 2), out=out, name="layers", **chosen)
