"""A program's graph with the dtype and shape of every tensor, for any batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgefl.errors import BundleError, first_line
from edgefl.manifest import Program
from edgefl.onnx_session import make_session
from edgefl.tensors import Array

# The program is run at these two sizes; every dimension is a straight line through both.
SMALL, LARGE = 2, 4


@dataclass(frozen=True)
class Node:
    """One operator: its kind, the names of what it reads and writes ("" where left out), and its attributes.

    A Scan or a Loop has a body, which runs `times`.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    body: Graph | None = None
    times: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor's dtype and shape: each dimension is `fixed + slope * batch`."""

    dtype: np.dtype[Any]
    fixed: tuple[int, ...]
    slope: tuple[float, ...]

    def shape(self, batch: int) -> tuple[int, ...]:
        return tuple(round(a + b * batch) for a, b in zip(self.fixed, self.slope, strict=True))

    def size_bytes(self, batch: int) -> int:
        return math.prod(self.shape(batch)) * self.dtype.itemsize


@dataclass(frozen=True)
class Graph:
    """A program as it stands in its file.

    nodes    in the file's order
    given    graph inputs, state and constants: not made while the program runs
    outputs  graph outputs
    tensors  every tensor by name, except those of graphs inside nodes
    batch    the batch size, where the program has only one
    """

    nodes: tuple[Node, ...]
    given: frozenset[str]
    outputs: frozenset[str]
    tensors: Mapping[str, Tensor]
    batch: int | None


def read_graph(program: Program, data: bytes, weights: Mapping[str, Array]) -> Graph:
    """The graph of a program's file. Shapes are not guessed: the program is run twice and every tensor looked at."""
    import onnx

    model = onnx.load_from_string(data)
    batch = program.fixed_batch
    sizes = (batch, batch) if batch else (SMALL, LARGE)
    first, second = (
        {**example_inputs(program, size), **{name: weights[name] for name in program.reads}} for size in sizes
    )
    return _graph(model, model.graph, (first, second), sizes, batch)


def _graph(
    model: Any, graph: Any, values: tuple[dict[str, Array], dict[str, Array]], sizes: tuple[int, int], batch: int | None
) -> Graph:
    """A graph of the model, or the body of one of its nodes, whose inputs have these values at the two batch sizes."""
    import onnx

    given = frozenset(values[0]) | {value.name for value in graph.initializer}
    outputs = frozenset(value.name for value in graph.output)
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    first, second = ({**constants, **value, **_run(model, graph, value)} for value in values)
    tensors = {name: _line(_stacked(first[name]), _stacked(second[name]), sizes) for name in first}
    nodes = []
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        body, times = None, 0
        if node.op_type in ("Scan", "Loop"):
            inner = attributes.pop("body")
            (one, times), (two, _) = (_entered(node, inner, attributes, known) for known in (first, second))
            if all(isinstance(value, np.ndarray) for value in one.values()):  # not where sequences are carried
                body = _graph(model, inner, (one, two), sizes, batch)
        nodes.append(Node(node.op_type, tuple(node.input), tuple(node.output), attributes, body, times))
    return Graph(tuple(nodes), given, outputs, tensors, batch)


def _entered(
    node: Any, body: Any, attributes: Mapping[str, Any], known: Mapping[str, Array]
) -> tuple[dict[str, Array], int]:
    """What the body of a Scan or a Loop is given when it first runs, and how often it runs."""
    given = [known[name] for name in node.input if name]
    if node.op_type == "Scan":
        count = attributes["num_scan_inputs"]
        axes = attributes.get("scan_input_axes", [0] * count)
        scanned = given[len(given) - count :]
        times = scanned[0].shape[axes[0]]
        entered = given[:-count] + [np.take(value, 0, axis) for value, axis in zip(scanned, axes, strict=True)]
    else:
        times = int(given[0])
        entered = [np.array(0, np.int64), *given[1:]]
    values = dict(zip((value.name for value in body.input), entered, strict=True))
    return {**{name: known[name] for name in _read(body) if name in known}, **values}, times


def _read(graph: Any) -> set[str]:
    """Every name that a graph and the graphs inside it read."""
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return {name for node in graph.node for name in node.input}.union(*map(_read, inner))


def example_inputs(program: Program, batch: int) -> dict[str, Array]:
    """Inputs of the right shapes: random features, labels of class 0, all rows present, settings at their defaults."""
    random = np.random.default_rng(0)
    values: dict[str, Array] = {}
    for entry in program.inputs:
        shape = tuple(batch if isinstance(n, str) else n for n in entry.shape)
        if entry.source in ("setting", "seed", "present"):
            values[entry.name] = np.full(shape, entry.default if entry.default is not None else 1.0, entry.dtype)
        elif entry.source == "features" and entry.dtype == "float32":
            values[entry.name] = random.standard_normal(shape, dtype=np.float32)
        else:
            values[entry.name] = np.zeros(shape, entry.dtype)
    return values


def _run(model: Any, graph: Any, values: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor that the graph makes from these inputs."""
    import onnx
    import onnxruntime

    own = onnx.GraphProto()
    own.CopyFrom(graph)
    del own.input[:], own.output[:]
    own.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in values.items()
    )
    made = [name for node in graph.node for name in node.output if name]
    own.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    whole = onnx.helper.make_model(own, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        session = make_session(whole.SerializeToString(), optimized=False)
        found = session.run(made, dict(values))
    except Exception as error:  # onnxruntime's errors share no base class
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} cannot run the program: {first_line(error)}"
        ) from error
    return dict(zip(made, found, strict=True))


def _stacked(value: Array | list[Array]) -> Array:
    """A sequence of tensors as one."""
    if isinstance(value, list):
        return np.concatenate([part.ravel() for part in value]) if value else np.zeros(0, np.float32)
    return value


def _line(first: Array, second: Array, sizes: tuple[int, int]) -> Tensor:
    """A shape for any batch size from those at two."""
    low, high = sizes
    slope = tuple(
        (b - a) / (high - low) if high != low else 0.0 for a, b in zip(first.shape, second.shape, strict=True)
    )
    fixed = tuple(round(a - s * low) for a, s in zip(first.shape, slope, strict=True))
    return Tensor(first.dtype, fixed, slope)
