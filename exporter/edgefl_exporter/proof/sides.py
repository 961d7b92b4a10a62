"""The two that a proof compares: PyTorch, and the finished file in the runtime it is for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgefl.manifest import Program
from edgefl.names import FEATURES, OPTIMIZER
from edgefl.replay import Runs
from edgefl.tensors import Array
from edgefl_exporter.programs.program import PRESENT, Definition

Values = dict[str, Tensor]

ROUNDING = 1e-6  # the part of itself by which everything is moved where rounding may decide: see `judge`
ZERO_ROUNDING = 1e-9  # how far a state tensor of zeros alone is moved


@dataclass(frozen=True)
class Sides:
    """PyTorch's answers (`torch`) and the file's (`file`) for the same inputs and state.

    The oracle is the real module with `backward()` and PyTorch's own optimizer, not the function that was lowered.
    `generator` draws the moves of `nearby`.
    """

    definition: Definition
    program: Program
    runner: Runs
    generator: torch.Generator

    def torch(self, values: Values) -> Values:
        return self.definition.oracle(values)

    def file(self, values: Values) -> Values:
        return {name: torch.from_numpy(array.copy()) for name, array in self.runner.run(arrays(values)).items()}

    def nearby(self, values: Values) -> tuple[Values, Values]:
        """What both answer when everything is moved by a rounding-sized part of itself."""
        near = self.moved(values)
        return self.torch(near), self.file(near)

    def exact(self, values: Values) -> Values:
        """PyTorch's answer in float64; nothing where the model cannot be run so."""
        try:
            return self.torch({n: v.double() if v.is_floating_point() else v for n, v in values.items()})
        except Exception:  # the model's own code: an assert on a dtype, for one
            return {}

    def moved(self, values: Values) -> Values:
        """Every float moved by a rounding-sized random part: features by a part of the largest, state of itself.

        State that is zero as a whole (a head, a bias) moves too, an optimizer's excepted: before the first step it is
        zero exactly. Single zeros (of a mask) stay zero, what is nowhere negative (a variance) stays so.
        """
        exact = {entry.name for entry in self.definition.inputs if entry.source == "setting"} | {PRESENT}
        near = dict(values)
        for name, value in values.items():
            if value.is_floating_point() and name not in exact and value.numel():
                scale = value.abs().amax().clamp(min=1.0) if name == FEATURES else value
                part = ROUNDING * torch.randn(value.shape, generator=self.generator) * scale
                if not name.startswith(OPTIMIZER) and not bool(value.any()):
                    part = ZERO_ROUNDING * torch.randn(value.shape, generator=self.generator)
                moved = torch.where(value.isfinite(), value + part, value)
                near[name] = moved.abs() if name != FEATURES and bool((value >= 0).all()) else moved
        return near


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """While the block runs, PyTorch has one thread: its sums are then the same on any number of cores. Small layers are
    faster so; beside other work two threads, which wait for each other, took ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finite(values: Values) -> bool:
    return all(bool(value.isfinite().all()) for value in values.values())


def tensors(values: Mapping[str, Array]) -> Values:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}


def arrays(values: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: value.detach().numpy() for name, value in values.items()}
