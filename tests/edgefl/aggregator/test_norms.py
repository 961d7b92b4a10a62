"""Norms of replies, by hand."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from edgefl.aggregator.norms import FEWEST, REMEMBERED, Usual, lower_median, norm_of, too_large
from edgefl.method import Ask, Reply, Task


def reply(**tensors: list[float]) -> Reply:
    return Reply("a", 0, 1, {name: np.array(value, np.float32) for name, value in tensors.items()}, {})


def ask(send_as: Literal["value", "delta"] = "value", *, program: str = "train") -> Ask:
    return Ask((Task(program, send=("*",), send_as=send_as),), {"w": np.array([100, 100], np.float32)})


def test_the_norm_is_that_of_what_changes() -> None:
    """[103, 104] is 3 and 4 more than what was announced, so 5; as a delta it is what it is."""
    assert norm_of(reply(w=[103, 104]), ask()) == 5
    assert norm_of(reply(w=[3, 4]), ask("delta")) == 5
    assert norm_of(reply(w=[100, 100], gradient=[5, 12]), ask()) == 13  # nobody announced a gradient
    assert norm_of(reply(), ask()) == 0


def test_integers_have_none_and_what_float32_does_not_hold_is_infinite() -> None:
    counts = Reply("a", 0, 1, {"n": np.array([9], np.int64), "w": np.array([103, 104], np.float32)}, {})
    assert norm_of(counts, ask()) == 5
    assert norm_of(reply(w=[3e38, 0]), ask()) == math.inf
    far = Ask((Task("train", send=("*",)),), {"w": np.array([-3e38], np.float32)})
    assert norm_of(reply(w=[3e38]), far) == math.inf


def test_float16_is_measured_as_float32() -> None:
    half = Reply("a", 0, 1, {"g": np.array([300, 400], np.float16)}, {})
    assert norm_of(half, ask("delta")) == 500


@pytest.mark.parametrize(("values", "median"), [([5], 5), ([1, 9], 1), ([9, 1, 5], 5), ([4, 1, 3, 2], 2)])
def test_the_lower_median(values: list[float], median: float) -> None:
    assert lower_median(values) == median


def test_too_large_is_more_than_so_many_times_the_median() -> None:
    assert too_large({"a": 1.0, "b": 1.0, "c": 100.0}, 100) == []
    assert too_large({"a": 1.0, "b": 1.0, "c": 101.0, "d": math.inf}, 100) == ["c", "d"]
    assert too_large({"a": 0.0, "b": 0.0, "c": 1.0}, 100) == []  # nothing to compare with
    assert too_large({}, 100) == []


def test_what_is_usual_is_known_of_each_kind_of_ask_and_only_lately() -> None:
    usual = Usual()
    usual.note(ask(), [2.0] * (FEWEST - 1))
    assert usual.of(ask()) == 0
    usual.note(ask(), [2.0])
    assert (usual.of(ask()), usual.of(ask("delta")), usual.of(ask(program="dream"))) == (2, 0, 0)
    usual.note(ask(), [7.0] * REMEMBERED)
    assert usual.of(ask()) == 7
    assert usual.forget(ask()) and not usual.forget(ask()) and usual.of(ask()) == 0
