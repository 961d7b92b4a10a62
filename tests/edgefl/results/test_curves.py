"""The curves of a run: which there are, and what is left of many points."""

from __future__ import annotations

import math
from typing import Any

import pytest
from records import record

from edgefl.results.curves import BUCKETS, MOST_LINES, Chart, charts_of, natural, thinned


def chart(key: str, *found: Any) -> Chart:
    return next(one for one in charts_of(found) if one.key == key)


def test_few_points_are_all_drawn() -> None:
    assert thinned(range(4 * BUCKETS)) == list(range(4 * BUCKETS))
    assert thinned([]) == []


def test_of_many_points_the_ends_and_every_peak_stay() -> None:
    values = [math.sin(i / 900) for i in range(10_000)]
    values[1234], values[7777] = 50.0, -50.0
    chosen = thinned(values)
    assert len(chosen) <= 4 * BUCKETS and chosen == sorted(set(chosen))
    assert {0, 1234, 7777, 9999} <= set(chosen)


def test_each_bucket_keeps_what_it_looked_like() -> None:
    """Two buckets of five: first, last, least and greatest of each."""
    assert thinned([3, 9, 1, 5, 4, 2, 2, 8, 0, 7], buckets=2) == [0, 1, 2, 4, 5, 7, 8, 9]


def test_devices_have_a_line_each_in_the_order_of_their_numbers() -> None:
    measured = {name: {"evaluate.correct": 1.0, "evaluate.examples": 4.0} for name in ("pi-10", "pi-2", "pi-1")}
    own = chart("own", record(1, measured=measured), record(2))
    assert [line.name for line in own.lines] == ["pi-1", "pi-2", "pi-10"]
    assert all(line.round == [1] and line.value == [0.25] for line in own.lines)


def test_of_many_devices_the_least_the_median_and_the_most() -> None:
    """13 devices with a residual of 0 to 12; one of them is called like a line."""
    names = ["most", *(f"pi-{i}" for i in range(1, MOST_LINES + 1))]
    measured = {name: {"train.residual": float(i)} for i, name in enumerate(names)}
    found = chart("train.residual", record(1, metrics={"train.residual": 6.0}, measured=measured))
    assert [(line.name, line.value) for line in found.lines] == [("most", [12.0]), ("median", [6.0]), ("least", [0.0])]


def test_a_metric_that_no_device_is_named_with_is_drawn_as_the_mean() -> None:
    found = chart("dream.loss", *(record(n, metrics={"dream.loss": 1.0 / n}, durable=False) for n in (1, 2)))
    assert found.title == "Loss (dream)" and [line.value for line in found.lines] == [[1.0, 0.5]]


def test_counts_are_no_curves_and_losses_have_theirs() -> None:
    names = ("train.loss", "train.correct", "train.examples", "train.accuracy", "evaluate.loss", "train.solver_steps")
    charts = charts_of([record(1, metrics=dict.fromkeys(names, 1.0))])
    assert [one.title for one in charts] == [
        "Training loss",
        "Solver steps (train)",
        "Seconds a round",
        "Bytes a round, up and down",
    ]


def test_what_is_not_finite_leaves_a_gap() -> None:
    found = chart(
        "train.loss",
        *(record(n, metrics={"train.loss": (None, math.inf)[n % 2] if 1 < n < 4 else 1.0}) for n in (1, 2, 3, 4)),
    )
    assert found.lines[0].round == [1, 4]


@pytest.mark.parametrize(
    ("names", "ordered"), [(["b10", "b9", "a"], ["a", "b9", "b10"]), (["10", "x", "9"], ["9", "10", "x"])]
)
def test_names_in_the_order_of_their_numbers(names: list[str], ordered: list[str]) -> None:
    assert sorted(names, key=natural) == ordered
