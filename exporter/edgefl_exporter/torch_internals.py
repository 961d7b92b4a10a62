"""What the exporter takes of PyTorch that PyTorch does not promise to keep: this file is where an upgrade is looked at.

Nobody else here names a private module or attribute of torch (a test looks); the names of ATen operators, some of which
begin with an underscore, are the operator set that is translated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from onnxscript.values import TracedOnnxFunction
from torch import nn
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
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "LOGGERS",
    "AnyBatchNorm",
    "AnyConvolution",
    "AnyDropout",
    "AnyNorm",
    "ConstantSource",
    "DimDynamic",
    "FakeTensorMode",
    "ONNXRegistry",
    "OpRecorder",
    "ShapeEnv",
    "StatelessSymbolicContext",
    "SymbolicTensor",
    "TorchDispatchMode",
    "TypePromotionInterpreter",
    "TypePromotionTable",
    "UnsupportedOperatorException",
    "add_node",
    "backward_number",
    "create_onnx_friendly_decomposition_table",
    "decomposition_table",
    "dispatch",
    "enable_python_dispatcher",
    "forward_number",
    "get_onnx_implemented_overloads",
    "get_type_promotion_rule",
    "layers_as_written",
    "make_fx",
    "pack_padded_sequence",
    "replaced_checkpoints",
    "torchlib",
    "translate_fx_graph",
]

# The layers of every dimension. A norm is a BatchNorm or an InstanceNorm.
AnyBatchNorm = nn.modules.batchnorm._BatchNorm
AnyNorm = nn.modules.batchnorm._NormBase
AnyConvolution = nn.modules.conv._ConvNd
AnyDropout = nn.modules.dropout._DropoutNd

pack_padded_sequence = torch._C._VariableFunctions._pack_padded_sequence

LOGGERS = ("torch.onnx", "torch._subclasses.fake_tensor", "torch.export")  # that talk about PyTorch's own internals


def forward_number() -> int:
    """The autograd number of the operator that is being called, which its backward operators share."""
    return torch._C._autograd._get_sequence_nr() - 1


def backward_number() -> int | None:
    """The number of the forward operator whose backward pass is running, None outside a backward pass."""
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


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


@contextlib.contextmanager
def layers_as_written() -> Iterator[None]:
    """Without PyTorch's fused transformer layer, which in evaluation mode reads weights past the modules that hold
    them, adapters left out."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def replaced_checkpoints(reentrant: object, other: object) -> Iterator[None]:
    """While the block runs, what torch.utils.checkpoint calls for its two forms."""
    with (
        mock.patch.object(checkpoint, "CheckpointFunction", reentrant),
        mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", other),
    ):
        yield
