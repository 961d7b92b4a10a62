"""What `edgefl export --method NAME` makes of one model. FedMRL's, of two, is in programs/matryoshka.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl_exporter.export import export
from edgefl_exporter.programs.dreams import export_dreams
from edgefl_exporter.programs.prototypes import export_prototypes

PROXIMAL = 0.01  # mu, where nobody says another; a run can


def export_fedprox(model: nn.Module, example_input: Tensor, *, proximal: float | None = None, **options: Any) -> Bundle:
    """With the proximal term and the program `anchor`."""
    mu = PROXIMAL if proximal is None else proximal
    return export(model, example_input, proximal=mu, method="fedprox", **options)


def export_scaffold(model: nn.Module, example_input: Tensor, **options: Any) -> Bundle:
    """With corrected gradients and the program `control`."""
    return export(model, example_input, controls=True, method="scaffold", **options)


# (model, example input, options of `export`) -> bundle. FedAvg's serves FedAdam, FedYogi and LG-FedAvg as well.
EXPORTERS: dict[str, Callable[..., Bundle]] = {
    "fedavg": export,
    "fedprox": export_fedprox,
    "scaffold": export_scaffold,
    "fedproto": export_prototypes,
    "codream": export_dreams,
}
