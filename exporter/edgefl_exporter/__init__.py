"""edgefl_exporter: PyTorch models become bundles of ONNX training programs. Read `edgefl_exporter.build` first.

The only part of edgefl that imports torch, and only when something of it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgefl_exporter.build import export
    from edgefl_exporter.models.load_model import load_model
    from edgefl_exporter.programs.optimizers import SGD, Adam
    from edgefl_exporter.programs.update import Group
    from edgefl_exporter.recipe import Recipe
    from edgefl_exporter.source import export_source

__all__ = ["SGD", "Adam", "Group", "Recipe", "export", "export_source", "load_model"]

_PLACES = {
    "SGD": "programs.optimizers",
    "Adam": "programs.optimizers",
    "Group": "programs.update",
    "Recipe": "recipe",
    "export": "build",
    "export_source": "source",
    "load_model": "models.load_model",
}


def __getattr__(name: str) -> Any:
    """What is above, imported when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
