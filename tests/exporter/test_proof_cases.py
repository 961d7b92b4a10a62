"""What a program is tried on: which batches, how they are made extreme, and how settings and state are moved."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from toy_proof import RATE, STATE, Asked, X, Y, definition, regression, samples

from edgefl.manifest import Input
from edgefl_exporter.models.randomness import SEED
from edgefl_exporter.programs.program import Definition
from edgefl_exporter.proof.cases import BATCHES, Case, cases, typical
from edgefl_exporter.proof.sides import Values

ZEROS = {name: torch.zeros_like(value) for name, value in STATE.items()}


def setting(name: str, default: float, dtype: str = "float32") -> Input:
    return Input(name, dtype, (), "setting", default)  # type: ignore[arg-type]


def tried(
    made: Definition, state: Mapping[str, Tensor] = STATE, example: Tensor | None = None
) -> list[tuple[str, Values]]:
    drawn = samples(example)
    return [(case.check, case.values) for case in cases(made, state, ZEROS, drawn, torch.Generator().manual_seed(0))]


def test_which_batches_there_are_and_of_how_many_examples() -> None:
    found = tried(definition(typical={"w": 0.25}))
    assert [(check, len(values["x"])) for check, values in found] == [
        *[(BATCHES, 8), (BATCHES, 5), (BATCHES, 32)] * 2,
        ("first step", 8),
        ("short batch", 1),
        ("zero inputs", 8),
        ("zero gradients", 8),
        ("extreme inputs", 8),
        ("extreme inputs", 8),
    ]
    assert all(len(values["y"]) == len(values["x"]) for _, values in found)
    assert all(values.keys() == {"x", "y", "learning_rate", *STATE} for _, values in found)
    assert "first step" not in dict(tried(definition()))


def test_a_random_batch_takes_a_whole_step_and_the_others_a_steps_own() -> None:
    assert [values["learning_rate"].item() for _, values in tried(definition())] == [1.0] * 6 + [pytest.approx(0.1)] * 5


def test_the_first_step_is_from_the_initial_state_and_the_others_are_not() -> None:
    found = tried(definition(typical={"w": 0.25}))
    assert dict(found)["first step"]["w"].tolist() == [0, 0]
    for check in ("short batch", "zero inputs", "zero gradients", "extreme inputs"):
        assert dict(found)[check]["w"].tolist() == [1, -2]


def test_inputs_of_zero_dead_biases_and_extremes() -> None:
    """Ordinary features are around 1."""
    found = tried(definition(), {**STATE, "bias": torch.tensor([[1.0]]), "head.bias.scale": torch.tensor([1.0])})
    values = dict(found)
    assert not values["zero inputs"]["x"].any() and values["zero inputs"]["y"].any()
    dead = values["zero gradients"]
    assert dead["head.bias"].tolist() == [-9.5] and dead["w"].tolist() == [1, -2]
    assert dead["bias"].tolist() == [[1.0]] and dead["head.bias.scale"].tolist() == [1.0]
    assert dead["x"].any()
    large, small = (values["x"].abs().max().item() for check, values in found if check == "extreme inputs")
    assert 500 < large < 5000 and 5e-3 < small < 5e-2


def test_whole_numbers_are_not_made_extreme() -> None:
    tokens = Input("x", "int64", ("batch", 2), "features")

    def oracle(values: Mapping[str, Tensor]) -> Values:
        return regression({**values, "x": values["x"].float()})

    found = tried(definition(oracle, inputs=(tokens, Y, RATE)), example=torch.zeros(1, 2, dtype=torch.int64))
    assert [check for check, _ in found[6:]] == ["short batch", "zero inputs", "zero gradients"]


def test_a_program_without_features_has_random_batches_alone() -> None:
    def oracle(values: Mapping[str, Tensor]) -> Values:
        return {"next.w": values["w"]}

    found = tried(definition(oracle, inputs=(RATE,), typical={"w": 0.25}))
    assert [check for check, _ in found] == [BATCHES] * 6 + ["first step"]


def test_where_pytorch_refuses_one_example_a_short_batch_has_two() -> None:
    def oracle(values: Mapping[str, Tensor]) -> Values:
        if len(values["x"]) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return regression(values)

    assert len(dict(tried(definition(oracle)))["short batch"]["x"]) == 2


def test_a_seed_tries_the_same_again() -> None:
    """Whatever else has drawn random numbers in this process meanwhile."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(tried(definition(typical={"w": 0.25})))
    for (_, first), (_, second) in zip(*found, strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_whether_one_example_is_enough_does_not_depend_on_chance() -> None:
    asked = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        asked.append(Asked())
        tried(definition(asked[-1]))
    first, second = (one.values for one in asked)
    assert len(first) == 2  # the moved state, and one example
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(value, b[name]) for name, value in a.items())


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_are_their_defaults_then_away_from_them() -> None:
    """Of a model's own: half, and half as much again. One that clips and pulls, one that pulls and does not clip."""
    more = (
        setting("mood", 2.0),
        setting("count", 4, "int64"),
        setting("clip_norm", 1.0),
        setting("proximal", 0.0),
        SEED,
    )
    found = [values for check, values in tried(definition(regression, *more)) if check == BATCHES]
    names = ("mood", "count", "clip_norm", "proximal")
    want = [(2.0, 4, 1.0, 0.0), (1.0, 4, 0.1, 0.3), (3.0, 4, 1e3, 0.7)] * 2
    assert [tuple(values[name].item() for name in names) for values in found] == [pytest.approx(each) for each in want]
    assert [values["seed"].item() for values in found[1:3]] == [20_011, -7]
    assert found[1]["count"].dtype == found[1]["seed"].dtype == torch.int64


def test_a_program_that_has_settings_and_no_rate() -> None:
    def oracle(values: Mapping[str, Tensor]) -> Values:
        return regression({**values, "learning_rate": values["mood"]})

    found = [
        values for check, values in tried(definition(oracle, inputs=(X, Y, setting("mood", 2.0)))) if check == BATCHES
    ]
    assert [values["mood"].item() for values in found[:3]] == [2.0, 1.0, 3.0] and "learning_rate" not in found[0]


def test_added_up_gradients_are_full_after_this_batch_then_after_the_next() -> None:
    """Two batches have been counted, in the moved state five."""
    more = (setting("micro_batches", 4.0),)
    state = {**STATE, "optimizer.micro_batch": torch.tensor(2)}
    found = [values for check, values in tried(definition(regression, *more), state) if check == BATCHES]
    assert [values["micro_batches"].item() for values in found] == [4, 3, 4, 4, 6, 7]


# --- a moved state ------------------------------------------------------------------------------------------------


def test_the_second_half_is_from_a_state_that_hides_nothing() -> None:
    """Up to a tenth more, so what is not negative stays so; the counters of an optimizer are three on, no others."""
    state = {**STATE, "seen": torch.tensor(7), "variance": torch.zeros(1000)}
    found = [values for check, values in tried(definition(), state) if check == BATCHES]
    assert all(torch.equal(values["w"], STATE["w"]) for values in found[:3])
    for moved in found[3:]:
        assert ((moved["w"] - STATE["w"] > 0) & (moved["w"] - STATE["w"] < 0.1)).all()
        assert moved["optimizer.step"] == 3 and moved["seen"] == 7
        assert moved["variance"].min() >= 0 and 0.09 < moved["variance"].max() < 0.1


def test_a_state_is_moved_less_where_pytorchs_answer_is_not_finite() -> None:
    def oracle(values: Mapping[str, Tensor]) -> Values:
        far = (values["w"] - STATE["w"]).abs().max() > 0.01
        return {name: value / 0 if far else value for name, value in regression(values).items()}

    asked = Asked(oracle)
    moved = [values for check, values in tried(definition(asked)) if check == BATCHES][3]
    assert 0 < (moved["w"] - STATE["w"]).max() < 0.01
    sizes = [(values["w"] - STATE["w"]).max().item() for values in asked.values[:2]]
    assert sizes[0] > 0.01 > sizes[1] and {len(values["x"]) for values in asked.values[:2]} == {8}


def test_a_state_that_cannot_be_moved_far_enough_is_moved_least() -> None:
    asked = Asked(lambda values: {"loss": torch.tensor(float("nan"))})
    moved = [values for check, values in tried(definition(asked)) if check == BATCHES][3]
    assert 0 < (moved["w"] - STATE["w"]).max() < 0.001
    assert len(asked.values) == 3 + 1  # three sizes, and the short batch


def test_typical_state_is_filled() -> None:
    found = typical(definition(typical={"w": 0.25}), STATE)
    assert found.keys() == {"w"} and found["w"].tolist() == [0.25, 0.25]


def test_each_check_has_its_tolerance() -> None:
    tolerances = {
        check: Case(check, {}).tolerance
        for check in (BATCHES, "first step", "short batch", "20 steps", "zero inputs", "zero gradients")
    }
    assert tolerances == dict.fromkeys((BATCHES, "first step", "short batch", "20 steps"), 1e-4) | dict.fromkeys(
        ("zero inputs", "zero gradients"), 2e-3
    )
    assert Case("extreme inputs", {}).tolerance == 2e-3 and Case("20 steps, free", {}).tolerance == 1e-2
