"""An ONNX model that predicts: the bundle's `predict` program with fused weights inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgefl.bundle import Bundle
from edgefl.errors import InputError
from edgefl.files import write_atomic
from edgefl.tensors import Array


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
