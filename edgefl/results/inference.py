"""An ONNX model that predicts: the bundle's `predict` program with fused weights inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgefl.bundle import Bundle, check_tensors
from edgefl.errors import InputError
from edgefl.files import read_bytes, write_atomic
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
    write_model(bundle, bundle.weights() | given, out)
    return len(given), [t.name for t in bundle.manifest.state if t.role == "parameter" and t.name not in given]


def write_model(bundle: Bundle, state: dict[str, Array], path: Path) -> None:
    """Write `path`: features in, logits out, no other input; settings have their defaults.

    Raises InputError without the onnx package.
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
    onnx.checker.check_model(model)
    write_atomic(path, model.SerializeToString())
