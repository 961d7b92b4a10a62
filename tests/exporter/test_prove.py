"""The proof as a whole: its figures, and what it refuses before and after a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from toy_proof import STATE, WRITES, Asked, PythonFile, definition, program, regression, samples

from edgefl.errors import LoweringError, ParityError
from edgefl.manifest import Parity
from edgefl_exporter.proof.prove import MORE_BATCHES, prove
from edgefl_exporter.proof.sides import Values

Answer = Callable[[Mapping[str, Tensor]], Values]


def proven(
    oracle: Answer = regression,
    file: Answer = regression,
    *,
    writes: Mapping[str, str] = WRITES,
    typical: Mapping[str, float] | None = None,
) -> Parity:
    made = definition(oracle, writes=writes, typical=typical)
    parity, golden = prove(made, program(writes), PythonFile(file), STATE, samples(), seed=3)
    assert len(golden["in.x"]) == 6
    return parity


def off(size: float, *, examples: int) -> Answer:
    """The right answers, but the loss is off by a part of itself for so many examples."""

    def answer(values: Mapping[str, Tensor]) -> Values:
        right = regression(values)
        return right | ({"loss": right["loss"] * (1 + size)} if len(values["x"]) == examples else {})

    return answer


def test_the_figures_of_a_right_file() -> None:
    found = proven(typical={"w": 0.25})
    checks = ("batches", "first step", "short batch", "zero inputs", "zero gradients", "extreme inputs")
    assert found.checks == dict.fromkeys((*checks, "20 steps", "20 steps, free"), 0.0)
    assert found.runtime == "by hand" and found.tolerance == 1e-4
    stress = dict.fromkeys(("zero inputs", "zero gradients", "extreme inputs"), 2e-3)
    assert found.looser == stress | {"20 steps, free": 1e-2}


def test_a_program_that_writes_nothing_walks_nowhere() -> None:
    assert not any("steps" in check for check in proven(writes={}).checks)
    assert proven(writes={}).looser.keys() == {"zero inputs", "zero gradients", "extreme inputs"}


def test_a_figure_is_the_worst_of_all_batches() -> None:
    """Batches of 8, 5 and 32: of five it is nearly wrong, of 32 a little."""
    few, many = off(8e-5, examples=5), off(2e-5, examples=32)
    found = proven(file=lambda values: (few if len(values["x"]) == 5 else many)(values), writes={})
    assert found.checks["batches"] == pytest.approx(8e-5, rel=0.02) and found.checks["short batch"] == 0


@pytest.mark.parametrize("examples", [8, 5, 32, 1])
def test_a_file_that_is_wrong_for_some_number_of_examples_is_refused(examples: int) -> None:
    with pytest.raises(ParityError, match="program 'train', check '.*': 'loss' differs from PyTorch"):
        proven(file=off(2e-4, examples=examples))


def test_a_seed_tries_the_same_batches_whatever_else_is_drawn() -> None:
    """Also those that are tried after the others, of a file that is right for four examples alone."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        pytorch, file = noisy({4, 6})
        found.append(Asked(file))
        proven(pytorch, found[-1], writes={})
    first, second = (one.values for one in found)
    assert len(first) == len(second) and any(len(values["x"]) == 4 for values in first)
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))


def test_the_state_it_is_proven_from_and_the_initial_one() -> None:
    asked = Asked()
    proven(asked, typical={"w": 0.25})
    first = [values["w"].tolist() for values in asked.values]
    assert [0.25, 0.25] in first and [1.0, -2.0] in first


# --- models that cannot be proven ---------------------------------------------------------------------------------


def test_a_model_that_is_not_finite_on_ordinary_inputs() -> None:
    def infinite(values: Mapping[str, Tensor]) -> Values:
        return regression(values) | {"loss": torch.tensor(float("inf"))}

    with pytest.raises(LoweringError) as caught:
        proven(infinite, infinite)
    assert caught.value.message == "the model gives values that are not finite on ordinary random inputs"


def test_a_model_that_is_not_finite_on_extreme_inputs_is_proven_so() -> None:
    def infinite(values: Mapping[str, Tensor]) -> Values:
        extreme = values["x"].abs().max() > 100
        return regression(values) | ({"loss": torch.tensor(float("inf"))} if extreme else {})

    assert proven(infinite, infinite).checks["extreme inputs"] == 0


@pytest.mark.parametrize(("part", "refused"), [(2e-5, True), (5e-6, False)])
def test_a_model_that_answers_twice_and_differently(part: float, refused: bool) -> None:
    """Ten times a rounding is what a sum in another order may change."""
    calls = []

    def random(values: Mapping[str, Tensor]) -> Values:
        calls.append(1)
        right = regression(values)
        return right | {"loss": right["loss"] * (1 + part * (len(calls) % 2))}

    if not refused:
        proven(random)
        return
    with pytest.raises(LoweringError) as caught:
        proven(random)
    assert caught.value.message == "the model gives 'loss' once more from the same inputs, and differently"
    assert caught.value.hint == (
        "no random or numpy in forward: torch.rand, torch.randn and dropout become part of the program"
    )


# --- no excuse is enough alone ------------------------------------------------------------------------------------


def noisy(right_for: set[int]) -> tuple[Answer, Answer]:
    """PyTorch whose loss jumps when it is moved, so that it excuses everything; a file that is right for some numbers
    of examples only."""
    seen: list[Values] = []

    def pytorch(values: Mapping[str, Tensor]) -> Values:
        right = regression(values)
        near = [
            one
            for one in seen
            if one["x"].shape == values["x"].shape and torch.allclose(one["x"], values["x"], atol=1e-4)
        ]
        if near and not any(torch.equal(one["x"], values["x"]) for one in near):
            return right | {"loss": right["loss"] * 2}
        seen.append(dict(values))
        return right

    def file(values: Mapping[str, Tensor]) -> Values:
        right = regression(values)
        return right if len(values["x"]) in right_for else right | {"loss": right["loss"] + 1}

    return pytorch, file


def test_an_output_that_is_excused_on_every_batch_is_refused() -> None:
    pytorch, file = noisy({6})
    asked = Asked(file)
    with pytest.raises(ParityError) as caught:
        proven(pytorch, asked, writes={})
    assert caught.value.message == "program 'train': 'loss' equals PyTorch's on no random batch"
    assert caught.value.hint == (
        "does a layer's output not depend on its input? Then PyTorch's own answer is rounding noise"
    )
    moves = [values["x"] for values in asked.values if len(values["x"]) == 4]
    distinct = {tuple((x / 1e-2).round().flatten().tolist()) for x in moves}
    assert len(distinct) == MORE_BATCHES == 8


def test_one_more_batch_that_is_right_is_enough() -> None:
    pytorch, file = noisy({4, 6})
    asked = Asked(file)
    assert proven(pytorch, asked, writes={}).checks["batches"] == 0
    assert sum(len(values["x"]) == 4 for values in asked.values) == 1


def test_pytorch_has_one_thread_in_a_proof_so_that_its_sums_are_the_same_on_any_number_of_cores() -> None:
    seen = set()

    def oracle(values: Mapping[str, Tensor]) -> Values:
        seen.add(torch.get_num_threads())
        return regression(values)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        proven(oracle)
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)
