"""Twenty steps in a row: from PyTorch's state each, and all on the file's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from toy_proof import STATE, WRITES, Asked, X, Y, definition, regression, samples, sides

from edgefl.errors import ParityError
from edgefl_exporter.proof.sides import Values
from edgefl_exporter.proof.trajectory import trajectory

Answer = Callable[[Mapping[str, Tensor]], Values]


def walked(oracle: Answer = regression, file: Answer = regression, **options: object) -> dict[str, float]:
    return trajectory(sides(definition(oracle, **options), file), STATE, samples())  # type: ignore[arg-type]


def slips(size: float, step: int | None = None) -> Answer:
    """The right step, but w goes too far by a part of the way: in each, or in one of the twenty."""

    def answer(values: Mapping[str, Tensor]) -> Values:
        right = regression(values)
        if step is None or values["optimizer.step"] == step:
            right["next.w"] = right["next.w"] + size * (right["next.w"] - values["w"])
        return right

    return answer


def test_both_figures_of_a_right_file_are_zero() -> None:
    assert walked() == {"20 steps": 0.0, "20 steps, free": 0.0}


def test_pytorch_walks_and_the_file_is_asked_from_where_it_is() -> None:
    """Twenty batches of eight, twice: the second time the file goes on from its own state."""
    pytorch, file = Asked(), Asked(slips(5e-5))
    found = walked(pytorch, file)
    assert [values["optimizer.step"].item() for values in pytorch.values] == list(range(20))
    assert [values["optimizer.step"].item() for values in file.values] == list(range(20)) * 2
    assert all(torch.equal(a["w"], b["w"]) for a, b in zip(pytorch.values, file.values[:20], strict=True))
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(file.values[:20], file.values[20:], strict=True))
    assert not torch.equal(pytorch.values[-1]["w"], file.values[-1]["w"])
    assert {len(values["x"]) for values in pytorch.values} == {8}
    assert len({tuple(values["y"].tolist()) for values in pytorch.values}) == 20
    assert found["20 steps"] == pytest.approx(5e-5, rel=0.02) and 0 < found["20 steps, free"] < 1e-2


def test_a_seed_walks_the_same_again() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(Asked())
        walked(found[-1])
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(found[0].values, found[1].values, strict=True))


@pytest.mark.parametrize("step", [0, 7, 19])
def test_one_wrong_step_is_refused(step: int) -> None:
    with pytest.raises(ParityError, match="program 'train', check '20 steps': 'next.w' differs"):
        walked(file=slips(2e-4, step))


def test_a_file_that_loses_its_way_alone_is_refused() -> None:
    """On PyTorch's path, where w is what it was, it is right; else it hardly moves."""
    asked = Asked()

    def astray(values: Mapping[str, Tensor]) -> Values:
        on_the_path = any(torch.equal(values["w"], seen["w"]) for seen in asked.values)
        right = regression(values)
        lost = values["optimizer.step"] > 0 and not on_the_path
        return right | {"next.w": (values["w"] if lost else right["next.w"]) * (1 + 1e-6)}

    with pytest.raises(ParityError, match="program 'train', check '20 steps, free': 'next.w' differs"):
        walked(asked, astray)


def cubed(values: Mapping[str, Tensor]) -> Values:
    """Steps so long that they diverge, but at a rate of 0.005 or less."""
    right = regression(values)
    if values["learning_rate"] > 0.005:
        right["next.w"] = values["w"] * 1e10
    return right


def test_where_pytorch_diverges_the_steps_are_shorter() -> None:
    asked = Asked(cubed)
    assert walked(asked, cubed) == {"20 steps": 0.0, "20 steps, free": 0.0}
    rates = [round(values["learning_rate"].item(), 6) for values in asked.values]
    assert rates[0] == 0.05 and rates[-20:] == [0.005] * 20 and set(rates) == {0.05, 0.005}
    assert torch.equal(asked.values[-20]["w"], STATE["w"])  # from the beginning again


def test_a_rate_that_is_lower_already_stays() -> None:
    from edgefl.manifest import Input

    asked = Asked()
    low = Input("learning_rate", "float32", (), "setting", 0.02)
    walked(asked, inputs=(X, Y, low))
    assert {round(values["learning_rate"].item(), 6) for values in asked.values} == {0.02}


def test_a_program_without_a_rate_is_walked_as_it_is() -> None:
    def fixed(values: Mapping[str, Tensor]) -> Values:
        return regression({**values, "learning_rate": torch.tensor(0.01)})

    assert walked(fixed, fixed, inputs=(X, Y)) == {"20 steps": 0.0, "20 steps, free": 0.0}


def test_where_pytorch_diverges_at_every_rate_there_are_no_figures() -> None:
    asked = Asked(lambda values: regression(values) | {"loss": torch.tensor(float("inf"))})
    assert walked(asked, asked.answer) == {}
    assert [round(values["learning_rate"].item(), 6) for values in asked.values] == [0.05, 0.005, 0.0005, 0.00005]


def test_only_what_is_written_is_compared_at_the_end() -> None:
    """The loss has no place in a state."""
    found = walked(writes={"w": "next.w"})
    assert found == {"20 steps": 0.0, "20 steps, free": 0.0}
    assert WRITES.keys() == STATE.keys()
