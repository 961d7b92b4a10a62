"""Small rewrites of the ONNX graph that every runtime gains from, also one that does not optimise.

onnxruntime does most of them when it loads at its highest level; browsers and phones may load at a lower one.
"""

from __future__ import annotations

import onnx_ir as ir


def simplify(graph: ir.Graph) -> None:
    """Change the graph in place; dead nodes are left for the caller to remove."""
    for node in list(graph):
        if node.op_type == "Transpose":
            _merge_transposes(node)
    for node in list(graph):
        if node.op_type in ("MatMul", "Gemm"):
            _absorb_transposes(graph, node)


def _merge_transposes(node: ir.Node) -> None:
    """Transpose of a Transpose: one, or none."""
    first = _producer(node, 0, "Transpose")
    if first is None:
        return
    inner, outer = _perm(first), _perm(node)
    perm = [inner[axis] for axis in outer]
    source = first.inputs[0]
    assert source is not None
    if perm == sorted(perm):
        # Also where it is an output: onnxruntime up to 1.24 takes any Transpose of a Gemm to turn it, this one too.
        ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
    else:
        node.replace_input_with(0, source)
        node.attributes["perm"] = ir.AttrInt64s("perm", perm)


def _absorb_transposes(graph: ir.Graph, node: ir.Node) -> None:
    """Gemm reads its matrices transposed at no cost; a MatMul of two matrices becomes one for that."""
    a, b = _producer(node, 0, "Transpose"), _producer(node, 1, "Transpose")
    matrices = all(value is not None and value.shape is not None and len(value.shape) == 2 for value in node.inputs[:2])
    if not matrices or (a is None and b is None):
        return
    old = {key: attribute.value for key, attribute in node.attributes.items()}
    inputs = list(node.inputs)
    flags = [int(old.get("transA", 0)), int(old.get("transB", 0))]
    for place, transpose in enumerate((a, b)):
        if transpose is not None:
            inputs[place] = transpose.inputs[0]
            flags[place] = 1 - flags[place]
    attributes = {"transA": flags[0], "transB": flags[1]}
    attributes |= {key: old[key] for key in ("alpha", "beta") if key in old}
    new = ir.node("Gemm", inputs, attributes=attributes, num_outputs=1)
    result, target = new.outputs[0], node.outputs[0]
    result.shape, result.type = target.shape, target.type
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(target, result, replace_graph_outputs=True)


def _producer(node: ir.Node, place: int, kind: str) -> ir.Node | None:
    value = node.inputs[place]
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == kind else None


def _perm(node: ir.Node) -> list[int]:
    return [int(axis) for axis in node.attributes["perm"].as_ints()]
