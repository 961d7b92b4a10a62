"""A PyTorch model taken apart: named parameters and buffers on one side, a pure function on the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgefl.data_contract import Dtype
from edgefl.errors import InputError, LoweringError, nearest
from edgefl.manifest import Input, select
from edgefl_exporter.models.adapters import PARAMETERS, add_adapters
from edgefl_exporter.models.randomness import SEED, SEED_BUFFER, draws
from edgefl_exporter.torch_internals import AnyNorm

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

    parameters   all of them; `trained` names those that train
    buffers      persistent ones; the others are constants of the program
    frozen       paths of modules that stay in evaluation mode while the rest trains
    """

    module: nn.Module
    parameters: dict[str, Tensor]
    trained: tuple[str, ...]
    buffers: dict[str, Tensor]
    frozen: tuple[str, ...] = ()

    def call(self, values: Mapping[str, Tensor], x: Tensor, *, training: bool) -> tuple[object, dict[str, Tensor]]:
        """The model's output and the buffers after it, with parameters and buffers taken from `values`."""
        if training:
            self.train_mode(self.module)
        else:
            self.module.eval()
        buffers = {name: values[name].clone() for name in self.buffers}
        given = {name: values[name] for name in self.parameters} | buffers
        return functional_call(self.module, given | self._given(values), (x,)), buffers

    def load(self, values: Mapping[str, Tensor]) -> nn.Module:
        """A fresh copy of the module that holds the values (float64, if they are): PyTorch's own view of the state."""
        module = copy.deepcopy(self.module)
        if any(values[name].dtype == torch.float64 for name in self.parameters):
            module = module.double()
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name in (*self.parameters, *self.buffers):
                tensors[name].copy_(values[name])
            for name, value in self._given(values).items():
                tensors[name].copy_(value)
        return module

    def settings(self, *, training: bool) -> tuple[Input, ...]:
        """The inputs that a program needs because the model draws random numbers, or declares settings."""
        random = (SEED,) if draws(self.module, training=training) else ()
        return (*random, *settings_of(self.module).values())

    def _given(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The buffers that are inputs of a program, by their names in the module."""
        inputs = {name: entry.name for name, entry in settings_of(self.module).items()} | {SEED_BUFFER: SEED.name}
        return {name: values[given] for name, given in inputs.items() if given in values}

    def train_mode(self, module: nn.Module) -> nn.Module:
        """The module (or a copy of it) in training mode, but for its frozen parts."""
        module.train()
        for path in self.frozen:
            module.get_submodule(path).eval()
        return module


def declare_setting(module: nn.Module, name: str, default: float, dtype: torch.dtype = torch.float32) -> None:
    """Give `module` a scalar that a run can set: its forward reads the buffer `name`, a program has it as an input.

    Every program of the model that is made by `Supervised` has it. It is no state: it neither stays nor travels.
    """
    module.register_buffer(name, torch.tensor(default, dtype=dtype), persistent=False)
    declared: dict[str, Input] = module.__dict__.setdefault(_DECLARED, {})
    declared[name] = Input(name, DTYPES[dtype], (), "setting", default)


def settings_of(module: nn.Module) -> dict[str, Input]:
    """Name of each buffer that `declare_setting` made -> the input that sets it. Raises LoweringError where two modules
    declare one name."""
    found: dict[str, Input] = {}
    for path, child in module.named_modules():
        for name, entry in child.__dict__.get(_DECLARED, {}).items():
            if any(entry.name == other.name for other in found.values()):
                raise LoweringError(f"two modules declare the setting {name!r}", hint="declare it once")
            found[f"{path}.{name}" if path else name] = entry
    return found


_DECLARED = "_edgefl_settings"


def take_apart(model: object, *, train: Sequence[str] = (), lora: int = 0) -> Parts:
    """The parts of a model, which itself is left as it was found.

    Every parameter with requires_grad trains, or with `train` those that any of its patterns matches. `lora`: the rank
    of adapters (edgefl_exporter.models.adapters); they alone train, and what `train` names. A module that was put in
    evaluation mode by itself stays so; with `train` or `lora` so does a BatchNorm none of whose parameters train.
    Raises LoweringError for what is not a model, InputError for a pattern that matches nothing.
    """
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
    if lora:
        add_adapters(module, lora)
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
    if train or lora:
        trained = _chosen(parameters, (*train, *(PARAMETERS if lora else ())))
    else:
        trained = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    return Parts(module, parameters, trained, buffers, _frozen(module, trained, chosen=bool(train or lora)))


def _chosen(parameters: Mapping[str, Tensor], patterns: Sequence[str]) -> tuple[str, ...]:
    for pattern in patterns:
        if pattern not in PARAMETERS and not select(parameters, [pattern]):
            raise InputError(
                f"--train {pattern!r} matches no parameter",
                hint=nearest(pattern, parameters, cutoff=0.3, most=8),
            )
    return tuple(select(parameters, patterns))


def _frozen(module: nn.Module, trained: Sequence[str], *, chosen: bool) -> tuple[str, ...]:
    """The modules in evaluation mode of a model in training mode; where parameters were `chosen`, also a BatchNorm
    that has running statistics and trains nothing of its own."""
    found = [path for path, child in module.named_modules() if module.training and not child.training]
    for path, child in module.named_modules():
        if chosen and isinstance(child, AnyNorm) and child.track_running_stats:
            own = {f"{path}.{name}" if path else name for name, _ in child.named_parameters()}
            if not own & set(trained) and path not in found:
                found.append(path)
    return tuple(found)


def _name(thing: object) -> str:
    return thing.__name__ if isinstance(thing, type) else type(thing).__name__
