"""A program's graph with the dtype and shape of every tensor, for any batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgefl.bundle import Program
from edgefl.errors import BundleError
from edgefl.tensors import Array

# The program is run at these two sizes; every dimension is a straight line through both.
SMALL, LARGE = 2, 4


@dataclass(frozen=True)
class Node:
    """One operator: its kind, the names of what it reads and writes ("" where left out), and its attributes."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


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
    tensors  every tensor by name, except those of graphs inside nodes (If, Loop)
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
    nodes = tuple(
        Node(
            node.op_type,
            tuple(node.input),
            tuple(node.output),
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in model.graph.node
    )
    given = {value.name for value in model.graph.input} | {value.name for value in model.graph.initializer}
    outputs = frozenset(value.name for value in model.graph.output)
    made = [name for node in nodes for name in node.outputs if name and name not in outputs]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    session = _session(model.SerializeToString())
    fixed_batch = _fixed_batch(program)
    sizes = (fixed_batch, fixed_batch) if fixed_batch else (SMALL, LARGE)
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    first, second = ({**constants, **_run(session, program, weights, size)} for size in sizes)
    tensors = {name: _line(first[name], second[name], sizes) for name in first}
    return Graph(nodes, frozenset(given), outputs, tensors, fixed_batch)


def example_inputs(program: Program, batch: int) -> dict[str, Array]:
    """Inputs of the right shapes: random features, labels of class 0, all rows present, settings at their defaults."""
    random = np.random.default_rng(0)
    values: dict[str, Array] = {}
    for entry in program.inputs:
        shape = tuple(batch if isinstance(n, str) else n for n in entry.shape)
        if entry.source in ("setting", "present"):
            values[entry.name] = np.full(shape, entry.default if entry.default is not None else 1.0, entry.dtype)
        elif entry.source == "features" and entry.dtype == "float32":
            values[entry.name] = random.standard_normal(shape, dtype=np.float32)
        else:
            values[entry.name] = np.zeros(shape, entry.dtype)
    return values


def _fixed_batch(program: Program) -> int | None:
    """The batch size of a program whose inputs leave it no choice."""
    batched = [entry for entry in program.inputs if entry.source != "setting"]
    if any(isinstance(n, str) for entry in batched for n in entry.shape):
        return None
    return next((n for entry in batched for n in entry.shape[:1] if isinstance(n, int)), None)


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        line = str(error).strip().partition("\n")[0]
        raise BundleError(f"onnxruntime {onnxruntime.__version__} cannot load the program: {line}") from error


def _run(session: Any, program: Program, weights: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """Every tensor of one run."""
    values = {**example_inputs(program, batch), **{name: weights[name] for name in program.reads}}
    names = [output.name for output in session.get_outputs()]
    return {**values, **dict(zip(names, session.run(names, values), strict=True))}


def _line(first: Array, second: Array, sizes: tuple[int, int]) -> Tensor:
    """A shape for any batch size from those at two."""
    low, high = sizes
    slope = tuple(
        (b - a) / (high - low) if high != low else 0.0 for a, b in zip(first.shape, second.shape, strict=True)
    )
    fixed = tuple(round(a - s * low) for a, s in zip(first.shape, slope, strict=True))
    return Tensor(first.dtype, fixed, slope)
