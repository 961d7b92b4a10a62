"""Small rewrites of the ONNX graph that every runtime gains from, also one that does not optimise.

onnxruntime does most of them when it loads at its highest level; browsers and phones may load at a lower one.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common


def simplify(model: ir.Model) -> None:
    """Change the model's graph in place; dead nodes may be left for the caller to remove."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Transpose":
            _merge_transposes(node)
        elif node.op_type == "Expand":
            _drop_expand(node)
        elif node.op_type == "Size":
            _count_from_batch(graph, node)
    for node in list(graph):
        if node.op_type in ("MatMul", "Gemm"):
            _absorb_transposes(graph, node)
    common.RemoveUnusedNodesPass()(model)  # what follows asks who else reads a value
    for node in list(graph):
        if node.op_type == "Sub":
            _subtract_in_gemm(graph, node)


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


def _drop_expand(node: ir.Node) -> None:
    """An Expand to the shape that the value has already is a copy."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None or result.is_graph_output():
        return
    known = all(isinstance(size, int) or size.value is not None for size in source.shape)
    if known and source.shape == result.shape:
        ir.convenience.replace_all_uses_with(result, source)


def _count_from_batch(graph: ir.Graph, node: ir.Node) -> None:
    """How many elements an inner tensor has, from the batch size of what the program is given.

    onnxruntime puts a Size off until its result is read and keeps the tensor until then: of BatchNorm nets each
    convolution's output, as much again as the backward needs.
    """
    counted = node.inputs[0]
    given = next((i for i in graph.inputs if i.shape and not isinstance(i.shape[0], int)), None)
    shape = counted.shape if counted is not None and not counted.is_graph_input() else None
    if shape is None or given is None or not _is_batch(shape):
        return
    each = math.prod(size for size in shape[1:] if isinstance(size, int))
    batch = ir.node("Shape", [given], attributes={"start": 0, "end": 1})
    scalar = ir.node("Squeeze", [batch.outputs[0]])
    times = ir.node("Constant", [], attributes={"value_int": each})
    count = ir.node("Mul", [scalar.outputs[0], times.outputs[0]])
    result, target = count.outputs[0], node.outputs[0]
    result.shape, result.type = target.shape, target.type
    graph.insert_before(node, [batch, scalar, times, count])
    ir.convenience.replace_all_uses_with(target, result, replace_graph_outputs=True)


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


def _subtract_in_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """w - rate * (A B), with a scalar rate, becomes Gemm(rate * A, B, w): two passes fewer over the weight.

    This is SGD's step of a Linear layer; A is the gradient of its output, smaller than the weight.
    """
    scaled = _producer(node, 1, "Mul")
    if scaled is None or len(scaled.outputs[0].uses()) != 1:
        return
    for place in (0, 1):
        gemm, rate, weight = _producer(scaled, place, "Gemm"), scaled.inputs[1 - place], node.inputs[0]
        gradient = gemm.inputs[0] if gemm is not None else None
        if gemm is None or gradient is None or rate is None or weight is None or rate.shape is None:
            continue
        plain = len(gemm.inputs) == 2 and len(gemm.outputs[0].uses()) == 1
        if (
            not plain
            or len(rate.shape)
            or weight.shape is None
            or weight.shape != gemm.outputs[0].shape
            or not _few_rows(gemm)
        ):
            continue
        smaller = ir.node("Mul", [gradient, rate])
        smaller.outputs[0].shape, smaller.outputs[0].type = gradient.shape, gradient.type
        flags = {key: gemm.attributes[key].as_int() for key in ("transA", "transB") if key in gemm.attributes}
        step = ir.node("Gemm", [smaller.outputs[0], gemm.inputs[1], weight], attributes={**flags, "alpha": -1.0})
        result, target = step.outputs[0], node.outputs[0]
        result.shape, result.type = target.shape, target.type
        graph.insert_before(node, [smaller, step])
        ir.convenience.replace_all_uses_with(target, result, replace_graph_outputs=True)
        return


def _few_rows(gemm: ir.Node) -> bool:
    """Whether the gradient A^T B sums over the examples of a batch, not over all places or time steps of them."""
    shape = gemm.inputs[0].shape if gemm.inputs[0] is not None else None
    turned = "transA" in gemm.attributes and gemm.attributes["transA"].as_int() == 1
    return turned and _is_batch(shape)


def _is_batch(shape: ir.Shape | None) -> bool:
    """Whether a shape is the batch size and then numbers; a multiple of the batch size is an expression: "64*s3"."""
    if not shape or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        return False
    return (shape[0].value or "").isidentifier()


def _producer(node: ir.Node, place: int, kind: str) -> ir.Node | None:
    value = node.inputs[place]
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == kind else None


def _perm(node: ir.Node) -> list[int]:
    return [int(axis) for axis in node.attributes["perm"].as_ints()]
