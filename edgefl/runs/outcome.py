"""What a finished run leaves: its weights, models that predict, its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.record import Record
from edgefl.aggregator.store import read_classes, read_records
from edgefl.errors import ConfigError
from edgefl.files import write_atomic
from edgefl.method import Method, Model
from edgefl.results.inference import write_model
from edgefl.results.report import ClassRow, write_report
from edgefl.runs.prepare import classes_of
from edgefl.runs.questions import has_models, models_of
from edgefl.runs.run_file import read_run_file, to_toml
from edgefl.runs.sections import RunFile
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


def write_run_report(
    place: Path, config: RunFile, classes: Sequence[DeviceClass], beside: Sequence[Record] = ()
) -> None:
    """Write RUN_DIR/report.html. `beside`: another run's records."""
    held = Counter(read_classes(place).values())
    rows = [
        ClassRow(
            name=one.name,
            condition=" and ".join(filter(None, (section.condition, ", ".join(section.devices)))),
            devices=held[one.name],
            bundle_bytes=one.bundle.size_bytes,
            shared_bytes=sum(t.size_bytes for t in one.bundle.manifest.shared()),
        )
        for one, section in zip(classes, config.bundles, strict=True)
    ]
    records = read_records(place / "metrics.jsonl")
    pictures = place / PICTURES
    write_report(place / "report.html", place.name, records, to_toml(config), rows, pictures=pictures, beside=beside)


def report_again(run_dir: Path, *, beside: Path | None = None, progress: Callable[[str], None]) -> Path:
    """Write the report of a run directory again; where it is. `beside`: another run's directory.

    Raises ConfigError for a directory without a finished round.
    """
    for place in filter(None, (run_dir, beside)):
        if not (place / "metrics.jsonl").exists():
            raise ConfigError(f"{place} holds no finished round of a run", hint="give a folder of runs/")
    config = read_run_file(run_dir / "run.toml")
    classes = classes_of(config, run_dir, progress)
    write_run_report(run_dir, config, classes, read_records(beside / "metrics.jsonl") if beside else ())
    return run_dir / "report.html"
