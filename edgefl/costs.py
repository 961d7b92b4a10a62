"""Multiply-adds and peak memory of one run of a program, counted on its graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from edgefl.shapes import Graph, Node

# The result is the input under another shape: no new memory.
VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
# The result may take the place of an input of its size that nobody reads afterwards, as onnxruntime does it.
IN_PLACE = {
    "Add",
    "Clip",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "HardSigmoid",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Pow",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
}


def multiply_adds(graph: Graph, batch: int) -> int:
    """Multiplications with an addition each, in convolutions, matrix products and recurrent layers, also in loops.

    Element-wise work is not counted.
    """
    inside = sum(node.times * multiply_adds(node.body, batch) for node in graph.nodes if node.body)
    return inside + sum(_multiply_adds(node, graph, batch) for node in graph.nodes)


def peak_bytes(graph: Graph, batch: int) -> int:
    """The most bytes alive at once while the nodes run in the file's order.

    Inputs, state and the state's next values are not counted: they exist before. A tensor lives from the node that
    makes it to the last one that reads it. Reshapes cost nothing, and an element-wise result takes the place of an
    input that dies.
    """
    return max(bytes_alive(graph, batch), default=0)


def bytes_alive(graph: Graph, batch: int) -> list[int]:
    """The bytes alive while each node runs, as `peak_bytes` counts them."""
    return [bytes_now for _, bytes_now in _alive(graph, batch)]


def alive_at_peak(graph: Graph, batch: int) -> dict[str, int]:
    """The tensors that are alive where most bytes are, as `peak_bytes` counts them, with their sizes."""
    peak = peak_bytes(graph, batch)
    return next((dict(alive) for alive, bytes_now in _alive(graph, batch) if bytes_now == peak), {})


def _alive(graph: Graph, batch: int) -> Iterator[tuple[Mapping[str, int], int]]:
    """What is alive while each node runs, buffer -> bytes, and their sum. The mapping changes with the next."""
    buffers = _buffers(graph, batch)
    last = {buffers[name]: index for index, node in enumerate(graph.nodes) for name in node.inputs if name}
    sizes = {buffers[name]: 0 for name in graph.tensors}
    for name, tensor in graph.tensors.items():
        sizes[buffers[name]] = max(sizes[buffers[name]], tensor.size_bytes(batch))
    outside = {buffers[name] for name in graph.given | graph.outputs}
    alive: dict[str, int] = {}
    bytes_now = 0
    for index, node in enumerate(graph.nodes):
        for name in node.outputs:
            if name and (buffer := buffers[name]) not in outside and buffer not in alive:
                alive[buffer] = sizes[buffer]
                bytes_now += sizes[buffer]
        yield alive, bytes_now
        for name in (*node.inputs, *node.outputs):
            if name and (buffer := buffers[name]) in alive and last.get(buffer, index) <= index:
                bytes_now -= alive.pop(buffer)


def _buffers(graph: Graph, batch: int) -> dict[str, str]:
    """Tensor -> the tensor whose memory it lives in, itself where it needs its own."""
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs if name}
    owner = {name: name for name in graph.tensors}
    end = dict(last)  # of a buffer: when its last tensor dies
    fixed = graph.given | graph.outputs
    for index, node in enumerate(graph.nodes):
        if node.kind not in VIEWS | IN_PLACE or node.outputs[0] in graph.outputs:
            continue
        result = node.outputs[0]
        for name in node.inputs[:1] if node.kind in VIEWS else node.inputs:
            buffer = owner.get(name, "")
            if not buffer:
                continue
            replaces = (
                buffer not in fixed
                and end[buffer] <= index
                and graph.tensors[result].size_bytes(batch) == graph.tensors[buffer].size_bytes(batch)
            )
            if node.kind in VIEWS or replaces:
                owner[result] = buffer
                end[buffer] = max(end.get(buffer, index), last.get(result, index))
                break
    return owner


def _multiply_adds(node: Node, graph: Graph, batch: int) -> int:
    def shape(index: int, *, output: bool = False) -> tuple[int, ...]:
        return graph.tensors[(node.outputs if output else node.inputs)[index]].shape(batch)

    if node.kind == "Conv":
        return math.prod(shape(0, output=True)) * math.prod(shape(1)[1:])
    if node.kind == "ConvTranspose":
        return math.prod(shape(0)) * math.prod(shape(1)[1:])
    if node.kind == "MatMul":
        return math.prod(shape(0, output=True)) * shape(0)[-1]
    if node.kind == "Gemm":
        return math.prod(shape(0, output=True)) * shape(0)[0 if node.attributes.get("transA") else 1]
    if node.kind in ("LSTM", "GRU", "RNN"):
        time, rows, _ = shape(0)
        return time * rows * (math.prod(shape(1)) + math.prod(shape(2)))
    if node.kind == "Einsum":
        terms = node.attributes["equation"].decode().replace(" ", "").partition("->")[0].split(",")
        if "..." in "".join(terms) or len(terms) < 2:
            return 0
        sizes = {letter: n for i, term in enumerate(terms) for letter, n in zip(term, shape(i), strict=True)}
        return math.prod(sizes.values())
    return 0
