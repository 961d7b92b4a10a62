"""The verdict of the proof: what is right, what rounding excuses, and how far.

Every answer of PyTorch's is 1, so an error is the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from toy_proof import STATE, Asked, definition, regression, samples, sides

from edgefl.errors import ParityError
from edgefl.manifest import File, Output, Parity, Program
from edgefl_exporter.proof.cases import BATCHES, FREE, Case
from edgefl_exporter.proof.judge import MOVES, Question, judge, question
from edgefl_exporter.proof.sides import Values

NOTHING = File("", "0" * 64, 0)
PROGRAM = Program(
    file=NOTHING,
    inputs=(),
    outputs=tuple(Output(name, "float32", (), "mean") for name in ("loss", "gradient.w", "dream_gradient")),
    reads=("w",),
    writes={"w": "next.w"},
    parity=Parity("by hand", 1e-4, {}),
    golden=NOTHING,
)
NAMES = ("loss", "gradient.w", "dream_gradient", "next.w")
JUMPY = NAMES[1:]  # where a ReLU flips these jump; a value does not


def answer(**off: float) -> Values:
    """1 for each output, off by so much."""
    named = {name.replace("_w", ".w"): value for name, value in off.items()}
    return {name: torch.tensor([1.0 + named.get(name, 0.0)], dtype=torch.float64) for name in NAMES}


def asked(
    got: Values,
    *,
    pytorch: Iterable[Values] = (),
    file: Iterable[Values] = (),
    exact: Values | None = None,
    check: str = BATCHES,
    want: Values | None = None,
) -> dict[str, float]:
    """The verdict. `pytorch` and `file`: what each answers to the moves, one after the other; then as before."""
    theirs, ours = iter(pytorch), iter(file)

    def nearby() -> tuple[Values, Values]:
        return next(theirs, answer()), next(ours, got)

    case = Case(check, {"w": torch.zeros(1)})
    return judge("train", PROGRAM, Question(case, want or answer(), got, nearby, lambda: exact or {}))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ParityError) as caught:
        call()
    return caught.value.message


def test_what_is_right_within_the_tolerance_is_met() -> None:
    met = asked(answer(loss=1e-4 - 1e-9, next_w=5e-5))
    assert met.keys() == set(NAMES)
    assert (
        met["loss"] == pytest.approx(1e-4, rel=1e-3) and met["next.w"] == pytest.approx(5e-5) and met["gradient.w"] == 0
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_refused_by_name(name: str) -> None:
    wrong = answer(**{name.replace(".w", "_w"): 2e-4})
    assert refused(lambda: asked(wrong)) == (
        f"program 'train', check 'batches': {name!r} differs from PyTorch by 0.0002 (relative), over the tolerance of "
        "0.0001"
    )


def test_the_worst_of_what_is_left_is_said() -> None:
    """The gradient is excused, so the loss is said although it is nearer."""
    wrong = answer(loss=2e-4, gradient_w=1e-3)
    assert "'gradient.w' differs" in refused(lambda: asked(wrong))
    assert "'loss' differs" in refused(lambda: asked(wrong, pytorch=[answer(gradient_w=1.1e-4)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_answer(value: float) -> None:
    assert "'loss' differs from PyTorch by inf" in refused(lambda: asked(answer(loss=value)))


def test_each_check_has_its_own_tolerance() -> None:
    assert asked(answer(loss=9e-3), check=FREE)["loss"] == pytest.approx(9e-3)
    assert asked(answer(loss=1.9e-3), check="zero inputs")["loss"] == pytest.approx(1.9e-3)
    assert "over the tolerance of 0.01" in refused(lambda: asked(answer(loss=1.1e-2), check=FREE))


# --- what excuses -------------------------------------------------------------------------------------------------


def test_ten_times_what_rounding_changes_in_pytorch_is_excused_and_is_no_figure() -> None:
    """2e-5 by a move of all inputs: an error of 1.9e-4 is excused, one of 2.1e-4 is not."""
    moved = [answer(loss=2e-5)]
    assert asked(answer(loss=1.9e-4), pytorch=moved).keys() == set(JUMPY)
    refused(lambda: asked(answer(loss=2.1e-4), pytorch=moved))
    refused(lambda: asked(answer(loss=1.9e-4), pytorch=[answer(gradient_w=2e-5)]))  # of another output


def test_pytorch_in_float64_excuses_as_well() -> None:
    assert "loss" not in asked(answer(loss=1.9e-4), exact=answer(loss=-2e-5))
    refused(lambda: asked(answer(loss=2.1e-4), exact=answer(loss=-2e-5)))
    only = {"gradient.w": torch.tensor([1.0], dtype=torch.float64)}
    refused(lambda: asked(answer(loss=1.9e-4), exact=only))


def test_the_largest_change_of_eight_moves_counts() -> None:
    """Also where it is the first, and the others change nothing."""
    for before in range(MOVES):
        moves = [answer()] * before + [answer(loss=2e-5)]
        assert "loss" not in asked(answer(loss=1.9e-4), pytorch=moves)
    assert MOVES == 8
    refused(lambda: asked(answer(loss=1.9e-4), pytorch=[answer()] * 8 + [answer(loss=2e-5)]))
    first_and_last = [answer(loss=2e-5), *[answer(gradient_w=1e-6)] * 6, answer(gradient_w=2e-5)]
    assert asked(answer(loss=1.9e-4, gradient_w=1.9e-4), pytorch=first_and_last).keys() == {"dream_gradient", "next.w"}


def test_where_pytorchs_own_answer_is_noise_it_proves_nothing() -> None:
    assert "loss" not in asked(answer(loss=50.0), pytorch=[answer(loss=0.11)])
    refused(lambda: asked(answer(loss=50.0), pytorch=[answer(loss=0.0999)]))


@pytest.mark.parametrize("name", JUMPY)
def test_an_unsteady_file_is_excused_where_a_kink_may_jump(name: str) -> None:
    """Its own answer changes by 2e-5 when it is moved."""
    key = name.replace(".w", "_w")
    wrong, moved = answer(**{key: 1.9e-4}), answer(**{key: 1.9e-4 + 2e-5})
    assert name not in asked(wrong, file=[moved])
    assert name not in asked(wrong, file=[moved, *[wrong] * 3])
    refused(lambda: asked(answer(**{key: 2.1e-4}), file=[answer(**{key: 2.1e-4 + 2e-5})]))
    assert name not in asked(answer(**{key: 0.099}), file=[answer(**{key: 0.2})])
    refused(lambda: asked(answer(**{key: 0.11}), file=[answer(**{key: 5.0})]))  # noise is no excuse for noise


def test_an_unsteady_file_is_no_excuse_for_a_value() -> None:
    refused(lambda: asked(answer(loss=1.9e-4), file=[answer(loss=1e-3)]))


def scaled(**values: float) -> Values:
    """Some other numbers, whose quotients are exact."""
    return answer() | {name.replace("_w", ".w"): torch.tensor([value]) for name, value in values.items()}


def test_every_bound_is_within_it() -> None:
    """1 of 10,000 is the tolerance, 10 of 100 ten times 1 of 100, and 1 of 10 still no noise."""
    assert asked(scaled(loss=10_001.0), want=scaled(loss=10_000.0))["loss"] == 1e-4
    hundred = scaled(loss=100.0)
    assert "loss" not in asked(scaled(loss=110.0), want=hundred, pytorch=[scaled(loss=101.0), *[hundred] * 7])
    ten = scaled(loss=10.0)
    refused(lambda: asked(scaled(loss=50.0), want=ten, pytorch=[scaled(loss=11.0), *[ten] * 7]))
    steady, got = scaled(gradient_w=100.0), scaled(gradient_w=110.0)
    assert "gradient.w" not in asked(got, want=steady, pytorch=[steady] * 8, file=[scaled(gradient_w=121.0)])


def test_a_question_is_what_both_sides_answer() -> None:
    """The file's answer to the case, both to a moved one, PyTorch's in float64."""
    pytorch, file = Asked(), Asked(lambda values: regression(values) | {"loss": torch.tensor(3.0)})
    both = sides(definition(pytorch), file)
    case = Case(BATCHES, {**STATE, **both.definition.draw(samples(), 4, torch.Generator().manual_seed(0))})
    want = {"loss": torch.tensor(2.0)}
    found = question(both, case, want)
    assert found.case is case and found.want is want and found.got["loss"] == 3
    assert not pytorch.values and torch.equal(file.values[0]["x"], case.values["x"])
    theirs, ours = found.nearby()
    assert ours["loss"] == 3 and torch.equal(theirs["next.w"], ours["next.w"])
    assert not torch.equal(pytorch.values[0]["x"], case.values["x"])
    assert found.exact()["loss"].dtype == torch.float64
    assert torch.equal(pytorch.values[1]["x"], case.values["x"].double())


# --- slack --------------------------------------------------------------------------------------------------------


def test_what_differs_by_no_more_than_its_slack_is_equal() -> None:
    """Whether an example is solved is a yes or no that rounding may turn: PyTorch says by how much a sum may differ."""
    want = answer() | {"slack.loss": torch.tensor(2.0)}
    got = answer(loss=2.0) | {"slack.loss": torch.tensor(0.0)}
    assert asked(got, want=want)["loss"] == 0
    assert "slack.loss" not in asked(got, want=want)
    assert "'loss'" in refused(lambda: asked(answer(loss=2.5), want=want))
    assert "'gradient.w'" in refused(lambda: asked(answer(gradient_w=1.0), want=want))
