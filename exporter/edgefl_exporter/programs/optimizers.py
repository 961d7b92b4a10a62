"""Optimizers as arithmetic on named tensors: one step, with their own tensors as state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from edgefl.errors import InputError
from edgefl.names import OPTIMIZER

Tensors = Mapping[str, Tensor]


class Optimizer(Protocol):
    """One step of a torch optimizer, written as a pure function so that it can be lowered."""

    @property
    def learning_rate(self) -> float:
        """The default of the program's setting."""
        ...

    @property
    def weight_decay(self) -> float: ...

    def state(self, parameters: Tensors) -> dict[str, Tensor]:
        """The optimizer's own state before the first step; every name begins with OPTIMIZER."""
        ...

    def typical(self, parameters: Tensors) -> dict[str, float]:
        """State -> a number it may hold after some steps, where the initial one makes a step ill-conditioned."""
        ...

    def step(
        self, parameters: Tensors, gradients: Tensors, state: Tensors, rates: Tensors, decays: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Next parameters and next state. `rates` and `decays`: learning rate and weight decay of each parameter."""
        ...

    def torch(self, groups: Sequence[dict[str, Any]], weights: Tensors, state: Tensors) -> TorchOptimizer:
        """PyTorch's own optimizer in the state given: what the arithmetic is proven against. `groups` are its."""
        ...

    def torch_state(self, optimizer: TorchOptimizer, weights: Tensors) -> dict[str, Tensor]:
        """The state that PyTorch's own optimizer has now, by our names."""
        ...


@dataclass(frozen=True)
class SGD:
    """torch.optim.SGD: g += weight_decay * w; m = momentum * m + g; w -= learning_rate * m.

    `learning_rate` is the default of the program's setting; a task may give another. torch's first step has m = g,
    which equals this from m = 0. With nesterov the step is g + momentum * m.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for a value that PyTorch would refuse, or that trains nothing."""
        _check_numbers(self, "learning_rate", "momentum", "weight_decay")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum", hint="for example 0.9")

    def state(self, parameters: Tensors) -> dict[str, Tensor]:
        return {_of("momentum", name): torch.zeros_like(w) for name, w in parameters.items() if self.momentum}

    def typical(self, parameters: Tensors) -> dict[str, float]:
        return {}

    def step(
        self, parameters: Tensors, gradients: Tensors, state: Tensors, rates: Tensors, decays: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        next_parameters, next_state = {}, {}
        for name, w in parameters.items():
            g = gradients[name]
            if decays[name]:
                g = g + decays[name] * w
            if self.momentum:
                m = self.momentum * state[_of("momentum", name)] + g
                next_state[_of("momentum", name)] = m
                g = g + self.momentum * m if self.nesterov else m
            next_parameters[name] = w - rates[name] * g
        return next_parameters, next_state

    def torch(self, groups: Sequence[dict[str, Any]], weights: Tensors, state: Tensors) -> TorchOptimizer:
        optimizer = torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov)
        if self.momentum:
            for name, w in weights.items():
                optimizer.state[w]["momentum_buffer"] = state[_of("momentum", name)].clone()
        return optimizer

    def torch_state(self, optimizer: TorchOptimizer, weights: Tensors) -> dict[str, Tensor]:
        if not self.momentum:
            return {}
        return {_of("momentum", name): optimizer.state[w]["momentum_buffer"] for name, w in weights.items()}


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam (Kingma and Ba 2015, algorithm 1), or AdamW (Loshchilov and Hutter 2019) when `decoupled`.

    m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g^2, step t counted from 1:
    w -= learning_rate * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps). Adam adds weight_decay * w to g, AdamW
    shrinks w by learning_rate * weight_decay first.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decoupled: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for a value that PyTorch would refuse."""
        _check_numbers(self, "learning_rate", "weight_decay", "eps")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are {self.betas}; expected 0 or more, less than 1")

    def state(self, parameters: Tensors) -> dict[str, Tensor]:
        moments = {
            _of(kind, name): torch.zeros_like(w) for name, w in parameters.items() for kind in ("mean", "square")
        }
        return {_STEP: torch.tensor(0), **moments}

    def typical(self, parameters: Tensors) -> dict[str, float]:
        return {_of("square", name): 1e-2 for name in parameters}

    def step(
        self, parameters: Tensors, gradients: Tensors, state: Tensors, rates: Tensors, decays: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        step = state[_STEP] + 1
        # 1 - beta^t in float64: near t = 1 float32 would lose five digits of 1 - 0.999.
        unbias, unbias_square = ((1 - beta ** step.to(torch.float64)).to(torch.float32) for beta in self.betas)
        next_parameters, next_state = {}, {_STEP: step}
        for name, w in parameters.items():
            g = gradients[name]
            if self.decoupled and decays[name]:
                w = w * (1 - rates[name] * decays[name])
            elif decays[name]:
                g = g + decays[name] * w
            m = self.betas[0] * state[_of("mean", name)] + (1 - self.betas[0]) * g
            v = self.betas[1] * state[_of("square", name)] + (1 - self.betas[1]) * (g * g)
            next_state[_of("mean", name)], next_state[_of("square", name)] = m, v
            next_parameters[name] = w - (rates[name] / unbias) * m / (v.sqrt() / unbias_square.sqrt() + self.eps)
        return next_parameters, next_state

    def torch(self, groups: Sequence[dict[str, Any]], weights: Tensors, state: Tensors) -> TorchOptimizer:
        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        optimizer = kind(groups, betas=self.betas, eps=self.eps)
        for name, w in weights.items():
            optimizer.state[w] = {
                "step": state[_STEP].to(torch.float32),
                "exp_avg": state[_of("mean", name)].clone(),
                "exp_avg_sq": state[_of("square", name)].clone(),
            }
        return optimizer

    def torch_state(self, optimizer: TorchOptimizer, weights: Tensors) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, w in weights.items():
            found[_STEP] = optimizer.state[w]["step"].to(torch.int64)
            found[_of("mean", name)] = optimizer.state[w]["exp_avg"]
            found[_of("square", name)] = optimizer.state[w]["exp_avg_sq"]
        return found


_STEP = f"{OPTIMIZER}step"


def _of(kind: str, parameter: str) -> str:
    return f"{OPTIMIZER}{kind}.{parameter}"


def _check_numbers(optimizer: object, *names: str) -> None:
    for name in names:
        value = getattr(optimizer, name)
        if not math.isfinite(value) or value < 0:
            raise InputError(f"{name} is {value}; expected a finite number, at least 0")
