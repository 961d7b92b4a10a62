"""Pairs of operators, replaced in the traced graph: what a decomposition of one operator cannot see."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from edgefl.errors import LoweringError
from edgefl_exporter.lowering import operators as _declared  # noqa: F401  (declares torch.ops.edgefl)
from edgefl_exporter.lowering.trace import Traced, place_of

aten = torch.ops.aten
ours = torch.ops.edgefl


def rewrite(traced: Traced) -> None:
    """Change the graph in place."""
    for node in list(traced.graph.graph.nodes):
        if node.target == aten.max_pool2d_with_indices_backward.default:
            g, x, kernel, stride, padding, dilation, ceil_mode, places = node.args
            stride = stride or kernel
            _max_pool(node, g, x, places, list(kernel), list(stride), list(padding), list(dilation), bool(ceil_mode))
        elif node.target == aten.adaptive_max_pool2d_backward.default:
            g, x, places = node.args
            kernel = _even_windows(x, g, node)
            _max_pool(node, g, x, places, kernel, kernel, [0, 0], [1, 1], False)
        elif node.target == aten._safe_softmax.default:
            _plain_softmax(node)
    for node in list(traced.graph.graph.nodes):
        if node.target == aten.threshold_backward.default:
            _mask_before_scatter(node)
    for node in list(traced.graph.graph.nodes):
        if node.target == aten.threshold_backward.default:
            _bound_by_output(node)
    for node in list(traced.graph.graph.nodes):
        if node.target == aten.convolution_backward.default:
            _bias_before_scatter(node)
    traced.graph.graph.eliminate_dead_code()
    traced.graph.graph.lint()
    traced.graph.recompile()


def _plain_softmax(node: Node) -> None:
    """Attention without a mask: no row of products is all -inf, so nothing need guard against it."""
    scores = node.args[0]
    while isinstance(scores, Node) and scores.target in _SHAPE_ONLY:
        scores = scores.args[0]
    if isinstance(scores, Node) and scores.target in (aten.bmm.default, aten.mm.default):
        node.target = aten._softmax.default
        node.args = (node.args[0], node.args[1], False)


_SHAPE_ONLY = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default}


def _max_pool(
    backward: Node,
    g: Node,
    x: Node,
    places: Node,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> None:
    """A max pool and its backward share the places of the maxima.

    ONNX's MaxPool counts places over the whole tensor, torch over each plane; so both ends change together, and
    nobody else may read the places. As in PyTorch, the whole gradient goes to the first maximum of a window.
    """
    assert places.target is operator.getitem
    forward = places.args[0]
    assert isinstance(forward, Node)
    if set(places.users) != {backward}:
        raise LoweringError(
            f"max pool in {place_of(forward)} returns its indices to the model",
            hint="use max pool without return_indices",
        )
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


def _mask_before_scatter(mask: Node) -> None:
    """ReLU then max pool: mask the pooled gradient, not the scattered one, which is four times as large or more.

    The gradient lands where the maximum was, and there the ReLU's output is the pool's output.
    """
    g, relu, threshold = mask.args
    if not isinstance(g, Node) or g.target != ours.max_pool_gradient.default or set(g.users) != {mask}:
        return
    small, places, x, *rest = g.args
    assert isinstance(places, Node) and isinstance(relu, Node) and isinstance(x, Node)
    pool = places.args[0]
    if _source(relu) is not _source(x) or threshold != 0:
        return
    graph = mask.graph
    with graph.inserting_before(mask):
        pooled = graph.call_function(operator.getitem, (pool, 0))
        masked = graph.call_function(aten.threshold_backward.default, (small, pooled, threshold))
        scattered = graph.call_function(ours.max_pool_gradient.default, (masked, places, x, *rest))
    for node in (masked, scattered):
        node.meta = dict(mask.meta)
    mask.replace_all_uses_with(scattered)
    graph.erase_node(mask)


# What gives no NaN from numbers of ordinary size, with its gradient.
_REGULAR = {
    operator.getitem,
    ours.max_pool.default,
    ours.max_pool_gradient.default,
    ours.relu_gradient.default,
    aten._log_softmax.default,
    aten._native_batch_norm_legit.default,
    aten._softmax.default,
    aten._to_copy.default,
    aten._unsafe_view.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d_backward.default,
    aten.add.Tensor,
    aten.addmm.default,
    aten.alias.default,
    aten.arange.default,
    aten.avg_pool2d.default,
    aten.avg_pool2d_backward.default,
    aten.bmm.default,
    aten.cat.default,
    aten.clone.default,
    aten.constant_pad_nd.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.detach.default,
    aten.div.Scalar,
    aten.eq.Tensor,
    aten.expand.default,
    aten.hardtanh.default,
    aten.hardtanh_backward.default,
    aten.mean.default,
    aten.mean.dim,
    aten.mm.default,
    aten.mul.Scalar,
    aten.mul.Tensor,
    aten.native_batch_norm_backward.default,
    aten.native_group_norm.default,
    aten.native_group_norm_backward.default,
    aten.native_layer_norm.default,
    aten.native_layer_norm_backward.default,
    aten.neg.default,
    aten.ones_like.default,
    aten.permute.default,
    aten.relu.default,
    aten.reshape.default,
    aten.sigmoid.default,
    aten.slice.Tensor,
    aten.slice_backward.default,
    aten.sub.Tensor,
    aten.sum.dim_IntList,
    aten.sym_numel.default,
    aten.sym_size.int,
    aten.t.default,
    aten.tanh.default,
    aten.threshold_backward.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
}


def _is_regular(g: Node) -> bool:
    """Whether a gradient is made of such operators only, the model's and the loss's: then none of it is NaN by itself.

    A power, say, has an infinite gradient at 0, and 0 times that is NaN: `Where` passes over it, a bound does not.
    """
    seen: set[Node] = set()
    waiting = [g]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting += node.all_input_nodes
        if node.target == aten.exp.default:  # of the log of a softmax: 1 at most
            argument = node.args[0]
            if not isinstance(argument, Node) or _source(argument).target != aten._log_softmax.default:
                return False
        elif node.op == "call_function" and node.target not in _REGULAR:
            return False
    return True


def _bound_by_output(mask: Node) -> None:
    """A gradient masked by a ReLU's own output, or by the maxima of one: both are 0 or more, which a threshold's input
    need not be."""
    g, y, threshold = mask.args
    assert isinstance(y, Node) and isinstance(g, Node)
    source = _source(y)
    if source.target is operator.getitem and source.args[1] == 0:
        pool = source.args[0]
        assert isinstance(pool, Node)
        if pool.target != ours.max_pool.default:
            return
        source = _source(pool.all_input_nodes[0])
    if source.target == aten.relu.default and threshold == 0 and _is_regular(g):
        mask.target = ours.relu_gradient.default
        mask.args = (g, y)


def _bias_before_scatter(backward: Node) -> None:
    """The bias gradient is the sum over all places, and scattering does not change a sum: add up the small tensor."""
    g, *rest, wanted = backward.args
    assert isinstance(wanted, (list, tuple))
    if not isinstance(g, Node) or g.target != ours.max_pool_gradient.default or not wanted[2]:
        return
    graph = backward.graph
    bias = [user for user in backward.users if user.target is operator.getitem and user.args[1] == 2]
    with graph.inserting_before(backward):
        total = graph.call_function(aten.sum.dim_IntList, (g.args[0], [0, 2, 3]))
    for user in bias:
        user.replace_all_uses_with(total)
        graph.erase_node(user)
    backward.args = (g, *rest, [wanted[0], wanted[1], False])


def _source(node: Node) -> Node:
    """The node whose value this is, past detach and alias."""
    while node.target in (aten.detach.default, aten.alias.default):
        (node,) = node.all_input_nodes
    return node


def _even_windows(x: Node, g: Node, node: Node) -> list[int]:
    """The window of an adaptive pool whose windows are all alike."""
    sizes = list(zip(x.meta["val"].shape[-2:], g.meta["val"].shape[-2:], strict=True))
    if any(size % out for size, out in sizes):
        raise LoweringError(
            f"operator {node.target} in {place_of(node)}: windows of different sizes cannot be lowered",
            hint="choose an output size that divides the input's, or nn.AdaptiveAvgPool2d",
        )
    return [size // out for size, out in sizes]
