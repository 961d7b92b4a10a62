"""A session of onnxruntime, made of bytes from a bundle: the same precautions wherever one is made."""

from __future__ import annotations

import os
from typing import Any


def make_session(data: bytes, options: Any) -> Any:
    """An InferenceSession on the CPU of a program's bytes, which `onnx_walk.check_graph` has let pass.

    Raises what onnxruntime raises where it cannot load them.
    """
    import onnxruntime

    # What was walked as ONNX is read as ONNX: by itself onnxruntime looks at the bytes and may choose its own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # With this variable onnxruntime takes session options from a model's metadata. The walk refuses those; this shuts
    # the door itself.
    os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)
    # Constants are folded while a session is made, which nothing can stop: 250 bytes took as long as they liked. The
    # exporter leaves little to fold: steps of five models of the zoo take as long without, within 2 %.
    return onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
