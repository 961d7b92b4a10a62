"""The proof, fail closed: the finished file, in the runtime it is for, against PyTorch autograd and torch.optim."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgefl.errors import LoweringError, ParityError
from edgefl.manifest import Parity, Program
from edgefl.replay import Runs, relative_error
from edgefl.tensors import Array
from edgefl_exporter.programs.program import Definition
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.proof.cases import BATCHES, LOOSER, TOLERANCE, Case, cases, typical
from edgefl_exporter.proof.golden import golden
from edgefl_exporter.proof.judge import ROUNDING_MARGIN, judge, question
from edgefl_exporter.proof.sides import ROUNDING, Sides, Values, finite, one_thread
from edgefl_exporter.proof.trajectory import trajectory

# Each output must meet the plain tolerance on some random batch (BATCHES), whatever explains its errors elsewhere.
# Where one has not, there may be so many more.
MORE_BATCHES = 8
SMALL_BATCH = 4  # of those: fewer examples come near a kink


@one_thread()
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
    sides = Sides(definition, program, runner, torch.Generator().manual_seed(seed))
    figures: dict[str, float] = {}
    never = {entry.name for entry in definition.outputs} | set(definition.writes.values())
    state, initial = {**state, **typical(definition, state)}, state

    def ask(case: Case) -> None:
        want = sides.torch(case.values)
        if case.check == BATCHES:
            if not finite(want):
                raise LoweringError("the model gives values that are not finite on ordinary random inputs")
            _require_equal(want, sides.torch(case.values))
        met = judge(definition.name, program, question(sides, case, want))
        if case.check == BATCHES:
            never.difference_update(met)
        if met:
            figures[case.check] = max(figures.get(case.check, 0.0), *met.values())

    for case in cases(definition, state, initial, samples, sides.generator):
        ask(case)
    for _ in range(MORE_BATCHES):
        if never:
            ask(Case(BATCHES, {**state, **definition.draw(samples, SMALL_BATCH, sides.generator)}))
    if never:
        raise ParityError(
            f"program {definition.name!r}: {min(never)!r} equals PyTorch's on no random batch",
            hint="does a layer's output not depend on its input? Then PyTorch's own answer is rounding noise",
        )
    if definition.writes:
        figures |= trajectory(sides, state, samples)
    batch = golden(sides, state, initial, samples, seed)
    looser = {check: tolerance for check, tolerance in LOOSER.items() if check in figures}
    return Parity(runner.runtime, TOLERANCE, figures, looser), batch


def _require_equal(first: Values, second: Values) -> None:
    """Raises LoweringError where PyTorch gives two answers to one question."""
    for name, value in first.items():
        if relative_error(second[name].numpy(), value.numpy()) > ROUNDING * ROUNDING_MARGIN:
            raise LoweringError(
                f"the model gives {name!r} once more from the same inputs, and differently",
                hint="no random or numpy in forward: torch.rand, torch.randn and dropout become part of the program",
            )
