"""The order in which onnxruntime runs a graph's nodes, which is not the file's."""

from __future__ import annotations

from collections.abc import Sequence

from edgefl.shapes import Node


def runtime_order(nodes: Sequence[Node]) -> list[Node]:
    """Depth first from the nodes that nobody reads, backwards: a node runs just before its first reader needs it.

    As onnxruntime's GraphViewer does it: of leaves, and of what a node reads, the one that is later in the file goes
    first. Where the runtime does otherwise, the plan is less than the best; what a program needs is measured.
    """
    maker = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    reads = [sorted({maker[name] for name in node.inputs if name in maker}) for node in nodes]
    read = {index for some in reads for index in some}
    stack = [(index, False) for index in range(len(nodes)) if index not in read]
    seen: set[int] = set()
    order = []
    while stack:
        index, is_ready = stack.pop()
        if is_ready:
            order.append(nodes[index])
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack += [(before, False) for before in reads[index] if before not in seen]
    return order
