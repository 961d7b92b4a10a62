"""A traced graph becomes an ONNX model: PyTorch's exporter, with our decompositions and our translations."""

from __future__ import annotations

import re
from typing import Any

import onnx_ir
import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.fx.node import map_arg

from edgefl.errors import LoweringError
from edgefl_exporter.lowering import decompose, translate
from edgefl_exporter.lowering.trace import Traced, module_of, quiet

OPSET = 18  # of the default domain; onnxruntime reads it since 1.14

RANDOM = "train without it on the device, for example with p=0 (a program has no random numbers yet)"
HINTS = {
    "dropout": RANDOM,
    "bernoulli": RANDOM,
    "rand": RANDOM,
    "normal": RANDOM,
    "fft": "replace the Fourier transform by convolutions or by features computed before training",
    "sort": "order statistics have no gradient here; use max pooling or a mean",
    "lstm": "use nn.GRU, or convolutions over time",
}


def emit(traced: Traced) -> onnx_ir.Model:
    """An ONNX model whose inputs and outputs are in the order of `traced.inputs` and `traced.outputs`.

    Raises LoweringError that names the operator and the module when an operator has no translation.
    """
    _refuse(traced)
    batch = torch.export.Dim("batch", min=1)
    traced.graph.graph.set_codegen(CodeGen())
    traced.graph.recompile()
    shapes = tuple({0: batch} if dynamic else None for dynamic in traced.batched)
    try:
        with quiet():
            program = torch.export.export(traced.graph, traced.example, dynamic_shapes=shapes, strict=False)
            program = program.run_decompositions(decompose.table())
            # optimize=False: the optimizer deletes `+ eps` when eps <= 1e-8, so Adam's default becomes 0/0.
            # onnxruntime optimises when it loads.
            result = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table=translate.table(),
            )
    except torch.onnx.OnnxExporterError as error:
        raise _untranslated(error, traced) from error
    assert result is not None
    model: onnx_ir.Model = result.model
    return model


def _refuse(traced: Traced) -> None:
    """Operators that would be translated, to something else than PyTorch computes.

    A random one cannot be proven against PyTorch, and ONNX's generators are seeded once per session. Complex numbers
    have no ONNX type.
    """
    for node in traced.graph.graph.nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        value = node.meta.get("val")
        if random or (isinstance(value, torch.Tensor) and value.is_complex()):
            raise _refusal(str(node.target), module_of(node))


def _untranslated(error: Exception, traced: Traced) -> LoweringError:
    """The message for an operator that nobody translates."""
    found = re.search(r"OpOverload\(op='([^']+)', overload='([^']+)'\)", str(error))
    if not found:
        line = next((line for line in str(error).splitlines() if line.startswith("<class")), str(error))
        return LoweringError(f"PyTorch's ONNX exporter gave up: {line}", hint="see --debug for the whole story")
    target = f"{found[1]}.{found[2]}".replace("::", ".")
    for node in traced.graph.graph.nodes:
        if str(node.target) == target:
            return _refusal(target, module_of(node))
    for node in traced.graph.graph.nodes:
        if target in _decomposed(node):
            return _refusal(f"{node.target} ({target})", module_of(node))
    return _refusal(target, "")


def _decomposed(node: Node) -> set[str]:
    """The names of the operators that PyTorch takes this node's operator apart into."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return set()
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta.get("val"))
    target = node.target
    table: Any = decomposition_table
    try:
        with quiet():
            parts = make_fx(lambda: target(*args, **kwargs), table, _allow_non_fake_inputs=True)()
    except Exception:  # only a message depends on it
        return set()
    return {str(part.target) for part in parts.graph.nodes}


def _refusal(target: str, path: str) -> LoweringError:
    hint = next((hint for word, hint in HINTS.items() if word in target), "replace the layer by one that lowers")
    return LoweringError(f"operator {target} in module {path!r} cannot be lowered", hint=hint)
