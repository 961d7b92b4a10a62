"""The proof, fail closed: the finished file, in the runtime it is for, against PyTorch autograd and torch.optim.

The oracle is the real module with `backward()` and PyTorch's own optimizer, not the function that was lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from edgefl.bundle import DataContract, Parity, Program
from edgefl.errors import LoweringError
from edgefl.golden import Runner, compare, require
from edgefl.tensors import Array
from edgefl_exporter.programs.program import Definition

TOLERANCE = 1e-4
# Twenty steps without being put back on PyTorch's path: rounding is fed back through the net each step and grows.
# Measured: at most 5e-6 on the zoo; far more where a ReLU or a maximum flips on the way, which is no mistake.
FREE_TOLERANCE = 1e-2
# Saturated values: onnxruntime's exp, tanh and sigmoid are good to about 1e-7 of 1, which is 1e-3 of sigmoid(-10).
STRESS_TOLERANCE = 2e-3
STEPS = 20
# Where rounding decides (a ReLU at exactly 0, a BatchNorm of constants, a saturated softmax) no float32 program can
# be held to PyTorch's answer. So PyTorch is asked again with everything moved by this part of itself: what that
# changes, times a margin, counts as no more than the tolerance.
ROUNDING = 1e-6
ROUNDING_MARGIN = 10.0
# When that move changes a whole tensor by more than SINGULAR, PyTorch's own answer is noise. Of these checks it then
# says nothing (and the manifest lists no figure); any other check fails.
SINGULAR = 0.1
FREE = "20 steps, free"
MAY_BE_SINGULAR = ("zero inputs", "zero gradients", "extreme inputs", FREE)
GOLDEN_BATCH = 6

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One comparison: a name for messages, and the program's inputs and state."""

    check: str
    values: Values
    tolerance: float = TOLERANCE


def prove(
    definition: Definition,
    program: Program,
    data: bytes,
    state: Mapping[str, Tensor],
    contract: DataContract,
    seed: int,
) -> tuple[Parity, dict[str, Array]]:
    """The proof's figures and the program's golden tensors. Raises ParityError with the first check that fails."""
    runner = Runner(data)
    generator = torch.Generator().manual_seed(seed)
    listed: dict[str, list[float]] = {}

    def compare_case(case: Case, got: Mapping[str, Array], want: Values, nearby: Callable[[], Values]) -> None:
        def errors(floors: Mapping[str, float]) -> dict[str, float]:
            found = compare(program, _arrays(case.values), _undecided(got, want), _arrays(want), floors)
            return {name: error for name, error in found.items() if not name.startswith("slack.")}

        found = errors({})
        listed.setdefault(case.check, []).append(max(found.values()))
        if not max(found.values()) <= case.tolerance:
            other = nearby()
            shaken = compare(program, _arrays(case.values), _arrays(other), _arrays({n: want[n] for n in found}))
            if max(shaken.values()) <= SINGULAR:
                found = errors({name: _distance(other[name], want[name]) / case.tolerance for name in found})
            elif case.check in MAY_BE_SINGULAR:
                return
        require(found, case.tolerance, program=definition.name, check=case.check)

    for case in _cases(definition, state, contract, generator):
        want = definition.oracle(case.values)
        if case.check == "batches" and not all(bool(v.isfinite().all()) for v in want.values()):
            raise LoweringError("the model gives values that are not finite on ordinary random inputs")
        got = runner.run(_arrays(case.values))
        compare_case(case, got, want, lambda: definition.oracle(_nudged(definition, case.values, generator)))  # noqa: B023
    if definition.writes:
        _trajectory(definition, runner, state, contract, generator, compare_case)
    # Only checks that met the plain tolerance are listed: over it (and not refused), rounding decided.
    checks = {check: max(errors) for check, errors in listed.items() if max(errors) <= TOLERANCE}
    golden = _golden(definition, state, contract, seed)
    wanted = {name.removeprefix("out."): value for name, value in golden.items() if name.startswith("out.")}
    start = _arrays(state) | {n.removeprefix("in."): v for n, v in golden.items() if n.startswith("in.")}
    require(compare(program, start, runner.run(start), wanted), TOLERANCE, program=definition.name, check="golden")
    return Parity(f"onnxruntime {onnxruntime.__version__}", TOLERANCE, checks), golden


def _cases(
    definition: Definition, state: Mapping[str, Tensor], contract: DataContract, generator: torch.Generator
) -> Iterator[Case]:
    """Random batches, a short one, exactly-zero gradients, extreme inputs; from the initial and from moved weights."""
    moved = {k: _moved(v, generator) for k, v in state.items()}
    for start in (state, moved):
        for count in (8, 5, 32):
            inputs = _batch(definition, contract, count, generator)
            if "learning_rate" in inputs:
                inputs["learning_rate"] = torch.tensor(1.0)  # so that a step is no smaller than its gradient
            yield Case("batches", {**start, **inputs})
    yield Case(
        "short batch", {**state, **_batch(definition, contract, _shortest(definition, state, contract), generator)}
    )
    zeros = _batch(definition, contract, 8, generator)
    zeros["x"] = torch.zeros_like(zeros["x"])
    yield Case("zero inputs", {**state, **zeros}, STRESS_TOLERANCE)
    # Every bias far below zero: ReLUs die, their gradients are exactly zero.
    dead = {k: v - 10.0 if v.dim() == 1 and k.endswith("bias") else v for k, v in state.items()}
    yield Case("zero gradients", {**dead, **_batch(definition, contract, 8, generator)}, STRESS_TOLERANCE)
    for size in (1e3, 1e-2):
        extreme = _batch(definition, contract, 8, generator)
        extreme["x"] = extreme["x"] * size if extreme["x"].is_floating_point() else extreme["x"]
        yield Case("extreme inputs", {**state, **extreme}, STRESS_TOLERANCE)


def _trajectory(
    definition: Definition,
    runner: Runner,
    state: Mapping[str, Tensor],
    contract: DataContract,
    generator: torch.Generator,
    compare_case: Callable[..., None],
) -> None:
    """Twenty steps, each from PyTorch's state ("20 steps"), and all in a row on the program's own ("free")."""
    batches = []
    for _ in range(STEPS):
        batches.append(_batch(definition, contract, 8, generator) | {"learning_rate": torch.tensor(0.05)})

    def follow(start: Values) -> Values:
        for inputs in batches:
            after = definition.oracle({**start, **inputs})
            start = start | {name: after[output] for name, output in definition.writes.items()}
        return start

    torch_state, own_state = dict(state), dict(state)
    for inputs in batches:
        here = {**torch_state, **inputs}
        want = definition.oracle(here)
        compare_case(
            Case(f"{STEPS} steps", here),
            runner.run(_arrays(here)),
            want,
            lambda here=here: definition.oracle(_nudged(definition, here, generator)),
        )
        reached = runner.run(_arrays({**own_state, **inputs}))
        for name, output in definition.writes.items():
            torch_state[name] = want[output]
            own_state[name] = torch.from_numpy(reached[output].copy())

    def ends(reached: Values) -> Values:
        return {output: reached[name] for name, output in definition.writes.items()}

    compare_case(
        Case(FREE, dict(state), FREE_TOLERANCE),
        _arrays(ends(own_state)),
        ends(torch_state),
        lambda: ends(follow(_nudged(definition, dict(state), generator))),
    )


def _golden(definition: Definition, state: Mapping[str, Tensor], contract: DataContract, seed: int) -> dict[str, Array]:
    """One batch from the initial state. State is not stored again: it is the bundle's weights."""
    inputs = _batch(definition, contract, GOLDEN_BATCH, torch.Generator().manual_seed(seed + 1))
    want = definition.oracle({**state, **inputs})
    outputs = {k: v for k, v in want.items() if not k.startswith("slack.")}
    return {f"in.{k}": v for k, v in _arrays(inputs).items()} | {f"out.{k}": v for k, v in _arrays(outputs).items()}


def _batch(definition: Definition, contract: DataContract, count: int, generator: torch.Generator) -> Values:
    """Random inputs of a program for `count` examples; settings have their defaults."""
    values: Values = {}
    for entry in definition.inputs:
        if entry.source == "setting":
            values[entry.name] = torch.tensor(entry.default, dtype=torch.float32)
        elif entry.source == "labels":
            values[entry.name] = torch.randint(0, contract.classes or 1, (count,), generator=generator)
        elif contract.dtype == "float32":
            values[entry.name] = torch.randn(count, *contract.features, generator=generator)
        else:
            values[entry.name] = torch.randint(0, 2, (count, *contract.features), generator=generator).to(
                getattr(torch, contract.dtype)
            )
    return values


def _nudged(definition: Definition, values: Values, generator: torch.Generator) -> Values:
    """Every float moved by a rounding-sized random part: features by a part of the largest, state of itself."""
    settings = {entry.name for entry in definition.inputs if entry.source == "setting"}
    near = dict(values)
    for name, value in values.items():
        if value.is_floating_point() and name not in settings and value.numel():
            scale = value.abs().amax().clamp(min=1.0) if name == "x" else value
            near[name] = value + ROUNDING * torch.randn(value.shape, generator=generator) * scale
    return near


def _distance(a: Tensor, b: Tensor) -> float:
    """What rounding may change: the norm of a - b, with the margin. 0 where it is not a number."""
    difference = torch.linalg.vector_norm((a - b).double()) if a.is_floating_point() else torch.zeros(())
    return ROUNDING_MARGIN * float(difference.nan_to_num(0.0, 0.0, 0.0))


def _shortest(definition: Definition, state: Mapping[str, Tensor], contract: DataContract) -> int:
    """1, or 2 where PyTorch itself refuses one example (BatchNorm while training has no variance of one)."""
    one = _batch(definition, contract, 1, torch.Generator().manual_seed(0))
    try:
        definition.oracle({**state, **one})
    except ValueError:
        return 2
    return 1


def _moved(value: Tensor, generator: torch.Generator) -> Tensor:
    """A state a little away from the initial one, so that zeros and ones in it hide nothing."""
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


def _arrays(values: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: value.detach().numpy() for name, value in values.items()}
