"""PyTorch and the file, side by side: how both are moved by a rounding, and PyTorch in float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from toy_proof import Asked, definition, regression, sides

from edgefl.manifest import Input
from edgefl_exporter.proof.sides import ROUNDING, ZERO_ROUNDING, Values, arrays, finite, tensors

INF, NAN = float("inf"), float("nan")


def moved(**values: object) -> Values:
    """Named tensors after a move; "optimizer_" becomes "optimizer."."""
    present = Input("present", "float32", (4,), "present")
    given = {name.replace("optimizer_", "optimizer."): torch.as_tensor(value) for name, value in values.items()}
    found = sides(definition(regression, present)).moved(given)
    assert found.keys() == given.keys()
    return {name: value - given[name] for name, value in found.items()}


def test_state_is_moved_by_a_part_of_itself() -> None:
    off = moved(w=torch.tensor([1.0, -1000.0] * 500, dtype=torch.float64))["w"]
    assert off[::2].std().item() == pytest.approx(ROUNDING, rel=0.1)
    assert off[1::2].std().item() == pytest.approx(1000 * ROUNDING, rel=0.1)
    assert abs(off[::2].mean().item()) < ROUNDING / 5


@pytest.mark.parametrize(("largest", "part"), [(100.0, 100.0), (0.01, 1.0)])
def test_features_are_moved_by_a_part_of_the_largest_but_of_one_at_least(largest: float, part: float) -> None:
    x = torch.zeros(1000, dtype=torch.float64)
    x[0] = -largest
    assert moved(x=x)["x"].std().item() == pytest.approx(part * ROUNDING, rel=0.1)


def test_what_is_zero_as_a_whole_moves_a_little_and_an_optimizers_does_not() -> None:
    zeros = torch.zeros(1000, dtype=torch.float64)
    off = moved(w=zeros, optimizer_momentum=zeros, x=zeros)
    assert off["w"].std().item() == pytest.approx(ZERO_ROUNDING * (1 - 2 / torch.pi) ** 0.5, rel=0.1)
    assert off["w"].min() >= 0
    assert not off["optimizer.momentum"].any()
    assert off["x"].min() < 0  # features may be negative


def test_what_is_exact_stays() -> None:
    """Settings, the mask of a padded batch, whole numbers, single zeros, and what is not finite."""
    off = moved(
        learning_rate=0.1,
        present=torch.ones(4),
        optimizer_step=3,
        empty=torch.zeros(0),
        mask=torch.tensor([0.0, 1.0, 0.0]),
    )
    assert not off["learning_rate"].any() and not off["present"].any() and not off["optimizer.step"].any()
    assert off["mask"][0] == off["mask"][2] == 0
    got = sides(definition()).moved({"w": torch.tensor([INF, -INF, NAN, 2.0], dtype=torch.float64)})["w"]
    assert got[0] == INF and got[1] == -INF and got[2].isnan() and got[3] != 2.0


def test_what_is_nowhere_negative_stays_so() -> None:
    """A variance of almost nothing is moved to its other side, so back."""
    given = torch.full((100,), 1e-30, dtype=torch.float64)
    assert (sides(definition()).moved({"variance": given})["variance"] >= 0).all()
    mixed = sides(definition()).moved({"w": torch.tensor([-1.0, 1.0])})["w"]
    assert mixed[0] < 0 < mixed[1]


def test_a_seed_moves_the_same_again() -> None:
    given = {"w": torch.ones(100), "head.bias": torch.zeros(100)}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(sides(definition()).moved(given))
    assert all(torch.equal(found[0][name], found[1][name]) for name in given)


def test_both_are_asked_about_the_same_moved_values() -> None:
    pytorch, file = Asked(), Asked(lambda values: {"w": values["w"] * 2})
    given = {"x": torch.ones(3, 2), "y": torch.zeros(3), "w": torch.tensor([1.0, -2.0]), "head.bias": torch.ones(1)}
    given |= {"learning_rate": torch.tensor(0.1), "optimizer.step": torch.tensor(0)}
    theirs, ours = sides(definition(pytorch), file).nearby(given)
    assert torch.equal(pytorch.values[0]["w"], file.values[0]["w"]) and not torch.equal(ours["w"], 2 * given["w"])
    assert torch.equal(theirs["loss"], regression(pytorch.values[0])["loss"])
    assert torch.equal(ours["w"], 2 * pytorch.values[0]["w"])


def test_pytorch_in_float64_or_not_at_all() -> None:
    asked = Asked(lambda values: {"w": values["w"]})
    found = sides(definition(asked)).exact({"w": torch.ones(1), "n": torch.tensor(3)})
    assert found["w"].dtype == torch.float64 and asked.values[0]["n"].dtype == torch.int64

    def strict(values: Mapping[str, Tensor]) -> Values:
        raise AssertionError("float32 alone")

    assert sides(definition(strict)).exact({"w": torch.ones(1)}) == {}


def test_answers_of_the_file_are_its_own() -> None:
    """A runtime may use its buffers again."""
    kept = torch.ones(2)
    found = sides(definition(), lambda values: {"w": kept}).file({})
    kept.zero_()
    assert found["w"].tolist() == [1, 1]


@pytest.mark.parametrize(("value", "is_finite"), [(1.0, True), (INF, False), (NAN, False)])
def test_finite(value: float, is_finite: bool) -> None:
    assert finite({"a": torch.ones(2), "b": torch.tensor([0.0, value])}) is is_finite


def test_tensors_and_arrays() -> None:
    gradient = torch.ones(2, requires_grad=True) * 2
    there = arrays({"w": gradient})
    assert there["w"].tolist() == [2, 2] and tensors(there)["w"].tolist() == [2, 2]
    assert tensors({"n": there["w"][0]})["n"].shape == ()  # a numpy scalar as well
