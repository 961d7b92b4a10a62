"""A loop whose number of turns is known at run time only, in ONNX: one Loop.

When the graph is ONNX, what depends on the loop's states and leads to its end moves into the Loop. What does not, a
normalised weight for one, stays outside and is computed once; the body reads it, as it reads weights, from the graph
around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from edgefl.errors import LoweringError
from edgefl_exporter.lowering.torch_internals import add_node

BEGIN, END = "LoopBegin", "LoopEnd"
DOMAIN = "edgefl"  # of the two marks; no finished file contains them


def onnx_begin(most: Any, go: Any, states: Sequence[Any]) -> Sequence[Any]:
    """The translation of `loop_begin`."""
    return _mark(BEGIN, [most, go, *states], len(states))


def onnx_end(inside: Sequence[Any], after: Sequence[Any], again: Any) -> Sequence[Any]:
    """The translation of `loop_end`."""
    return _mark(END, [*inside, *after, again], len(inside))


def _mark(kind: str, inputs: Sequence[Any], count: int) -> Sequence[Any]:
    node = ir.node(kind, list(inputs), domain=DOMAIN, num_outputs=count)
    add_node(node)
    return node.outputs


def close_loops(model: ir.Model) -> None:
    """Change the model's graph in place: a Loop for each pair of marks. Raises LoweringError for a body that changes
    something else than its states."""
    graph = model.graph
    for begin in [node for node in graph if node.domain == DOMAIN and node.op_type == BEGIN]:
        for value, first in zip(begin.outputs, begin.inputs[2:], strict=True):
            _measure_outside(value, first)
    common.RemoveUnusedNodesPass()(model)
    for end in [node for node in graph if node.domain == DOMAIN and node.op_type == END]:
        _close(graph, end)


def _measure_outside(inside: ir.Value, first: ir.Value | None) -> None:
    """The shape of a state is that of the first one, so it does not depend on the turn."""
    for node, index in list(inside.uses()):
        if node.op_type in ("Shape", "Size"):
            node.replace_input_with(index, first)


def _close(graph: ir.Graph, end: ir.Node) -> None:
    count = len(end.outputs)
    marked, after, again = end.inputs[:count], end.inputs[count:-1], end.inputs[-1]
    begin = marked[0].producer() if marked[0] is not None else None
    assert begin is not None and begin.op_type == BEGIN
    nodes = _between(graph, begin, end)
    inner = {value for node in nodes for value in node.outputs}
    for value in inner.union(begin.outputs):
        outside = any(user is not end and user not in nodes and user.graph is graph for user, _ in value.uses())
        if outside or value.is_graph_output():
            raise LoweringError(
                "the block of an equilibrium changes more than it returns",
                hint="it may not change its buffers, nor keep tensors for later",
            )
    turn, go_on = (
        ir.Value(type=ir.TensorType(dtype), shape=ir.Shape([])) for dtype in (ir.DataType.INT64, ir.DataType.BOOL)
    )
    states = [ir.Value(type=value.type, shape=value.shape) for value in begin.outputs]
    for value, state in zip(begin.outputs, states, strict=True):
        ir.convenience.replace_all_uses_with(value, state)
    graph.remove(nodes)
    outputs: list[ir.Value] = []
    for wanted in (again, *after):
        assert wanted is not None
        if wanted in inner and wanted not in outputs:
            outputs.append(wanted)
        else:  # an output is made inside, and only once
            nodes.append(ir.node("Identity", [wanted]))
            (same,) = nodes[-1].outputs
            same.type, same.shape = wanted.type, wanted.shape
            outputs.append(same)
    body = ir.Graph([turn, go_on, *states], outputs, nodes=nodes, name="body")
    loop = ir.node("Loop", begin.inputs, attributes={"body": body}, num_outputs=count)
    graph.insert_before(end, loop)
    for value, result in zip(end.outputs, loop.outputs, strict=True):
        result.type, result.shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
    graph.remove([end, begin])


def _between(graph: ir.Graph, begin: ir.Node, end: ir.Node) -> list[ir.Node]:
    """The nodes that depend on what `begin` gives and that `end` needs, in order."""
    order = list(graph)
    order = order[order.index(begin) + 1 : order.index(end)]
    depends = set(begin.outputs)
    found = []
    for node in order:
        if depends & _reads(node):
            depends |= set(node.outputs)
            found.append(node)
    needed = set(end.inputs)
    for node in reversed(found):
        if needed & set(node.outputs):
            needed |= _reads(node)
    return [node for node in found if needed & set(node.outputs)]


def _reads(node: ir.Node) -> set[ir.Value]:
    """What a node reads, in the bodies of loops that it holds too."""
    read = {value for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            read |= {v for inner in attribute.as_graph() for v in _reads(inner)}
    return read
