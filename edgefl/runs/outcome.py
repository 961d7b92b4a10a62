"""What a finished run leaves: its weights, and models that predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.record import Record
from edgefl.errors import EdgeflError
from edgefl.files import write_atomic
from edgefl.method import Method, Model
from edgefl.methods import DEFAULT
from edgefl.results.confusion import Confusion, write_confusion
from edgefl.results.inference import write_model
from edgefl.runs.evaluation import evaluation_data
from edgefl.runs.prepare import Prepared
from edgefl.runs.questions import has_models, models_of
from edgefl.tensors import Tensors, save_tensors

PICTURES = "pictures"  # the folder of a run's pictures


def leave(
    ready: Prepared, tensors: Tensors, place: Path, records: Sequence[Record], progress: Callable[[str], None]
) -> None:
    """Write what a finished run leaves beside its report: its weights, models that predict, and which classes they take
    for which, where the run evaluates. `tensors`: of the method's state at the end."""
    about = about_model(place.name, str(ready.config.method.get("name", DEFAULT)), records)
    write_models(ready.method, ready.classes, tensors, place, about)
    try:
        found = confusion_of(ready, tensors, records[-1].round if records else 0)
    except EdgeflError as error:  # the run is finished; its evaluation data may have gone meanwhile
        progress(f"warning: no figures of each class: {error.message}")
        return
    if found is not None:
        write_confusion(place, found)


def write_models(
    method: Method, classes: Sequence[DeviceClass], tensors: Tensors, place: Path, about: Mapping[str, str]
) -> None:
    """Write weights.safetensors, and an inference model of each model that the state holds whole: model.onnx, or
    models/NAME.onnx, with `about` in their metadata. Nothing for a method whose state holds nothing that learns.

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
            write_model(model.bundle, dict(whole(model)), path, about)


def about_model(run: str, method: str, records: Sequence[Record]) -> dict[str, str]:
    """What a model's metadata say of its run, after these rounds."""
    if not records:
        return {"run": run, "method": method}
    last = records[-1]
    accuracy = {} if last.accuracy is None else {"accuracy": f"{last.accuracy:.6f}"}
    return {"run": run, "method": method, "round": str(last.round), **accuracy}


def confusion_of(ready: Prepared, tensors: Tensors, round: int) -> Confusion | None:
    """What the models of a method's state take the evaluation data for; of several models, together.

    None where the run evaluates nothing, or not every model predicts one of the same classes for each example. Raises
    DataError where the data cannot be read again.
    """
    from edgefl_device.work.confusion import can_confuse, confusion

    section = ready.config.evaluate
    models = models_of(ready.method, ready.classes, tensors) if section is not None else ()
    contracts = {(data.classes, data.class_names) for data in (model.bundle.manifest.data for model in models)}
    if section is None or len(contracts) != 1 or not all(can_confuse(model.bundle.manifest) for model in models):
        return None
    [(classes, names)] = contracts
    data, _ = evaluation_data(section, ready.config.seed)
    found = [confusion(model.bundle, data, model.state, batch_size=section.batch_size) for model in models]
    return Confusion(list(names or map(str, range(classes or 0))), sum(found[1:], found[0]).tolist(), round)


def whole(model: Model) -> Tensors:
    """All of a model's state."""
    return {**model.bundle.weights(), **model.state}
