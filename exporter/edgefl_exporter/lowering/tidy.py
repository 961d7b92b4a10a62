"""The emitted model made small, nameless inside, and free of traces of the machine that made it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir
from onnx_ir.passes import common

from edgefl_exporter.lowering.emit import IR_VERSION
from edgefl_exporter.lowering.loop_onnx import close_loops
from edgefl_exporter.lowering.simplify import simplify

LONGEST_CONSTANT = 16  # elements; common subexpressions compare constants up to this size


def tidy(model: onnx_ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Functions inlined, equal subgraphs merged, dead nodes and unused inputs removed, names ours."""
    model = common.InlinePass()(model).model
    simplify(model)
    close_loops(model)
    passes = onnx_ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(size_limit=LONGEST_CONSTANT),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
        common.OutputFixPass(),  # an output that is an input, or two outputs that are one value, get an Identity
    )
    model = passes(model).model
    graph = model.graph
    _rename(graph, inputs, outputs)
    used = [value for value in graph.inputs if value.uses()]
    graph.inputs.clear()
    graph.inputs.extend(used)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.domain, model.model_version = "edgefl", "", "", None
    model.doc_string, graph.doc_string, graph.name = None, None, "program"
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


def _subgraphs(node: onnx_ir.Node) -> list[onnx_ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type.name == "GRAPH"]


def _rename(graph: onnx_ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Inputs and outputs get their names, everything inside a short number."""
    taken = {*inputs, *outputs}
    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(graph))
    values = [value for node in nodes for value in node.outputs]
    values += [value for node in nodes for inner in _subgraphs(node) for value in inner.inputs]
    for number, node in enumerate(nodes):
        node.name = f"n{number}"
    for number, value in enumerate([*graph.initializers.values(), *values]):
        name = f"v{number}"
        while name in taken:
            name += "_"
        value.name = name
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
