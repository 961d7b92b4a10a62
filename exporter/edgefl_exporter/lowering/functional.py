"""The traced graph without mutations, in operators that have an ONNX translation: one pass over fake tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functionalize
from torch.fx import GraphModule, Interpreter, Node
from torch.fx import traceback as fx_traceback

from edgefl_exporter.lowering import decompose
from edgefl_exporter.lowering.torch_internals import (
    ONNXRegistry,
    TypePromotionInterpreter,
    TypePromotionTable,
    create_onnx_friendly_decomposition_table,
    enable_python_dispatcher,
    get_onnx_implemented_overloads,
    get_type_promotion_rule,
    make_fx,
)
from edgefl_exporter.lowering.trace import Traced, quiet

aten = torch.ops.aten

ASSERTIONS = {
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._linalg_check_errors.default,
}


def functional(traced: Traced, registry: ONNXRegistry) -> GraphModule:
    """`traced.graph` taken apart as far as `registry` needs it, with type promotion written out.

    torch.onnx.export would interpret the graph five times for the same result. Nodes keep the notes of the nodes
    they come from.
    """
    fakes = [node.meta["val"] for node in traced.graph.graph.nodes if node.op == "placeholder"]
    for node in traced.graph.graph.nodes:  # under which name the model called it, before it is taken apart
        node.meta["custom"] = {**(node.meta.get("custom") or {}), "called": str(node.target)}
    with quiet(), traced.mode, fx_traceback.preserve_node_meta(), enable_python_dispatcher(), torch.no_grad():
        pure = functionalize(Interpreter(traced.graph).run, remove="mutations")
        graph = make_fx(pure, _decompositions(registry), tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
        _simplify(graph)
        _Promotion(graph, TypePromotionTable()).run(*fakes)
    for node in graph.graph.nodes:
        if node.op == "get_attr":  # a tensor made while the model runs, torch.tensor([1, 2]): its value, not its shape
            node.meta["val"] = getattr(graph, node.target)
    return graph


def _simplify(graph: GraphModule) -> None:
    """Without what is not used, and without assertions on values."""
    for node in list(graph.graph.nodes):
        if node.target in ASSERTIONS:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()


@functools.cache  # a tenth of the time that a small program takes
def _decompositions(registry: ONNXRegistry) -> dict[Any, Callable[..., Any]]:
    """PyTorch's decompositions of operators without a translation, and in any case those to core ATen and ours."""
    translated: Any = set(get_onnx_implemented_overloads(registry))
    return create_onnx_friendly_decomposition_table(translated) | decompose.table()


class _Promotion(TypePromotionInterpreter):
    """Casts where PyTorch promotes types. Only what changes is run again; the rest is known from the trace."""

    def run_node(self, n: Node) -> Any:
        rule = get_type_promotion_rule(n, self.type_promotion_table)
        if rule is not None:
            with self._set_current_node(n):
                self._maybe_promote_node(n, rule)
        # Placeholders and the output are the interpreter's own business.
        return super(TypePromotionInterpreter, self).run_node(n) if n.op in ("placeholder", "output") else n.meta["val"]
