"""All steps of lowering, in their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from edgefl_exporter.lowering.check import check
from edgefl_exporter.lowering.emit import emit
from edgefl_exporter.lowering.rewrite import rewrite
from edgefl_exporter.lowering.tidy import tidy
from edgefl_exporter.lowering.trace import Step, trace


def lower(step: Step, example: Mapping[str, Tensor], *, batched: Collection[str], module: nn.Module) -> bytes:
    """The ONNX file of `step`, a pure function of named tensors.

    `example` has a tensor per input; the first dimension of those in `batched` becomes the dynamic dimension
    "batch". `module` only serves messages: it says which part of a model an operator came from. Graph inputs and
    outputs carry the names of the function's arguments and results; an input that is not used is left out.
    Raises LoweringError.
    """
    traced = trace(step, example, batched=batched, module=module)
    rewrite(traced)
    model = tidy(emit(traced), traced.inputs, traced.outputs)
    data: bytes = model.SerializeToString(deterministic=True)
    check(model, data)
    return data
