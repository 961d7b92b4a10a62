"""Small networks, exported: two layers for regression, and classifiers with four features for FedProto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl_exporter import SGD, export
from edgefl_exporter.programs.equilibrium import equilibrium
from edgefl_exporter.zoo.equilibrium import Inhibition

CLASSES, FEATURES = 4, 4


class Layers(nn.Module):
    """2 numbers -> a body of 3 tanh units -> a head of one number."""

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


def export_classifier(out: Path, *, deep: bool = False) -> Bundle:
    """2 numbers -> 4 features, by one layer or by two -> 4 classes; FedProto's programs and FedAvg's."""
    torch.manual_seed(2)
    first = [nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, FEATURES)] if deep else [nn.Linear(2, FEATURES)]
    model = nn.Sequential(*first, nn.Tanh(), nn.Linear(FEATURES, CLASSES))
    chosen = {"optimizer": SGD(0.1), "programs": ("train", "evaluate")}
    return export(model, torch.zeros(1, 2), out=out, name=out.stem, method="fedproto", **chosen)


def export_equilibrium(out: Path) -> Bundle:
    """Regression by an equilibrium of 4 units: state "inject.*", "block.weight", "head.*"; a gradient program too."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    model = equilibrium(nn.Linear(2, 4), Inhibition(4), head)
    programs = ("train", "gradient", "evaluate")
    return export(model, torch.zeros(1, 2), out=out, name="solved", loss="mse", programs=programs)
