"""The record of a round: what the coordinator, the wire and an evaluation say, as one value."""

from __future__ import annotations

from typing import Any

import pytest

from edgefl.aggregator.record import Record, Traffic, record_of
from edgefl.aggregator.rounds import RoundDone
from edgefl.method import Fused, State

MEASURED = {"a": {"evaluate.correct": 1.0}, "b": {"evaluate.correct": 2.0}}
METRICS = {"train.loss": 0.5, "evaluate.loss": 2.0, "evaluate.correct": 3.0, "evaluate.examples": 4.0}


def made(evaluated: dict[str, float] | None = None, *, durable: bool = True, **metrics: float) -> Record:
    """Two devices of three replied to the fifth round."""
    fused = Fused({}, METRICS | metrics, ("a", "b"), 6, {"a": 1 / 3, "b": 2 / 3}, MEASURED)
    done = RoundDone(4, State(5, {}), fused, attempts=2, asked=3, seconds=1.23456, durable=durable)
    return record_of(done, Traffic({"a": 10, "b": 20}, down=7), evaluated or {}, elapsed_s=9.87654)


def test_everything_that_is_known_of_a_round() -> None:
    assert made() == Record(
        round=5,
        replies=2,
        asked=3,
        attempts=2,
        examples=6,
        bytes_up=30,
        bytes_down=7,
        bytes_up_by_device={"a": 10, "b": 20},
        seconds=1.2346,
        elapsed_s=9.8765,
        devices=["a", "b"],
        weights={"a": 0.333333, "b": 0.666667},
        metrics=METRICS | {"evaluate.accuracy": 0.75},
        measured=MEASURED,
        loss=2.0,
        accuracy=0.75,
    )


def test_the_aggregators_own_data_count_more_than_what_devices_say_of_theirs() -> None:
    found = made({"evaluate.loss": 0.25, "evaluate.correct": 9.0, "evaluate.examples": 10.0})
    assert (found.loss, found.accuracy) == (0.25, 0.9)
    assert found.metrics["evaluate.accuracy"] == 0.75
    assert made({"evaluate.loss": 0.25}).accuracy is None  # of a regression there is none


@pytest.mark.parametrize("examples", [0.0, 4.0])
def test_of_no_examples_there_is_no_accuracy(examples: float) -> None:
    assert made(**{"evaluate.examples": examples}).accuracy == (0.75 if examples else None)


def test_of_a_round_that_is_not_durable_only_what_is_short() -> None:
    found: Any = made(durable=False)
    assert (found.durable, found.measured, found.loss, found.accuracy) == (False, {}, None, None)
    assert found.metrics["evaluate.accuracy"] == 0.75
