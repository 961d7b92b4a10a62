"""The proof, fail closed: the finished file, in the runtime it is for, against PyTorch autograd and torch.optim.

The oracle is the real module with `backward()` and PyTorch's own optimizer, not the function that was lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgefl.bundle import Parity, Program
from edgefl.errors import LoweringError, ParityError
from edgefl.golden import Runs, compare, golden_values, relative_error, require
from edgefl.tensors import Array
from edgefl_exporter.optimizers import STATE
from edgefl_exporter.programs.program import FEATURES, PRESENT, Definition
from edgefl_exporter.samples import Samples
from edgefl_exporter.update import LEARNING_RATE

TOLERANCE = 1e-4
# Twenty steps without being put back on PyTorch's path: rounding is fed back through the net each step and grows.
# Measured: at most 5e-6 on the zoo; far more where a ReLU or a maximum flips on the way, which is no mistake.
FREE_TOLERANCE = 1e-2
# Saturated values: onnxruntime's exp, tanh and sigmoid are good to about 1e-7 of 1, which is 1e-3 of sigmoid(-10).
STRESS_TOLERANCE = 2e-3
STEPS = 20
MOST_LEARNING_RATE = 0.05  # of those steps: twenty of them must not diverge
# Where rounding decides (a ReLU at exactly 0, a BatchNorm of constants, a saturated softmax) no float32 program can
# be held to PyTorch's answer. So PyTorch and the program are asked again with everything moved by this part of itself,
# and PyTorch in float64 (its float32 bias gradient of a large convolution is off by 3e-4: 131,072 terms in a row). What
# that changes, times a margin, counts as no more than the tolerance.
ROUNDING = 1e-6
ROUNDING_MARGIN = 10.0
# One such move may flip no ReLU where another flips one (measured on VGG-11: a gradient changes by 2e-5 after one move,
# by 2e-2 after the next), so the largest change of several counts.
MOVES = 8
# When that move changes a whole tensor by more than SINGULAR, PyTorch's own answer is noise and proves nothing of that
# tensor. Each must be decided on some random batch (BATCHES); the manifest lists no figure for a check without any.
SINGULAR = 0.1
BATCHES = "batches"
FREE = "20 steps, free"
GOLDEN_BATCH = 6
GOLDEN_TRIES = 8

Values = dict[str, Tensor]
Step = Callable[[Values], Values]
# What PyTorch and the program answer when everything is moved by a rounding-sized part of itself.
Nearby = Callable[[], tuple[Values, Values]]


@dataclass(frozen=True)
class Case:
    """One comparison: a name for messages, and the program's inputs and state."""

    check: str
    values: Values
    tolerance: float = TOLERANCE


def prove(
    definition: Definition,
    program: Program,
    runner: Runs,
    state: Mapping[str, Tensor],
    samples: Samples,
    seed: int,
) -> tuple[Parity, dict[str, Array]]:
    """The proof's figures and the program's golden tensors. Raises ParityError with the first check that fails.

    `runner` runs the finished file.
    """
    generator = torch.Generator().manual_seed(seed)
    listed: dict[str, float] = {}
    decided: set[str] = set()
    state, initial = {**state, **_typical(definition, state)}, state

    def compare_case(case: Case, got: Values, want: Values, nearby: Nearby, exact: Callable[[], Values]) -> None:
        def errors(floors: Mapping[str, float]) -> dict[str, float]:
            found = compare(program, _arrays(case.values), _undecided(_arrays(got), want), _arrays(want), floors)
            return {name: error for name, error in found.items() if not name.startswith("slack.")}

        found = errors({})
        undecided: set[str] = set()
        if max(found.values(), default=0.0) <= case.tolerance:
            listed[case.check] = max(listed.get(case.check, 0.0), *found.values(), 0.0)
        else:
            wanted = _arrays({name: want[name] for name in found})
            double = exact()
            moved = {name: _distance(double.get(name, want[name]), want[name]) for name in found}
            for _ in range(MOVES):
                other, own = nearby()
                shaken = compare(program, _arrays(case.values), _arrays(other), wanted)
                undecided |= {name for name, change in shaken.items() if not change <= SINGULAR}
                for name in found:
                    moved[name] = max(moved[name], _distance(other[name], want[name]), _distance(own[name], got[name]))
                floored = errors({name: distance / case.tolerance for name, distance in moved.items()})
                allowed = {name: error for name, error in floored.items() if name not in undecided}
                if max(allowed.values(), default=0.0) <= case.tolerance:
                    break
            require(allowed, case.tolerance, program=definition.name, check=case.check)
        if case.check == BATCHES:
            decided.update(found.keys() - undecided)

    def run(values: Values) -> Values:
        return {name: torch.from_numpy(array.copy()) for name, array in runner.run(_arrays(values)).items()}

    def both(values: Values) -> tuple[Values, Values]:
        near = _nudged(definition, values, generator)
        return definition.oracle(near), run(near)

    for case in _cases(definition, state, initial, samples, generator):
        want = definition.oracle(case.values)
        if case.check == BATCHES and not all(bool(v.isfinite().all()) for v in want.values()):
            raise LoweringError("the model gives values that are not finite on ordinary random inputs")
        if case.check == BATCHES:
            _require_equal(want, definition.oracle(case.values))
        compare_case(case, run(case.values), want, lambda: both(case.values), lambda: _exact(definition, case.values))  # noqa: B023
    if definition.writes:
        _trajectory(definition, run, both, state, samples, generator, compare_case)
    outputs = {entry.name for entry in definition.outputs} | set(definition.writes.values())
    if never := sorted(outputs - decided):
        raise ParityError(
            f"program {definition.name!r}: PyTorch's own {never[0]!r} is rounding noise on every random batch",
            hint="is there a layer whose output does not depend on its input?",
        )
    # Figures are those of the cases that met the plain tolerance: in others (that are not refused) rounding decided.
    checks = {check: error for check, error in listed.items() if error <= TOLERANCE}
    golden = _golden(definition, program, run, both, state, initial, samples, seed)
    return Parity(runner.runtime, TOLERANCE, checks), golden


def _require_equal(first: Values, second: Values) -> None:
    """Raises LoweringError where PyTorch gives two answers to one question."""
    for name, value in first.items():
        if relative_error(second[name].numpy(), value.numpy()) > ROUNDING * ROUNDING_MARGIN:
            raise LoweringError(
                f"the model gives {name!r} once more from the same inputs, and differently",
                hint="no random or numpy in forward: torch.rand, torch.randn and dropout become part of the program",
            )


def _cases(
    definition: Definition,
    state: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
    samples: Samples,
    generator: torch.Generator,
) -> Iterator[Case]:
    """Random batches, a short one, exactly-zero gradients, extreme inputs; from the state and from a moved one."""
    moved = {k: v + 3 if _counts(k, v) else _moved(v, generator) for k, v in state.items()}
    for start in (state, moved):
        for count in (8, 5, 32):
            inputs = definition.draw(samples, count, generator)
            if LEARNING_RATE in inputs:
                inputs[LEARNING_RATE] = torch.tensor(1.0)  # so that a step is no smaller than its gradient
            yield Case(BATCHES, {**start, **inputs})
    if definition.typical:
        yield Case("first step", {**initial, **definition.draw(samples, 8, generator)})
    if not any(entry.name == FEATURES for entry in definition.inputs):
        return
    yield Case("short batch", {**state, **definition.draw(samples, _shortest(definition, state, samples), generator)})
    zeros = definition.draw(samples, 8, generator)
    zeros[FEATURES] = torch.zeros_like(zeros[FEATURES])
    yield Case("zero inputs", {**state, **zeros}, STRESS_TOLERANCE)
    # Every bias far below zero: ReLUs die, their gradients are exactly zero.
    dead = {k: v - 10.0 if v.dim() == 1 and k.endswith("bias") else v for k, v in state.items()}
    yield Case("zero gradients", {**dead, **definition.draw(samples, 8, generator)}, STRESS_TOLERANCE)
    for size in (1e3, 1e-2):
        extreme = definition.draw(samples, 8, generator)
        if not extreme[FEATURES].is_floating_point():
            continue
        extreme[FEATURES] = extreme[FEATURES] * size
        yield Case("extreme inputs", {**state, **extreme}, STRESS_TOLERANCE)


def _trajectory(
    definition: Definition,
    run: Step,
    both: Callable[[Values], tuple[Values, Values]],
    state: Mapping[str, Tensor],
    samples: Samples,
    generator: torch.Generator,
    compare_case: Callable[[Case, Values, Values, Nearby, Callable[[], Values]], None],
) -> None:
    """Twenty steps, each from PyTorch's state ("20 steps"), and all in a row on the program's own ("free")."""
    batches = []
    for _ in range(STEPS):
        inputs = definition.draw(samples, 8, generator)
        if LEARNING_RATE in inputs:
            inputs[LEARNING_RATE] = inputs[LEARNING_RATE].clamp(max=MOST_LEARNING_RATE)
        batches.append(inputs)

    def after(values: Values, reached: Values) -> Values:
        return {**values, **{name: reached[output] for name, output in definition.writes.items()}}

    def follow(start: Values, step: Step) -> Values:
        """Where the steps in a row lead, under the names of the outputs."""
        for inputs in batches:
            start = after(start, step({**start, **inputs}))
        return {output: start[name] for name, output in definition.writes.items()}

    here: Values = dict(state)
    for inputs in batches:
        here = {**here, **inputs}
        want = definition.oracle(here)
        compare_case(
            Case(f"{STEPS} steps", here),
            run(here),
            want,
            lambda: both(here),  # noqa: B023
            lambda: _exact(definition, here),  # noqa: B023
        )
        here = after(here, want)

    def nearby() -> tuple[Values, Values]:
        near = _nudged(definition, dict(state), generator)
        return follow(near, definition.oracle), follow(near, run)

    ends = {output: here[name] for name, output in definition.writes.items()}
    compare_case(Case(FREE, dict(state), FREE_TOLERANCE), follow(dict(state), run), ends, nearby, dict)


def _golden(
    definition: Definition,
    program: Program,
    run: Step,
    both: Callable[[Values], tuple[Values, Values]],
    state: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
    samples: Samples,
    seed: int,
) -> dict[str, Array]:
    """One batch from the bundle's weights, which are not stored again; a scalar in place of a state tensor fills it.

    Other machines round otherwise, so of some batches the first is taken where rounding decides nothing, or else the
    one where it decides least. Raises ParityError where the program meets the tolerance on none.
    """
    found: list[tuple[float, dict[str, Array]]] = []
    errors: dict[str, float] = {}
    for attempt in range(GOLDEN_TRIES):
        inputs = definition.draw(samples, GOLDEN_BATCH, torch.Generator().manual_seed(seed + 1 + attempt))
        values = {**state, **inputs}
        want = {k: v for k, v in definition.oracle(values).items() if not k.startswith("slack.")}
        inputs |= {name: torch.tensor(value) for name, value in definition.typical.items()}
        golden = {f"in.{k}": v for k, v in _arrays(inputs).items()} | {f"out.{k}": v for k, v in _arrays(want).items()}
        start = golden_values(_arrays(initial), golden)
        errors = compare(program, start, _arrays(run(_tensors(start))), _arrays(want))
        if not max(errors.values(), default=0.0) <= TOLERANCE:
            continue
        moved = compare(program, start, _arrays(both(values)[0]), _arrays(want))
        found.append((max(moved.values(), default=0.0), golden))
        if found[-1][0] <= TOLERANCE:
            break
    if not found:
        require(errors, TOLERANCE, program=definition.name, check="golden")
    return min(found, key=lambda entry: entry[0])[1]


def _nudged(definition: Definition, values: Values, generator: torch.Generator) -> Values:
    """Every float moved by a rounding-sized random part: features by a part of the largest, state of itself."""
    exact = {entry.name for entry in definition.inputs if entry.source == "setting"} | {PRESENT}
    near = dict(values)
    for name, value in values.items():
        if value.is_floating_point() and name not in exact and value.numel():
            scale = value.abs().amax().clamp(min=1.0) if name == FEATURES else value
            near[name] = value + ROUNDING * torch.randn(value.shape, generator=generator) * scale
    return near


def _exact(definition: Definition, values: Values) -> Values:
    """PyTorch's answer in float64; nothing where the model cannot be run so."""
    try:
        return definition.oracle({name: v.double() if v.is_floating_point() else v for name, v in values.items()})
    except RuntimeError:
        return {}


def _distance(a: Tensor, b: Tensor) -> float:
    """What rounding may change: the norm of a - b, with the margin. 0 where it is not a number."""
    difference = torch.linalg.vector_norm((a - b).double()) if a.is_floating_point() else torch.zeros(())
    return ROUNDING_MARGIN * float(difference.nan_to_num(0.0, 0.0, 0.0))


def _shortest(definition: Definition, state: Mapping[str, Tensor], samples: Samples) -> int:
    """1, or 2 where PyTorch itself refuses one example (BatchNorm while training has no variance of one)."""
    one = definition.draw(samples, 1, torch.Generator().manual_seed(0))
    try:
        definition.oracle({**state, **one})
    except ValueError:
        return 2
    return 1


def _typical(definition: Definition, state: Mapping[str, Tensor]) -> Values:
    """State tensors that a proof does not take as they are at the start, filled as the definition says."""
    return {name: torch.full_like(state[name], value) for name, value in definition.typical.items()}


def _counts(name: str, value: Tensor) -> bool:
    """Whether this is a counter of steps, which some steps have moved."""
    return name.startswith(STATE) and value.dtype == torch.int64


def _moved(value: Tensor, generator: torch.Generator) -> Tensor:
    """A state a little away from the given one, so that zeros and ones in it hide nothing."""
    if not value.is_floating_point():
        return value
    # Non-negative stays non-negative: running variances.
    return value + 0.1 * torch.rand(value.shape, generator=generator)


def _undecided(got: Mapping[str, Array], want: Values) -> dict[str, Array]:
    """`got`, with outputs that differ by no more than their slack taken as equal."""
    result = dict(got)
    for name, wanted in want.items():
        slack = want.get(f"slack.{name}")
        if slack is not None and np.abs(got[name] - wanted.numpy()).max() <= float(slack):
            result[name] = wanted.numpy()
        if name.startswith("slack."):
            result[name] = wanted.numpy()
    return result


def _tensors(values: Mapping[str, Array]) -> Values:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}


def _arrays(values: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: value.detach().numpy() for name, value in values.items()}
