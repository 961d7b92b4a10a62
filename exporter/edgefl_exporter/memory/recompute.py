"""A program's nodes, with some forward tensors made again where the backward first reads them.

onnxruntime merges equal nodes, and would run a copy as early as the original. So a copy reads what is kept through a
Reshape whose shape is read off a gradient that is there by then: it moves nothing, is equal to nothing else, and cannot
run before there is a gradient. (onnxruntime 1.32 folds the shape and keeps the Reshape, also where the batch is fixed;
for its order, which runs a node just before its first reader, that is enough.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgefl.shapes import Graph, Node, Tensor
from edgefl_exporter.memory.training import NESTED, Training, batch_axis

INT64 = np.dtype(np.int64)


@dataclass(frozen=True)
class Recomputed:
    """A program's nodes in the file's order, copies and their ties among them.

    graph      as the original's, with the new nodes and tensors
    origin     output of a copy -> the tensor that it is a copy of
    constants  name -> the whole numbers that ties need
    """

    graph: Graph
    origin: Mapping[str, str]
    constants: Mapping[str, tuple[int, ...]]

    @property
    def copies(self) -> tuple[Node, ...]:
        return tuple(node for node in self.graph.nodes if node.outputs[0] in self.origin)


def recompute(training: Training, chosen: Collection[str]) -> Recomputed | None:
    """The program that makes the `chosen` of `training.saved` again; None where a copy has nothing to wait for.

    A copy serves all readers. What it reads is kept, or copied too: saved tensors that are not chosen, small ones and
    what is given are kept.
    """
    nodes = training.graph.nodes
    first = {name: at for name in chosen for at in _waiting(training, name)[:1]}
    times: dict[int, int] = {}  # forward node -> the node before which its copy runs
    needed = dict(first)  # tensor -> the first node that reads its copy
    for index in sorted(training.forward, reverse=True):
        node = nodes[index]
        at = min((needed[name] for name in node.outputs if name in needed), default=None)
        if at is None:
            continue
        if node.kind in NESTED:
            return None
        times[index] = at
        for name in node.inputs:
            if not _kept(training, name, first):
                needed[name] = min(at, needed.get(name, at))
    return _Writer(training, first, times).written()


def _waiting(training: Training, name: str) -> list[int]:
    """The readers of a saved tensor before which there is a gradient."""
    return [index for index in training.readers[name] if training.gradient_before(index) is not None]


def _kept(training: Training, name: str, chosen: Collection[str]) -> bool:
    made = training.maker.get(name)
    if made is None or made not in training.forward or training.sizes[name] < training.least:
        return True
    return name in training.readers and name not in chosen


class _Writer:
    def __init__(self, training: Training, first: Mapping[str, int], times: Mapping[int, int]) -> None:
        self._training, self._first, self._times = training, first, times
        self._tensors = dict(training.graph.tensors)
        self._origin: dict[str, str] = {}
        self._constants: dict[str, tuple[int, ...]] = {}
        self._tied: dict[tuple[str, str], str] = {}

    def written(self) -> Recomputed | None:
        training = self._training
        copied: dict[int, list[int]] = {}
        for index in sorted(self._times):
            copied.setdefault(self._times[index], []).append(index)
        nodes: list[Node] = []
        names: dict[str, str] = {}  # tensor -> its copy
        for index, node in enumerate(training.graph.nodes):
            for source in copied.get(index, ()):
                made = self._copy(training.graph.nodes[source], names, index)
                if made is None:
                    return None
                nodes += made
            if index not in training.forward and node.kind not in NESTED:
                inputs = [names[name] if self._first.get(name, index + 1) <= index else name for name in node.inputs]
                node = replace(node, inputs=tuple(inputs))
            nodes.append(node)
        given = training.graph.given | self._constants.keys()
        graph = replace(training.graph, nodes=tuple(nodes), tensors=self._tensors, given=given)
        return Recomputed(graph, self._origin, self._constants)

    def _copy(self, node: Node, names: dict[str, str], index: int) -> list[Node] | None:
        """The copy of a node, which runs before the node of that index, with the tie where it needs one."""
        inputs = [name if _kept(self._training, name, self._first) else names[name] for name in node.inputs]
        before: list[Node] = []
        if inputs == list(node.inputs):
            kept = [name for name in inputs if name and batch_axis(self._tensors[name]) is not None]
            gradient = self._training.gradient_before(index)
            if not kept or gradient is None:
                return None
            largest = max(kept, key=lambda name: self._training.sizes[name])
            before = list(self._tie(largest, gradient))
            inputs = [self._tied[largest, gradient] if name == largest else name for name in inputs]
        outputs = []
        for name in node.outputs:
            copy = self._new(name, "again", self._tensors[name]) if name else ""
            if name:
                names[name] = copy
                self._origin[copy] = name
            outputs.append(copy)
        return [*before, replace(node, inputs=tuple(inputs), outputs=tuple(outputs))]

    def _tie(self, name: str, gradient: str) -> Iterator[Node]:
        """A view of a tensor that waits for a gradient: each has a row for each example, or a number of them."""
        if (name, gradient) in self._tied:
            return
        tensor, slope = self._tensors[name], round(self._tensors[gradient].slope[0])
        axis = batch_axis(tensor)
        assert axis is not None
        one = Tensor(INT64, (1,), (0.0,))
        rows = self._new(name, "rows", one)
        yield Node("Shape", (gradient,), (rows,), {"start": 0, "end": 1})
        for kind, factor in (("Mul", round(tensor.slope[axis])), ("Div", slope)):
            if round(tensor.slope[axis]) != slope:
                scaled = self._new(name, kind.lower(), one)
                yield Node(kind, (rows, self._constant((factor,))), (scaled,), {})
                rows = scaled
        parts = [self._constant(part) for part in (tensor.fixed[:axis], tensor.fixed[axis + 1 :]) if part]
        if parts:
            shape = self._new(name, "shape", Tensor(INT64, (len(tensor.fixed),), (0.0,)))
            parts.insert(bool(axis), rows)
            yield Node("Concat", tuple(parts), (shape,), {"axis": 0})
            rows = shape
        view = self._new(name, "kept", tensor)
        yield Node("Reshape", (name, rows), (view,), {})
        self._tied[name, gradient] = view

    def _constant(self, numbers: tuple[int, ...]) -> str:
        name = "_".join(("is", *map(str, numbers)))
        while name in self._tensors and name not in self._constants:
            name += "_"
        self._constants[name] = numbers
        self._tensors[name] = Tensor(INT64, (len(numbers),), (0.0,))
        return name

    def _new(self, name: str, ending: str, tensor: Tensor) -> str:
        made = f"{name}_{ending}"
        while made in self._tensors:
            made += "_"
        self._tensors[made] = tensor
        return made
