"""What a program is tried on: random batches, a short one, exactly-zero gradients, extreme inputs; how near its answers
have to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgefl.names import FEATURES, LEARNING_RATE, OPTIMIZER, PROXIMAL
from edgefl_exporter.models.randomness import SEED
from edgefl_exporter.programs.program import Definition
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.programs.update import CLIP_NORM, COUNT, MICRO_BATCHES
from edgefl_exporter.proof.sides import Values, finite

TOLERANCE = 1e-4
# Twenty steps without being put back on PyTorch's path: rounding is fed back through the net each step and grows.
# Measured: at most 5e-6 on the zoo; far more where a ReLU or a maximum flips on the way, which is no mistake.
FREE_TOLERANCE = 1e-2
# Saturated values: onnxruntime's exp, tanh and sigmoid are good to about 1e-7 of 1, which is 1e-3 of sigmoid(-10).
STRESS_TOLERANCE = 2e-3
# By how much the state is moved for a second proof: the first with which PyTorch's answer is finite. A deep net whose
# weights all grow by 0.05 multiplies what it sees by 7 in each layer of 16 channels.
STATE_MOVES = (0.1, 0.01, 0.001)
STEPS = 20
BATCHES = "batches"
FREE = f"{STEPS} steps, free"
LOOSER = dict.fromkeys(("zero inputs", "zero gradients", "extreme inputs"), STRESS_TOLERANCE) | {FREE: FREE_TOLERANCE}
# Settings for random batches, away from their defaults: one that clips and pulls, one that pulls and does not clip. A
# step is taken in the first and, where gradients are added up, not in the second (see `_away`). Those that a model
# declares become OWN_SETTINGS times their defaults.
OWN_SETTINGS = (0.5, 1.5)
SETTINGS = ({CLIP_NORM: 0.1, PROXIMAL: 0.3, SEED.name: 20_011}, {CLIP_NORM: 1e3, PROXIMAL: 0.7, SEED.name: -7})


@dataclass(frozen=True)
class Case:
    """One comparison: a name for messages, and the program's inputs and state."""

    check: str
    values: Values

    @property
    def tolerance(self) -> float:
        return LOOSER.get(self.check, TOLERANCE)


def cases(
    definition: Definition,
    state: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
    samples: Samples,
    generator: torch.Generator,
) -> Iterator[Case]:
    """Random batches, a short one, exactly-zero gradients, extreme inputs; from the state and from a moved one."""
    for start in (state, _moved(definition, state, samples, generator)):
        for count, settings in ((8, {}), (5, SETTINGS[0]), (32, SETTINGS[1])):
            inputs = definition.draw(samples, count, generator)
            if LEARNING_RATE in inputs:
                inputs[LEARNING_RATE] = torch.tensor(1.0)  # so that a step is no smaller than its gradient
            yield Case(BATCHES, {**start, **inputs, **_away(definition, inputs, settings, start)})
    if definition.typical:
        yield Case("first step", {**initial, **definition.draw(samples, 8, generator)})
    if not any(entry.name == FEATURES for entry in definition.inputs):
        return
    yield Case("short batch", {**state, **definition.draw(samples, _shortest(definition, state, samples), generator)})
    zeros = definition.draw(samples, 8, generator)
    zeros[FEATURES] = torch.zeros_like(zeros[FEATURES])
    yield Case("zero inputs", {**state, **zeros})
    # Every bias far below zero: ReLUs die, their gradients are exactly zero.
    dead = {k: v - 10.0 if v.dim() == 1 and k.endswith("bias") else v for k, v in state.items()}
    yield Case("zero gradients", {**dead, **definition.draw(samples, 8, generator)})
    for size in (1e3, 1e-2):
        extreme = definition.draw(samples, 8, generator)
        if not extreme[FEATURES].is_floating_point():
            continue
        extreme[FEATURES] = extreme[FEATURES] * size
        yield Case("extreme inputs", {**state, **extreme})


def _away(definition: Definition, inputs: Values, settings: Mapping[str, float], state: Mapping[str, Tensor]) -> Values:
    """The settings among `inputs` away from their defaults; gradients are full after this batch, or after the next."""
    if not settings:
        return {}
    index = SETTINGS.index(settings)
    found = {
        entry.name: entry.default * OWN_SETTINGS[index]
        for entry in definition.inputs
        if entry.source == "setting" and entry.default is not None and entry.dtype == "float32"
    }
    found.pop(LEARNING_RATE, None)
    found |= settings
    if MICRO_BATCHES in inputs:
        found[MICRO_BATCHES] = int(state[COUNT]) + 1 + index
    return {name: torch.full_like(inputs[name], value) for name, value in found.items() if name in inputs}


def typical(definition: Definition, state: Mapping[str, Tensor]) -> Values:
    """State tensors that a proof does not take as they are at the start, filled as the definition says."""
    return {name: torch.full_like(state[name], value) for name, value in definition.typical.items()}


def _shortest(definition: Definition, state: Mapping[str, Tensor], samples: Samples) -> int:
    """1, or 2 where PyTorch itself refuses one example (BatchNorm while training has no variance of one)."""
    one = definition.draw(samples, 1, torch.Generator().manual_seed(0))
    try:
        definition.oracle({**state, **one})
    except ValueError:
        return 2
    return 1


def _moved(
    definition: Definition, state: Mapping[str, Tensor], samples: Samples, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """A state a little away from the given one, so that zeros and ones in it hide nothing; see STATE_MOVES."""
    found = state
    inputs = definition.draw(samples, 8, torch.Generator().manual_seed(0))
    for size in STATE_MOVES:
        # Non-negative stays non-negative: running variances.
        found = {
            name: value + size * torch.rand(value.shape, generator=generator)
            if value.is_floating_point()
            else value + 3
            if _counts(name, value)
            else value
            for name, value in state.items()
        }
        if finite(definition.oracle({**found, **inputs})):
            break
    return found


def _counts(name: str, value: Tensor) -> bool:
    """Whether this is a counter of steps, which some steps have moved."""
    return name.startswith(OPTIMIZER) and value.dtype == torch.int64
