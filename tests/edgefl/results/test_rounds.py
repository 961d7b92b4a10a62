"""Rounds as rows, and what they come to, for people."""

from __future__ import annotations

import pytest
from records import of_fleet as record

from edgefl.results.rounds import Rows, duration, facts, size
from edgefl.results.summary import summary_of

RECORDS = [record(n, loss=2 / n, accuracy=1 - 0.5 / n) for n in (1, 2, 3, 4)]


def test_facts_by_hand() -> None:
    assert facts(RECORDS) == [
        ("test accuracy", "87.50%"),
        ("rounds", "4"),
        ("time", "2.0 s"),
        ("bytes up", "4.0 KiB"),
        ("bytes down", "12.0 MiB"),
        ("devices", "4"),
    ]
    assert facts([]) == [("rounds", "0")]


def test_the_time_until_the_first_announcement_is_no_time_of_the_run() -> None:
    waited = [record(1, elapsed_s=10.5), record(2, elapsed_s=12.0)]
    assert ("time", "2.0 s") in facts(waited)
    summary = summary_of(waited, name="a", method="FedAvg", model="m", before_s=30.0)
    assert summary.seconds == 2.0 and summary.prepared_s == 42.0
    assert summary.charts[0].lines[0].seconds == [0.5, 2.0]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (2**40, "1024.0 GiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (8.04, "8.0 s"), (99.96, "1 min 40 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_round_without_training_is_part_of_the_next_row() -> None:
    made = [record(1), record(2, bytes_up=7, metrics={}), record(3, seconds=2.0, metrics={}), record(4)]
    rows = Rows(made).rows
    assert [r.round for r in rows] == [1, 4]
    assert rows[1].bytes_up == 1024 + 7 + 1024 and rows[1].seconds == 0.5 + 2.0 + 0.5
    assert sum(r.bytes_down for r in rows) == sum(r.bytes_down for r in made)
