"""Models of what is no photograph: sound, tables, machines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from edgefl_exporter.zoo.entry import seeded


@seeded
def kws(width: int = 64, depth: int = 4) -> tuple[nn.Module, Tensor]:
    """Keyword spotting, small DS-CNN: one second as 49 frames of 10 MFCCs, 12 words."""

    def normed(convolution: nn.Module) -> list[nn.Module]:
        return [convolution, nn.BatchNorm2d(width), nn.ReLU()]

    layers = normed(nn.Conv2d(1, width, (10, 4), 2, padding=(5, 1), bias=False))
    for _ in range(depth):
        layers += normed(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False))
        layers += normed(nn.Conv2d(width, width, 1, bias=False))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 12))
    return model, torch.zeros(1, 1, 49, 10)


@seeded
def kws_1d(width: int = 32) -> tuple[nn.Module, Tensor]:
    """Keyword spotting over time: 98 frames with 40 MFCCs as channels, 12 words."""
    layers: list[nn.Module] = []
    channels = 40
    for kernel, out in ((3, width), (9, width), (9, 2 * width), (9, 2 * width)):
        layers += [nn.Conv1d(channels, out, kernel, 2, kernel // 2, bias=False), nn.BatchNorm1d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, 12)), torch.zeros(
        1, 40, 98
    )


class Tabular(nn.Module):
    """Rows [batch, columns]: the first columns hold category numbers, the others quantities.

    A category out of range counts as the nearest one.
    """

    def __init__(self, categories: Sequence[int], numbers: int, embedding: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.largest = [count - 1 for count in categories]
        self.embeddings = nn.ModuleList(nn.Embedding(count, embedding) for count in categories)
        width = len(categories) * embedding + numbers
        self.body = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            embedding(x[:, column].round().clamp(0, largest).long())
            for column, (embedding, largest) in enumerate(zip(self.embeddings, self.largest, strict=True))
        ]
        logits: Tensor = self.body(torch.cat([*parts, x[:, len(parts) :]], 1))
        return logits


@seeded
def tabular() -> tuple[nn.Module, Tensor]:
    """An MLP with embeddings for the Adult census table: 8 columns of categories, 6 of numbers."""
    # How many values workclass, education, marital status, occupation, relationship, race, sex and country have,
    # with one for "unknown" where the table has it.
    return Tabular((9, 16, 7, 15, 6, 5, 2, 42), 6, 8, 64, 2), torch.zeros(1, 14)


@seeded
def autoencoder(width: int = 128) -> tuple[nn.Module, Tensor]:
    """Finds faulty machines by sound: 640-8-640, labels are the input."""
    sizes = (640, width, width, width, width, 8, width, width, width, width)
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following, bias=False), nn.BatchNorm1d(following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 640)), torch.zeros(1, 640)


@seeded
def regression() -> tuple[nn.Module, Tensor]:
    """One number from 8 (the California housing table): 8-64-64-1."""
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    return model, torch.zeros(1, 8)
