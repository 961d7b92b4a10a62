"""Pairs of operators, replaced in the traced graph: what a decomposition of one operator cannot see."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from edgefl.errors import LoweringError
from edgefl_exporter.lowering import operators
from edgefl_exporter.lowering.trace import Traced, module_of

aten = torch.ops.aten
ours = torch.ops.edgefl


def rewrite(traced: Traced) -> None:
    """Change the graph in place."""
    for node in list(traced.graph.graph.nodes):
        if node.target == aten.max_pool2d_with_indices_backward.default:
            g, x, kernel, stride, padding, dilation, ceil_mode, places = node.args
            _max_pool(node, g, x, places, list(kernel), list(stride or kernel), list(padding), list(dilation), ceil_mode)
        elif node.target == aten.adaptive_max_pool2d_backward.default:
            g, x, places = node.args
            kernel = _even_windows(x, g, node)
            _max_pool(node, g, x, places, kernel, kernel, [0, 0], [1, 1], False)
    traced.graph.graph.lint()
    traced.graph.recompile()


def _max_pool(
    backward: Node, g: Node, x: Node, places: Node, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil_mode: bool,
) -> None:
    """A max pool and its backward share the places of the maxima.

    ONNX's MaxPool counts places over the whole tensor, torch over each plane; so both ends change together, and
    nobody else may read the places. As in PyTorch, the whole gradient goes to the first maximum of a window.
    """
    assert places.target is operator.getitem
    forward = places.args[0]
    assert isinstance(forward, Node)
    if set(places.users) != {backward}:
        raise LoweringError(f"max pool in {module_of(forward) or 'the model'!r} returns its indices to the model",
                            hint="use max pool without return_indices")
    overlapping = any(s < d * (k - 1) + 1 for k, s, d in zip(kernel, stride, dilation, strict=True))
    graph = forward.graph
    with graph.inserting_before(forward):
        pool = graph.call_function(ours.max_pool.default, (x, kernel, stride, padding, dilation, ceil_mode))
    with graph.inserting_before(backward):
        scatter = graph.call_function(
            ours.max_pool_gradient.default, (g, places, x, kernel, stride, padding, overlapping)
        )
    for new, old in ((pool, forward), (scatter, backward)):
        new.meta = dict(old.meta)
        old.replace_all_uses_with(new)
        graph.erase_node(old)


def _even_windows(x: Node, g: Node, node: Node) -> list[int]:
    """The window of an adaptive pool whose windows are all alike."""
    sizes = list(zip(x.meta["val"].shape[-2:], g.meta["val"].shape[-2:], strict=True))
    if any(size % out for size, out in sizes):
        raise LoweringError(
            f"operator {node.target} in module {module_of(node)!r}: windows of different sizes cannot be lowered",
            hint="choose an output size that divides the input's, or nn.AdaptiveAvgPool2d",
        )
    return [size // out for size, out in sizes]


__all__ = ["operators", "rewrite"]
