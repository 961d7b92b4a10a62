"""What lowering takes of PyTorch that PyTorch does not promise to keep: its tracing and its ONNX exporter.

Apart from `edgefl_exporter.torch_internals`, because it takes two seconds to import, and a bundle that was made before
needs none of it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from onnxscript.values import TracedOnnxFunction
from torch._decomp import decomposition_table
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.onnx._internal.exporter import _core
from torch.onnx._internal.exporter._building import OpRecorder
from torch.onnx._internal.exporter._core import _translate_fx_graph as translate_fx_graph
from torch.onnx._internal.exporter._decomp import (
    create_onnx_friendly_decomposition_table,
    get_onnx_implemented_overloads,
)
from torch.onnx._internal.exporter._dispatching import dispatch
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.exporter._tensors import SymbolicTensor
from torch.onnx._internal.fx.passes.type_promotion import (
    TypePromotionTable,
    get_type_promotion_rule,
)
from torch.onnx._internal.fx.passes.type_promotion import (
    _TypePromotionInterpreter as TypePromotionInterpreter,
)

__all__ = [
    "LOGGERS",
    "ConstantSource",
    "DimDynamic",
    "FakeTensorMode",
    "ONNXRegistry",
    "OpRecorder",
    "ShapeEnv",
    "StatelessSymbolicContext",
    "SymbolicTensor",
    "TypePromotionInterpreter",
    "TypePromotionTable",
    "UnsupportedOperatorException",
    "add_node",
    "create_onnx_friendly_decomposition_table",
    "decomposition_table",
    "dispatch",
    "enable_python_dispatcher",
    "get_onnx_implemented_overloads",
    "get_type_promotion_rule",
    "make_fx",
    "torchlib",
    "translate_fx_graph",
]

LOGGERS = ("torch.onnx", "torch._subclasses.fake_tensor", "torch.export")  # that talk about PyTorch's own internals


def add_node(node: Any) -> None:
    """Add a node to the ONNX graph that is being translated."""
    tracer = _core.current_tracer
    assert tracer is not None
    tracer.nodes.append(node)


def torchlib(opset: int) -> ONNXRegistry:
    """PyTorch's own translations. Without this detour the source of each of its 500 functions is parsed for the name of
    a domain that nobody reads: 0.8 s of a processor."""
    with mock.patch.object(TracedOnnxFunction, "function_ir", SimpleNamespace(domain="")):
        return ONNXRegistry.from_torchlib(opset)
