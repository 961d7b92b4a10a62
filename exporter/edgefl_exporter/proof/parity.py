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
from edgefl.replay import Runs, compare, golden_values, relative_error, require
from edgefl.tensors import Array
from edgefl_exporter.models.randomness import SEED
from edgefl_exporter.programs.optimizers import STATE
from edgefl_exporter.programs.program import DREAM, FEATURES, GRADIENT, PRESENT, Definition
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.programs.update import CLIP_NORM, COUNT, LEARNING_RATE, MICRO_BATCHES, PROXIMAL

TOLERANCE = 1e-4
# Twenty steps without being put back on PyTorch's path: rounding is fed back through the net each step and grows.
# Measured: at most 5e-6 on the zoo; far more where a ReLU or a maximum flips on the way, which is no mistake.
FREE_TOLERANCE = 1e-2
# Saturated values: onnxruntime's exp, tanh and sigmoid are good to about 1e-7 of 1, which is 1e-3 of sigmoid(-10).
STRESS_TOLERANCE = 2e-3
STEPS = 20
# Of those steps, the first with which twenty of PyTorch's do not diverge: values that are not finite prove nothing.
STEP_RATES = (0.05, 5e-3, 5e-4, 5e-5)
# By how much the state is moved for a second proof: the first with which PyTorch's answer is finite. A deep net whose
# weights all grow by 0.05 multiplies what it sees by 7 in each layer of 16 channels.
STATE_MOVES = (0.1, 0.01, 0.001)
# Where rounding decides (a ReLU at exactly 0, a BatchNorm of constants, a saturated softmax) no float32 program can
# be held to PyTorch's answer. So PyTorch and the program are asked again with everything moved by this part of itself,
# and PyTorch in float64 (its float32 bias gradient of a large convolution is off by 3e-4: 131,072 terms in a row). An
# error of no more than what that changes, times a margin, is no mistake of that case.
ROUNDING = 1e-6
ROUNDING_MARGIN = 10.0
ZERO_ROUNDING = 1e-9  # how far a state tensor of zeros alone is moved
# One such move may flip no ReLU where another flips one (measured on VGG-11: a gradient changes by 2e-5 after one move,
# by 2e-2 after the next), so the largest change of several counts.
MOVES = 8
# When rounding changes PyTorch's own tensor by more than SINGULAR, PyTorch's answer is noise and proves nothing of that
# tensor. The program's own answer excuses it no further than that: a noisy program is wrong. And no excuse is enough
# alone: each output must meet the plain tolerance on some random batch (BATCHES), of which there may be MORE_BATCHES.
SINGULAR = 0.1
MORE_BATCHES = 8
SMALL_BATCH = 4  # of those: fewer examples come near a kink
BATCHES = "batches"
FREE = "20 steps, free"
LOOSER = dict.fromkeys(("zero inputs", "zero gradients", "extreme inputs"), STRESS_TOLERANCE) | {FREE: FREE_TOLERANCE}
GOLDEN_BATCH = 6
GOLDEN_TRIES = 8

Values = dict[str, Tensor]
Step = Callable[[Values], Values]
# What PyTorch and the program answer when everything is moved by a rounding-sized part of itself.
Nearby = Callable[[], tuple[Values, Values]]
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


@dataclass(frozen=True)
class Question:
    """A case with PyTorch's answer and the program's, and how to ask PyTorch again: moved a little, in float64."""

    case: Case
    want: Values
    got: Values
    nearby: Nearby
    exact: Callable[[], Values]


def prove(
    definition: Definition,
    program: Program,
    runner: Runs,
    state: Mapping[str, Tensor],
    samples: Samples,
    seed: int,
) -> tuple[Parity, dict[str, Array]]:
    """The proof's figures and the program's golden tensors. Raises ParityError with the first check that fails.

    A check's figure is the worst error among what met its tolerance plainly; one where nothing did has none. `runner`
    runs the finished file.
    """
    generator = torch.Generator().manual_seed(seed)
    figures: dict[str, float] = {}
    never = {entry.name for entry in definition.outputs} | set(definition.writes.values())
    state, initial = {**state, **_typical(definition, state)}, state

    def run(values: Values) -> Values:
        return {name: torch.from_numpy(array.copy()) for name, array in runner.run(_arrays(values)).items()}

    def both(values: Values) -> tuple[Values, Values]:
        near = _nudged(definition, values, generator)
        return definition.oracle(near), run(near)

    def ask(case: Case) -> None:
        want = definition.oracle(case.values)
        if case.check == BATCHES:
            if not _finite(want):
                raise LoweringError("the model gives values that are not finite on ordinary random inputs")
            _require_equal(want, definition.oracle(case.values))
        met = judge(
            definition.name,
            program,
            Question(case, want, run(case.values), lambda: both(case.values), lambda: _exact(definition, case.values)),
        )
        if case.check == BATCHES:
            never.difference_update(met)
        if met:
            figures[case.check] = max(figures.get(case.check, 0.0), *met.values())

    for case in _cases(definition, state, initial, samples, generator):
        ask(case)
    for _ in range(MORE_BATCHES if never else 0):
        if never:
            ask(Case(BATCHES, {**state, **definition.draw(samples, SMALL_BATCH, generator)}))
    if never:
        raise ParityError(
            f"program {definition.name!r}: {min(never)!r} equals PyTorch's on no random batch",
            hint="does a layer's output not depend on its input? Then PyTorch's own answer is rounding noise",
        )
    if definition.writes:
        figures |= _trajectory(definition, program, run, both, state, samples, generator)
    golden = _golden(definition, program, run, both, state, initial, samples, seed)
    looser = {check: tolerance for check, tolerance in LOOSER.items() if check in figures}
    return Parity(runner.runtime, TOLERANCE, figures, looser), golden


def judge(name: str, program: Program, question: Question) -> dict[str, float]:
    """The errors of the outputs that meet the case's tolerance plainly.

    Raises ParityError for one that does not, unless rounding explains it: see ROUNDING and SINGULAR.
    """
    case, want, got = question.case, question.want, question.got
    wanted = {name: array for name, array in _arrays(want).items() if not name.startswith("slack.")}

    def errors(answer: Values, to: Mapping[str, Array] = wanted) -> dict[str, float]:
        arrays = _arrays(answer)
        return compare(program, _arrays(case.values), arrays, {n: to[n] for n in to if n in arrays})

    found = compare(program, _arrays(case.values), _undecided(_arrays(got), want), wanted)
    met = {name: error for name, error in found.items() if error <= case.tolerance}
    left = {name: error for name, error in found.items() if name not in met}
    if not left:
        return met
    theirs = errors(question.exact())
    ours: dict[str, float] = {}
    # Where a ReLU or a maximum flips, a gradient jumps and a value does not: only of gradients, and of what they
    # change, may the program's own answer be this unsteady.
    jumps = {*program.writes.values(), *(o.name for o in program.outputs if o.name.startswith((GRADIENT, *DREAM)))}
    for _ in range(MOVES):
        other, own = question.nearby()
        theirs = _worse(theirs, errors(other))
        ours = _worse(ours, errors(own, {name: array for name, array in _arrays(got).items() if name in wanted}))
        left = {
            name: error
            for name, error in left.items()
            if theirs[name] <= SINGULAR
            and not error <= ROUNDING_MARGIN * theirs[name]
            and not (name in jumps and error <= min(ROUNDING_MARGIN * ours[name], SINGULAR))
        }
        if not left:
            return met
    require(left, case.tolerance, program=name, check=case.check)
    return met


def _worse(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: max(a.get(name, 0.0), b.get(name, 0.0)) for name in {*a, *b}}


def _finite(values: Values) -> bool:
    return all(bool(value.isfinite().all()) for value in values.values())


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


def _trajectory(
    definition: Definition,
    program: Program,
    run: Step,
    both: Callable[[Values], tuple[Values, Values]],
    state: Mapping[str, Tensor],
    samples: Samples,
    generator: torch.Generator,
) -> dict[str, float]:
    """Twenty steps, each from PyTorch's state ("20 steps"), and all in a row on the program's own ("free").

    The figures of both; none where PyTorch diverges at every rate of STEP_RATES.
    """
    drawn = [definition.draw(samples, 8, generator) for _ in range(STEPS)]
    batches: list[Values] = []

    def after(values: Values, reached: Values) -> Values:
        return {**values, **{name: reached[output] for name, output in definition.writes.items()}}

    def follow(start: Values, step: Step) -> Values:
        """Where the steps in a row lead, under the names of the outputs."""
        for inputs in batches:
            start = after(start, step({**start, **inputs}))
        return {output: start[name] for name, output in definition.writes.items()}

    def nearby() -> tuple[Values, Values]:
        near = _nudged(definition, dict(state), generator)
        return follow(near, definition.oracle), follow(near, run)

    for rate in STEP_RATES:
        batches = [_slower(inputs, rate) for inputs in drawn]
        met: list[dict[str, float]] = []
        here: Values = dict(state)
        for inputs in batches:
            here = {**here, **inputs}
            want = definition.oracle(here)
            if not _finite(want):
                break
            question = Question(
                Case(f"{STEPS} steps", here),
                want,
                run(here),
                lambda: both(here),  # noqa: B023
                lambda: _exact(definition, here),  # noqa: B023
            )
            met.append(judge(definition.name, program, question))
            here = after(here, want)
        else:
            ends = {output: here[name] for name, output in definition.writes.items()}
            free = Case(FREE, dict(state))
            last = judge(definition.name, program, Question(free, ends, follow(dict(state), run), nearby, dict))
            errors = {f"{STEPS} steps": [error for one in met for error in one.values()], FREE: [*last.values()]}
            return {check: max(found) for check, found in errors.items() if found}
    return {}


def _slower(inputs: Values, rate: float) -> Values:
    """The inputs, with a learning rate of no more than `rate`."""
    if LEARNING_RATE not in inputs:
        return inputs
    return {**inputs, LEARNING_RATE: inputs[LEARNING_RATE].clamp(max=rate)}


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
    """Every float moved by a rounding-sized random part: features by a part of the largest, state of itself.

    State that is zero as a whole (a head, a bias) moves too, an optimizer's excepted: before the first step it is zero
    exactly. Single zeros (of a mask) stay zero, what is nowhere negative (a variance) stays so.
    """
    exact = {entry.name for entry in definition.inputs if entry.source == "setting"} | {PRESENT}
    near = dict(values)
    for name, value in values.items():
        if value.is_floating_point() and name not in exact and value.numel():
            scale = value.abs().amax().clamp(min=1.0) if name == FEATURES else value
            part = ROUNDING * torch.randn(value.shape, generator=generator) * scale
            if not name.startswith(STATE) and not bool(value.any()):
                part = ZERO_ROUNDING * torch.randn(value.shape, generator=generator)
            moved = torch.where(value.isfinite(), value + part, value)
            near[name] = moved.abs() if name != FEATURES and bool((value >= 0).all()) else moved
    return near


def _exact(definition: Definition, values: Values) -> Values:
    """PyTorch's answer in float64; nothing where the model cannot be run so."""
    try:
        return definition.oracle({n: v.double() if v.is_floating_point() else v for n, v in values.items()})
    except Exception:  # the model's own code: an assert on a dtype, for one
        return {}


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
        if _finite(definition.oracle({**found, **inputs})):
            break
    return found


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
