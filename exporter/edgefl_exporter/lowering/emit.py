"""A traced graph becomes an ONNX model: PyTorch's exporter, with our decompositions and our translations."""

from __future__ import annotations

import functools
import operator

import onnx_ir
import torch
from torch.fx import Node

from edgefl.errors import LoweringError
from edgefl_exporter.lowering import translate
from edgefl_exporter.lowering.functional import functional
from edgefl_exporter.lowering.refusal import refusal
from edgefl_exporter.lowering.torch_internals import (
    ONNXRegistry,
    dispatch,
    torchlib,
    translate_fx_graph,
)
from edgefl_exporter.lowering.trace import Traced, place_of, quiet

OPSET = 18  # of the default domain; onnxruntime reads it since 1.14

IR_VERSION = 9  # onnxruntime 1.19 reads up to 10; nothing here needs more than 9


def emit(traced: Traced) -> onnx_ir.Model:
    """An ONNX model whose inputs and outputs are in the order of `traced.inputs` and `traced.outputs`.

    PyTorch's own translations, without its optimizer: that deletes `+ eps` when eps <= 1e-8, so Adam's default
    becomes 0/0. Raises LoweringError that names the operator and the module when an operator has no translation.
    """
    _refuse_random(traced)
    registry = _registry()
    graph = functional(traced, registry)
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem and dispatch(node, registry)[0] is None:
            raise _untranslated(node)
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], name="program"), ir_version=IR_VERSION)
    with quiet():
        translate_fx_graph(
            graph.graph, model, graph_like=model.graph, owned_graphs={}, lower="at_conversion", registry=registry
        )
    _name_batch(model.graph)
    model.opset_imports[""] = OPSET
    return model


@functools.cache
def _registry() -> ONNXRegistry:
    with quiet():
        registry = torchlib(OPSET)
    for target, function in translate.table().items():
        registry.register_op(target, function)
    return registry


def _name_batch(graph: onnx_ir.Graph) -> None:
    """Dimensions that are symbols while tracing: there is one, the batch."""
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        value.shape = onnx_ir.Shape([d if isinstance(d, int) else "batch" for d in value.shape])


def _refuse_random(traced: Traced) -> None:
    """Operators that would be translated, to something else than PyTorch computes.

    ONNX's random generators are seeded once per session. Complex numbers have no ONNX type.
    """
    for node in traced.graph.graph.nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        value = node.meta.get("val")
        if random or (isinstance(value, torch.Tensor) and value.is_complex()):
            raise refusal(str(node.target), place_of(node))


def _untranslated(node: Node) -> LoweringError:
    """The message for an operator that nobody translates, named as the model called it."""
    called, target = node.meta["custom"]["called"], str(node.target)
    return refusal(target if called == target else f"{called} ({target})", place_of(node))
