"""Whether the file's answer is PyTorch's, rounding allowed for where it decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgefl.manifest import Program
from edgefl.names import GRADIENT
from edgefl.replay import compare, require
from edgefl.tensors import Array
from edgefl_exporter.programs.program import DREAM
from edgefl_exporter.proof.cases import Case
from edgefl_exporter.proof.sides import Sides, Values, arrays

# Where rounding decides (a ReLU at exactly 0, a BatchNorm of constants, a saturated softmax) no float32 program can
# be held to PyTorch's answer. So PyTorch and the program are asked again with everything moved by `sides.ROUNDING`, and
# PyTorch in float64 (its float32 bias gradient of a large convolution is off by 3e-4: 131,072 terms in a row). An
# error of no more than what that changes, times a margin, is no mistake of that case.
ROUNDING_MARGIN = 10.0
# One such move may flip no ReLU where another flips one (measured on VGG-11: a gradient changes by 2e-5 after one move,
# by 2e-2 after the next), so the largest change of several counts.
MOVES = 8
# When rounding changes PyTorch's own tensor by more than this, PyTorch's answer is noise and proves nothing of that
# tensor. The program's own answer excuses it no further than that: a noisy program is wrong. And no excuse is enough
# alone: see `prove.MORE_BATCHES`.
SINGULAR = 0.1


@dataclass(frozen=True)
class Question:
    """A case with PyTorch's answer and the program's, and how to ask again: both moved a little, PyTorch in float64."""

    case: Case
    want: Values
    got: Values
    nearby: Callable[[], tuple[Values, Values]]
    exact: Callable[[], Values]


def question(sides: Sides, case: Case, want: Values) -> Question:
    """The case as both sides answer it; PyTorch's answer is known."""
    return Question(
        case,
        want,
        sides.file(case.values),
        lambda: sides.nearby(case.values),
        lambda: sides.exact(case.values),
    )


def judge(name: str, program: Program, question: Question) -> dict[str, float]:
    """The errors of the outputs that meet the case's tolerance plainly.

    Raises ParityError for one that does not, unless rounding explains it: see ROUNDING and SINGULAR.
    """
    case, want, got = question.case, question.want, question.got
    wanted = {name: array for name, array in arrays(want).items() if not name.startswith("slack.")}

    def errors(answer: Values, to: Mapping[str, Array] = wanted) -> dict[str, float]:
        found = arrays(answer)
        return compare(program, arrays(case.values), found, {n: to[n] for n in to if n in found})

    found = compare(program, arrays(case.values), _undecided(arrays(got), want), wanted)
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
        ours = _worse(ours, errors(own, {name: array for name, array in arrays(got).items() if name in wanted}))
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


def _undecided(got: Mapping[str, Array], want: Values) -> dict[str, Array]:
    """`got`, with outputs that differ by no more than their slack taken as equal."""
    result = dict(got)
    for name, wanted in want.items():
        slack = want.get(f"slack.{name}")
        if slack is not None and np.abs(got[name] - wanted.numpy()).max() <= float(slack):
            result[name] = wanted.numpy()
    return result
