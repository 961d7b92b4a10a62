"""What a finished run leaves: its weights, and models that predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgefl.aggregator.classes import DeviceClass
from edgefl.files import write_atomic
from edgefl.method import Method, Model
from edgefl.results.inference import write_model
from edgefl.runs.questions import has_models, models_of
from edgefl.tensors import Tensors, save_tensors

PICTURES = "pictures"  # the folder of a run's pictures


def write_models(method: Method, classes: Sequence[DeviceClass], tensors: Tensors, place: Path) -> None:
    """Write weights.safetensors, and an inference model of each model that the state holds whole: model.onnx, or
    models/NAME.onnx. Nothing for a method whose state holds nothing that learns.

    Where a bundle has no program `predict`, no model.
    """
    models = models_of(method, classes, tensors)
    if has_models(method) and not models:
        return
    several = len(models if has_models(method) else classes) > 1
    weights = tensors if several or not models else whole(models[0])
    write_atomic(place / "weights.safetensors", save_tensors(weights))
    for model in models:
        if "predict" in model.bundle.manifest.programs:
            path = place / "models" / f"{model.name}.onnx" if several else place / "model.onnx"
            path.parent.mkdir(exist_ok=True)
            write_model(model.bundle, dict(whole(model)), path)


def whole(model: Model) -> Tensors:
    """All of a model's state."""
    return {**model.bundle.weights(), **model.state}
