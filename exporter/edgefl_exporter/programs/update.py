"""From gradients to the next state: accumulation, SCAFFOLD's correction, the proximal term, clipping, parameter groups,
then the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgefl.errors import InputError
from edgefl.manifest import Input, select
from edgefl.names import CONTROL, CONTROL_STEPS, CONTROL_SUM, LEARNING_RATE, OPTIMIZER, PROXIMAL
from edgefl_exporter.programs.optimizers import Optimizer

Tensors = Mapping[str, Tensor]

CLIP_NORM, MICRO_BATCHES = "clip_norm", "micro_batches"
EXAMPLES, COUNT = f"{OPTIMIZER}examples", f"{OPTIMIZER}micro_batch"
CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_'s


@dataclass(frozen=True)
class Group:
    """Parameters that are treated apart.

    parameters      shell-style patterns; the first group that matches a parameter has it
    learning_rate   times the program's setting
    weight_decay    in place of the optimizer's
    clip_norm       clip these gradients together, by their own norm
    """

    parameters: tuple[str, ...]
    learning_rate: float = 1.0
    weight_decay: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a value that trains nothing or the wrong way."""
        if not self.parameters:
            raise InputError("a group has no pattern for its parameters", hint="for example head.*")
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value < 0 or (name == "clip_norm" and not value)):
                least = "a number above 0" if name == "clip_norm" else "at least 0"
                raise InputError(f"group {', '.join(self.parameters)}: {name} is {value}; expected {least}")


@dataclass(frozen=True)
class Update:
    """What happens to gradients in a step of training.

    optimizer       the rule
    groups          parameters with their own learning rate, weight decay or clipping
    clip_norm       the greatest norm of all gradients together (of those in no group that clips by itself); the
                    default of the setting `clip_norm`. None: not clipped
    proximal        mu of FedProx's term (mu / 2) |w - anchor|^2 (Li et al. 2020, arXiv:1812.06127, eq. 2), the default
                    of the setting `proximal`; the program `anchor` makes the parameters of now the anchor. None: none
    controls        SCAFFOLD's correction (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1): each step adds
                    c - c_i to the gradients, before anything else is done to them, and their sum is kept. c is
                    `control.NAME`, announced; the program `control` makes c_i, `own_control.NAME`, their mean
    shifts          FedDyn's memory (Acar et al. 2021, arXiv:2111.04263, Algorithm 1): the proximal term pulls to a
                    place beside the anchor, by `own_shift.NAME`, which the program `dynamic` changes
    micro_batches   over how many batches gradients are added up before a step, each example counting the same; the
                    default of the setting `micro_batches`
    """

    optimizer: Optimizer
    groups: tuple[Group, ...] = ()
    clip_norm: float | None = None
    proximal: float | None = None
    micro_batches: int = 1
    controls: bool = False
    shifts: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for a value that trains nothing or the wrong way."""
        if self.clip_norm is not None and not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise InputError(f"clip_norm is {self.clip_norm}; expected a finite number above 0")
        if self.proximal is not None and not (math.isfinite(self.proximal) and self.proximal >= 0):
            raise InputError(f"proximal is {self.proximal}; expected a finite number, at least 0")
        if self.shifts and self.proximal is None:
            raise InputError("shifts are of a proximal term, and there is none", hint="give proximal")
        if self.micro_batches < 1:
            raise InputError(f"micro_batches is {self.micro_batches}; expected at least 1")

    @property
    def settings(self) -> tuple[Input, ...]:
        """The program's scalar inputs."""
        found = [(LEARNING_RATE, self.optimizer.learning_rate)]
        if self.clip_norm is not None:
            found.append((CLIP_NORM, self.clip_norm))
        if self.proximal is not None:
            found.append((PROXIMAL, self.proximal))
        if self.micro_batches > 1:
            found.append((MICRO_BATCHES, float(self.micro_batches)))
        return tuple(Input(name, "float32", (), "setting", default) for name, default in found)

    def state(self, parameters: Tensors) -> dict[str, Tensor]:
        """All tensors beside the parameters, before the first step."""
        found = self.optimizer.state(parameters)
        if self.proximal is not None:
            found |= {anchor(name): w.clone() for name, w in parameters.items()}
        if self.shifts:
            found |= {own_shift(name): torch.zeros_like(w) for name, w in parameters.items()}
        if self.controls:
            for make in (control, own_control, control_sum):
                found |= {make(name): torch.zeros_like(w) for name, w in parameters.items()}
            found[CONTROL_STEPS] = torch.tensor(0)
        if self.micro_batches > 1:
            found |= {EXAMPLES: torch.tensor(0.0), COUNT: torch.tensor(0)}
            found |= {_sum(name): torch.zeros_like(w) for name, w in parameters.items()}
        return found

    def written(self, parameters: Tensors) -> tuple[str, ...]:
        """The names of the state that a step changes."""
        given = (ANCHOR, CONTROL, OWN_CONTROL, OWN_SHIFT)
        return tuple(name for name in self.state(parameters) if not name.startswith(given))

    def announced(self, parameters: Tensors) -> tuple[str, ...]:
        """The names of the state that an aggregator sets."""
        return tuple(control(name) for name in parameters) if self.controls else ()

    def step(
        self, parameters: Tensors, gradients: Tensors, values: Tensors, examples: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Next parameters and next state. `values` holds state and settings; `examples` how many the batch has."""
        if self.micro_batches == 1:
            return self._apply(parameters, gradients, values)
        count, total = values[COUNT] + 1, values[EXAMPLES] + examples
        sums = {name: values[_sum(name)] + g * examples for name, g in gradients.items()}
        means = {name: value / total for name, value in sums.items()}
        stepped, moved = self._apply(parameters, means, values)
        full = count.to(torch.float32) >= values[MICRO_BATCHES]
        state = {name: torch.where(full, value, values[name]) for name, value in moved.items()}
        state |= {_sum(name): torch.where(full, torch.zeros_like(value), value) for name, value in sums.items()}
        state[EXAMPLES] = torch.where(full, torch.zeros_like(total), total)
        state[COUNT] = torch.where(full, torch.zeros_like(count), count)
        return {name: torch.where(full, w, parameters[name]) for name, w in stepped.items()}, state

    def _apply(
        self, parameters: Tensors, gradients: Tensors, values: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        counted: dict[str, Tensor] = {}
        if self.controls:
            counted = {control_sum(name): values[control_sum(name)] + g for name, g in gradients.items()}
            counted[CONTROL_STEPS] = values[CONTROL_STEPS] + 1
            gradients = {n: g - values[own_control(n)] + values[control(n)] for n, g in gradients.items()}
        if self.proximal is not None:
            places = {n: values[anchor(n)] for n in gradients}
            if self.shifts:
                places = {n: place + values[own_shift(n)] for n, place in places.items()}
            gradients = {n: g + values[PROXIMAL] * (parameters[n] - places[n]) for n, g in gradients.items()}
        gradients = dict(gradients)
        for names, limit in self._clipped(parameters, values):
            norm = torch.stack([gradients[name].square().sum() for name in names]).sum().sqrt()
            scale = (limit / (norm + CLIP_EPSILON)).clamp(max=1.0)
            gradients |= {name: gradients[name] * scale for name in names}
        rate = values[LEARNING_RATE]
        rates: dict[str, Tensor] = {}
        decays: dict[str, float] = {}
        for group, names in self._grouped(parameters):
            rates |= dict.fromkeys(names, rate if group.learning_rate == 1 else rate * group.learning_rate)
            decays |= dict.fromkeys(names, self._decay(group))
        weights, state = self.optimizer.step(parameters, gradients, values, rates, decays)
        return weights, state | counted

    def torch(self, weights: Tensors, values: Tensors, examples: int) -> dict[str, Tensor]:
        """The same by PyTorch's own means: `weights` are leaves whose .grad is set, and are changed in place.

        Gives the next state by our names.
        """
        after: dict[str, Tensor] = {}
        if self.micro_batches > 1:
            count, total = int(values[COUNT]) + 1, float(values[EXAMPLES]) + examples
            for name, w in weights.items():
                assert w.grad is not None
                w.grad = values[_sum(name)] + w.grad * examples
            if count < float(values[MICRO_BATCHES]):
                after = {_sum(name): w.grad for name, w in weights.items() if w.grad is not None}
                kept = {n: values[n] for n in self.written(weights)}
                return kept | after | {EXAMPLES: torch.tensor(total), COUNT: torch.tensor(count)}
            for name, w in weights.items():
                assert w.grad is not None
                w.grad = w.grad / total
                after[_sum(name)] = torch.zeros_like(w)
            after |= {EXAMPLES: torch.tensor(0.0), COUNT: torch.tensor(0)}
        if self.controls:
            after[CONTROL_STEPS] = values[CONTROL_STEPS] + 1
            for name, w in weights.items():
                assert w.grad is not None
                after[control_sum(name)] = values[control_sum(name)] + w.grad
                w.grad = w.grad + (values[control(name)] - values[own_control(name)])
        if self.proximal is not None:
            mu = float(values[PROXIMAL])
            squares = [(w - values[anchor(name)]).square().sum() for name, w in weights.items()]
            (0.5 * mu * torch.stack(squares).sum()).backward()  # type: ignore[no-untyped-call]
            if self.shifts:  # as the paper has it: -<g_k, w>
                products = [(mu * values[own_shift(name)] * w).sum() for name, w in weights.items()]
                (-torch.stack(products).sum()).backward()  # type: ignore[no-untyped-call]
        for names, limit in self._clipped(weights, values):
            torch.nn.utils.clip_grad_norm_([weights[name] for name in names], float(limit))
        rate = float(values[LEARNING_RATE])
        groups: list[dict[str, Any]] = [
            {
                "params": [weights[name] for name in names],
                "lr": rate * group.learning_rate,
                "weight_decay": self._decay(group),
            }
            for group, names in self._grouped(weights)
        ]
        optimizer = self.optimizer.torch(groups, weights, values)
        optimizer.step()
        return after | self.optimizer.torch_state(optimizer, weights)

    def check(self, parameters: Tensors) -> None:
        """Raises InputError for a group that matches nothing."""
        for group in self.groups:
            for pattern in group.parameters:
                if not select(parameters, [pattern]):
                    raise InputError(f"group {pattern!r} matches no trained parameter", hint=_some(parameters))

    def _grouped(self, parameters: Tensors) -> list[tuple[Group, list[str]]]:
        """Each group with the parameters it has; the last is of those that no group matches."""
        left = list(parameters)
        found = []
        for group in (*self.groups, Group(("*",))):
            names = select(left, group.parameters)
            left = [name for name in left if name not in names]
            if names:
                found.append((group, names))
        return found

    def _clipped(self, parameters: Tensors, values: Tensors) -> list[tuple[list[str], Tensor]]:
        """The parameters whose gradients are clipped together, and the norm they are clipped to."""
        found, rest = [], []
        for group, names in self._grouped(parameters):
            if group.clip_norm is None:
                rest += names
            else:
                found.append((names, torch.tensor(group.clip_norm)))
        if self.clip_norm is not None and rest:
            found.append((rest, values[CLIP_NORM]))
        return found

    def _decay(self, group: Group) -> float:
        return self.optimizer.weight_decay if group.weight_decay is None else group.weight_decay


ANCHOR, OWN_CONTROL, OWN_SHIFT = "anchor.", "own_control.", "own_shift."


def anchor(parameter: str) -> str:
    """The state tensor that the proximal term pulls a parameter to."""
    return f"{ANCHOR}{parameter}"


def control(parameter: str) -> str:
    """SCAFFOLD's c of a parameter: everybody's mean gradient."""
    return f"{CONTROL}{parameter}"


def own_control(parameter: str) -> str:
    """SCAFFOLD's c_i of a parameter: this device's mean gradient when it was last asked."""
    return f"{OWN_CONTROL}{parameter}"


def own_shift(parameter: str) -> str:
    """How far beside the anchor this device's proximal term pulls a parameter: FedDyn's g_k / alpha."""
    return f"{OWN_SHIFT}{parameter}"


def control_sum(parameter: str) -> str:
    """The sum of a parameter's gradients since the optimizer was reset."""
    return f"{CONTROL_SUM}{parameter}"


def _sum(parameter: str) -> str:
    return f"{OPTIMIZER}gradient.{parameter}"


def _some(names: Mapping[str, object]) -> str:
    known = list(names)
    return f"there is: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
