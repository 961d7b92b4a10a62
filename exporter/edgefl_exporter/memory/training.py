"""What of a training program is forward, which gradients it makes, and what its backward reads of the forward."""

from __future__ import annotations

from dataclasses import dataclass

from edgefl.manifest import Program
from edgefl.shapes import Graph, Tensor

NESTED = {"If", "Loop", "Scan"}  # graphs inside may read anything: left as they are
SMALL = 1 / 500  # of the largest sum: tensors below this part of it are not worth a node


@dataclass(frozen=True)
class Training:
    """A program's graph at one batch size, taken apart.

    graph      nodes in the file's order
    batch      the size that memory is counted for
    maker      tensor -> index of the node that makes it
    forward    indices of the nodes that the loss needs
    gradients  (index of its maker, name) of tensors that depend on labels and state and have a row per example, or
               several; in the file's order
    saved      forward tensors that are not small and that other nodes read, in the file's order
    readers    saved tensor -> indices of those nodes
    sizes      bytes of each tensor
    least      bytes that are not small
    """

    graph: Graph
    batch: int
    maker: dict[str, int]
    forward: frozenset[int]
    gradients: tuple[tuple[int, str], ...]
    saved: tuple[str, ...]
    readers: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    least: float

    def gradient_before(self, index: int) -> str | None:
        """The last gradient that the file makes before a node."""
        return next((name for at, name in reversed(self.gradients) if at < index), None)


def take_apart(graph: Graph, program: Program, batch: int) -> Training:
    """The parts of a program that trains. A program without labels has no gradients in this sense."""
    nodes = graph.nodes
    maker = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    sizes = {name: tensor.size_bytes(batch) for name, tensor in graph.tensors.items()}
    forward: set[int] = set()
    wanted = [maker[entry.name] for entry in program.outputs if entry.name in maker]
    while wanted:
        index = wanted.pop()
        if index not in forward:
            forward.add(index)
            wanted += [maker[name] for name in nodes[index].inputs if name in maker]
    labels = {entry.name for entry in program.inputs if entry.source == "labels"}
    learned = _after(graph, labels) & _after(graph, set(program.reads))
    gradients = [
        (index, name)
        for index, node in enumerate(nodes)
        if index not in forward
        for name in node.outputs
        if name in learned and batch_axis(graph.tensors[name]) == 0
    ]
    least = SMALL * sum(sizes[name] for index in forward for name in nodes[index].outputs if name)
    readers: dict[str, tuple[int, ...]] = {}
    for index, node in enumerate(nodes):
        for name in () if index in forward else node.inputs:
            if maker.get(name) in forward and sizes[name] >= least:
                readers[name] = (*readers.get(name, ()), index)
    saved = sorted(readers, key=lambda name: maker[name])
    return Training(graph, batch, maker, frozenset(forward), tuple(gradients), tuple(saved), readers, sizes, least)


def batch_axis(tensor: Tensor) -> int | None:
    """The one dimension that is a multiple of the batch size, all others being fixed; None where it is not so."""
    axes = [axis for axis, slope in enumerate(tensor.slope) if slope]
    if len(axes) != 1 or tensor.fixed[axes[0]] or tensor.slope[axes[0]] != round(tensor.slope[axes[0]]):
        return None
    return axes[0]


def _after(graph: Graph, given: set[str]) -> set[str]:
    """The tensors that depend on any of those given."""
    found = set(given)
    for node in graph.nodes:
        if not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found - given - {""}
