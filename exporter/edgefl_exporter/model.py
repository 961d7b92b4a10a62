"""A PyTorch model taken apart: named parameters and buffers on one side, a pure function on the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgefl.bundle import Dtype
from edgefl.errors import LoweringError

DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class Parts:
    """A model's own copy and its tensors. A tensor shared by two layers appears once, under its first name.

    parameters   all of them; `trained` names those with requires_grad
    buffers      persistent ones; the others are constants of the program
    """

    module: nn.Module
    parameters: dict[str, Tensor]
    trained: tuple[str, ...]
    buffers: dict[str, Tensor]

    def call(self, values: Mapping[str, Tensor], x: Tensor, *, training: bool) -> tuple[object, dict[str, Tensor]]:
        """The model's output and the buffers after it, with parameters and buffers taken from `values`."""
        self.module.train(training)
        buffers = {name: values[name].clone() for name in self.buffers}
        given = {name: values[name] for name in self.parameters} | buffers
        return functional_call(self.module, given, (x,)), buffers

    def load(self, values: Mapping[str, Tensor]) -> nn.Module:
        """A fresh copy of the module that holds the values: PyTorch's own view of the same state."""
        module = copy.deepcopy(self.module)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name in (*self.parameters, *self.buffers):
                tensors[name].copy_(values[name])
        return module


def take_apart(model: object) -> Parts:
    """The parts of a model, which itself is left as it was found. Raises LoweringError for what is not a model."""
    if not isinstance(model, nn.Module):
        raise LoweringError(
            f"{_name(model)} is not a torch.nn.Module", hint="give a module, or a function that returns one"
        )
    try:
        module = copy.deepcopy(model)
    except Exception as error:
        raise LoweringError(
            f"{_name(model)} cannot be copied: {error}", hint="keep only parameters, buffers and plain values in it"
        ) from error
    for parameter in module.parameters():
        parameter.grad = None
    _check_batch_norms(module)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    persistent = module.state_dict().keys()
    buffers = {name: b.detach() for name, b in module.named_buffers() if name in persistent}
    for name, tensor in (parameters | buffers).items():
        if tensor.dtype not in DTYPES or (name in parameters and tensor.dtype != torch.float32):
            raise LoweringError(f"tensor {name!r} is {tensor.dtype}; parameters must be float32", hint="model.float()")
        if tensor.device.type != "cpu":
            raise LoweringError(f"tensor {name!r} is on {tensor.device}; export works on the CPU", hint="model.cpu()")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise LoweringError(f"tensor {name!r} holds values that are not finite")
    trained = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    return Parts(module, parameters, trained, buffers)


def _check_batch_norms(module: nn.Module) -> None:
    for path, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._NormBase) and child.track_running_stats and child.momentum is None:
            raise LoweringError(
                f"module {path!r} is {_name(child)} with momentum=None, a cumulative average whose factor torch "
                "reads out of a tensor",
                hint="give it a momentum, for example 0.1",
            )


def _name(thing: object) -> str:
    return thing.__name__ if isinstance(thing, type) else type(thing).__name__
