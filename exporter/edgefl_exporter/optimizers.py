"""Optimizers as arithmetic on named tensors: one step, with the moments as state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from edgefl.errors import InputError


class Optimizer(Protocol):
    """One step of a torch optimizer, written as a pure function so that it can be lowered."""

    @property
    def learning_rate(self) -> float:
        """The default of the program's setting."""
        ...

    def moments(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The optimizer's own state before the first step, by name."""
        ...

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        learning_rate: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Next parameters and next moments."""
        ...

    def torch(
        self, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], learning_rate: float
    ) -> TorchOptimizer:
        """PyTorch's own optimizer in the state that `moments` describe: what the arithmetic is proven against."""
        ...

    def torch_moments(self, optimizer: TorchOptimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The moments that PyTorch's own optimizer has now, by our names."""
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
        for name in ("learning_rate", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise InputError(f"{name} is {value}; expected a finite number, at least 0")

    def moments(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.momentum:
            return {}
        return {_moment(name): torch.zeros_like(w) for name, w in parameters.items()}

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        learning_rate: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        next_parameters, next_moments = {}, {}
        for name, w in parameters.items():
            g = gradients[name]
            if self.weight_decay:
                g = g + self.weight_decay * w
            if self.momentum:
                m = self.momentum * moments[_moment(name)] + g
                next_moments[_moment(name)] = m
                g = g + self.momentum * m if self.nesterov else m
            next_parameters[name] = w - learning_rate * g
        return next_parameters, next_moments

    def torch(
        self, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], learning_rate: float
    ) -> TorchOptimizer:
        optimizer = torch.optim.SGD(
            list(parameters.values()),
            lr=learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
        if self.momentum:
            for name, w in parameters.items():
                optimizer.state[w]["momentum_buffer"] = moments[_moment(name)].clone()
        return optimizer

    def torch_moments(self, optimizer: TorchOptimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.momentum:
            return {}
        return {_moment(name): optimizer.state[w]["momentum_buffer"] for name, w in parameters.items()}


def _moment(parameter: str) -> str:
    return f"momentum.{parameter}"
