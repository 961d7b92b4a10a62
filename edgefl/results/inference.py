"""An ONNX model that predicts: the bundle's `predict` program with fused weights inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgefl.bundle import Bundle, check_tensors
from edgefl.data_contract import DataContract, Feature
from edgefl.errors import InputError
from edgefl.files import read_bytes, write_atomic
from edgefl.manifest import Program
from edgefl.tensors import Array, load_tensors


def predictor(bundle: Bundle, weights: Path, out: Path) -> tuple[int, list[str]]:
    """Write a model that predicts, of a bundle and a file of weights: what a run has fused, or a device has trained.

    Tensors have the names of the state or of its fusion groups. Gives how many the file had, and which parameters are
    the bundle's.

    Raises InputError for a tensor that the bundle has not, and what `write_model` raises.
    """
    names = {t.public_name: t.name for t in bundle.manifest.state} | {t.name: t.name for t in bundle.manifest.state}
    tensors = load_tensors(read_bytes(weights), weights)
    if unknown := sorted(tensors.keys() - names.keys()):
        raise InputError(f"{weights}: {unknown[0]!r} is no tensor of bundle {bundle.manifest.name!r}")
    given = {names[name]: value for name, value in tensors.items()}
    check_tensors(given, [bundle.manifest.tensor(name) for name in sorted(given)], where=str(weights))
    write_model(bundle, bundle.weights() | given, out, {"method": bundle.manifest.method})
    return len(given), [t.name for t in bundle.manifest.state if t.role == "parameter" and t.name not in given]


def write_model(bundle: Bundle, state: dict[str, Array], path: Path, about: Mapping[str, str]) -> None:
    """Write `path`: features in, logits out, no other input; settings have their defaults.

    Its metadata are `about` and, as JSON, what whoever predicts has to know: `classes`, their names in order; and
    `features`, input -> shape, dtype, range, and the mean and std of the normalisation, in shapes that go with an
    example. Raises InputError without the onnx package.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise InputError(
            "writing the inference model needs the onnx package", hint="pip install 'edgefl[aggregator]'"
        ) from error
    program = bundle.manifest.program("predict")
    model = onnx.load_from_string(bundle.program_bytes("predict"))
    settings = {i.name: np.array(i.default, i.dtype) for i in program.inputs if i.source == "setting"}
    constants = {name: state[name] for name in program.reads} | settings
    inputs = [i for i in model.graph.input if i.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.helper.set_model_props(model, {**about, **_contract(bundle.manifest.data, program)})
    onnx.checker.check_model(model)
    write_atomic(path, model.SerializeToString())


def _contract(data: DataContract, program: Program) -> dict[str, str]:
    """The data contract as metadata."""
    taken = {i.name: i.feature or data.feature.name for i in program.inputs if i.source == "features"}
    by_name = {feature.name: _feature(feature) for feature in data.features}
    found = {"features": json.dumps({entry: by_name[name] for entry, name in taken.items()})}
    if data.classes is not None:
        names = data.class_names or [str(number) for number in range(data.classes)]
        found["classes"] = json.dumps(names, ensure_ascii=False)
    return found


def _feature(feature: Feature) -> dict[str, Any]:
    def spread(values: tuple[float, ...]) -> Any:
        """One number, or one for each channel of [channels, ...]."""
        return values[0] if len(values) == 1 else np.reshape(values, (-1, *[1] * (len(feature.shape) - 1))).tolist()

    mean, std = spread(feature.normalisation.mean), spread(feature.normalisation.std)
    return {"shape": feature.shape, "dtype": feature.dtype, "range": feature.range, "mean": mean, "std": std}
