"""A third opinion on gradients: onnx-ad differentiates a training program's own forward half, ONNX to ONNX.

PyTorch made the backward half of the program; onnx-ad never saw it. It derives each operator of the forward half by
rules of its own, so a mistake in how we write an operator's gradient shows here even if the proof had a blind spot.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ad
from onnx.utils import Extractor

from edgefl.bundle import Bundle
from edgefl.replay import Runner, relative_error
from edgefl.tensors import Array


class Refused(Exception):
    """onnx-ad cannot differentiate the program. The message is its reason."""


def disagreement(bundle: Bundle) -> float:
    """The worst relative difference between onnx-ad's gradient of the loss and ours, over all trained parameters.

    Ours is what one step with learning rate 1 moves each parameter by, so the optimizer must be SGD without weight
    decay. The state is the bundle's, where momentum is zero and changes nothing yet. Raises Refused.
    """
    program = bundle.manifest.program("train")
    data = bundle.program_bytes("train")
    golden = bundle.golden("train")
    values = {k.removeprefix("in."): v for k, v in golden.items() if k.startswith("in.")} | bundle.weights()
    values["learning_rate"] = np.ones((), np.float32)
    trained = [t.name for t in bundle.manifest.state if t.role == "parameter" and t.name in program.writes]
    stepped = Runner(data).run(values)
    theirs = _differentiate(data, trained, values)
    return max(relative_error(values[name] - stepped[program.writes[name]], theirs[name]) for name in trained)


def _differentiate(data: bytes, parameters: list[str], values: dict[str, Array]) -> dict[str, Array]:
    """Parameter -> onnx-ad's gradient of the program's output "loss"."""
    whole = onnx.load_from_string(data)
    for given in whole.graph.input:  # onnx-ad wants to know shapes: the batch becomes the golden inputs' own
        for size, dimension in zip(values[given.name].shape, given.type.tensor_type.shape.dim, strict=True):
            dimension.dim_value = size
    forward = Extractor(whole).extract_model([given.name for given in whole.graph.input], ["loss"])
    try:
        adjoint = onnx_ad.reverse(forward, inputs=parameters, outputs=["loss"], layout="onnx")
    except (onnx_ad.UnsupportedOperator, onnx_ad.UnrollTooLarge) as error:
        raise Refused(str(error).partition(" (node ")[0]) from error  # names of nodes say nothing
    seed = {"adj_loss": np.ones(1, np.float32)}  # one direction, on a last axis of its own
    runner = Runner(adjoint.SerializeToString())
    found = runner.run({**values, **seed})
    return {name: found[f"adj_{name}"][..., 0] for name in parameters}
