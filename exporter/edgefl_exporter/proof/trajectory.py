"""Twenty steps of a program that changes state: on PyTorch's path, and on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from edgefl.names import LEARNING_RATE
from edgefl_exporter.programs.program import Definition
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.proof.cases import FREE, STEPS, Case
from edgefl_exporter.proof.judge import Question, judge, question
from edgefl_exporter.proof.sides import Sides, Values, finite

# Of those steps, the first with which twenty of PyTorch's do not diverge: values that are not finite prove nothing.
STEP_RATES = (0.05, 5e-3, 5e-4, 5e-5)


def trajectory(sides: Sides, state: Mapping[str, Tensor], samples: Samples) -> dict[str, float]:
    """Twenty steps, each from PyTorch's state ("20 steps"), and all in a row on the program's own ("free").

    The figures of both; none where PyTorch diverges at every rate of STEP_RATES.
    """
    definition, program = sides.definition, sides.program
    drawn = [definition.draw(samples, 8, sides.generator) for _ in range(STEPS)]
    for rate in STEP_RATES:
        batches = [_slower(inputs, rate) for inputs in drawn]
        met: list[dict[str, float]] = []
        here: Values = dict(state)
        for inputs in batches:
            here = {**here, **inputs}
            want = sides.torch(here)
            if not finite(want):
                break
            met.append(judge(definition.name, program, question(sides, Case(f"{STEPS} steps", here), want)))
            here = _after(definition, here, want)
        else:
            last = judge(definition.name, program, _free(sides, state, batches, here))
            errors = {f"{STEPS} steps": [error for one in met for error in one.values()], FREE: [*last.values()]}
            return {check: max(found) for check, found in errors.items() if found}
    return {}


def _free(sides: Sides, state: Mapping[str, Tensor], batches: list[Values], reached: Values) -> Question:
    """Where all the steps in a row lead, under the names of the outputs; PyTorch has `reached` its end."""
    writes = sides.definition.writes

    def follow(start: Values, step: Callable[[Values], Values]) -> Values:
        for inputs in batches:
            start = _after(sides.definition, start, step({**start, **inputs}))
        return {output: start[name] for name, output in writes.items()}

    def nearby() -> tuple[Values, Values]:
        near = sides.moved(dict(state))
        return follow(near, sides.torch), follow(near, sides.file)

    ends = {output: reached[name] for name, output in writes.items()}
    return Question(Case(FREE, dict(state)), ends, follow(dict(state), sides.file), nearby, dict)


def _after(definition: Definition, values: Values, reached: Values) -> Values:
    """The state that a step has left in place of the one before."""
    return {**values, **{name: reached[output] for name, output in definition.writes.items()}}


def _slower(inputs: Values, rate: float) -> Values:
    """The inputs, with a learning rate of no more than `rate`."""
    if LEARNING_RATE not in inputs:
        return inputs
    return {**inputs, LEARNING_RATE: inputs[LEARNING_RATE].clamp(max=rate)}
