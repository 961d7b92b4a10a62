"""Bundles of CoDream, small enough for tests: two architectures for 8x8 digits that have nothing in common."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgefl.data_contract import Normalisation
from edgefl_exporter import export
from edgefl_exporter.methods import CoDream
from edgefl_exporter.programs.optimizers import Adam

DREAMS = 6
NORMALISATION = Normalisation((0.5,), (0.25,))


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


def export_dreamers(folder: Path) -> None:
    """FOLDER/dense.bundle and FOLDER/normalised.bundle, with generators."""
    for make in (dense, normalised):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = make()
        export(
            net,
            torch.zeros(1, 1, 8, 8),
            out=folder / f"{make.__name__}.bundle",
            name=make.__name__,
            method=CoDream(dreams=DREAMS, generator=True),
            optimizer=Adam(learning_rate=0.01),
            normalisation=NORMALISATION,
        )
