"""What the report says of devices: what they are, hold, did, and what is odd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import Page
from records import record

from edgefl.aggregator.fleet import Known
from edgefl.aggregator.store import read_fleet
from edgefl.results.confusion import read_confusion
from edgefl.results.devices import MOST_DEVICES, devices_section, labels_section
from edgefl.results.events import Event


def section(*found: Any, events: Any = (), known: Any = None, settings: Any = None) -> Page:
    return Page(devices_section(found, events, known or {}, settings or {}))


def column(page: Page, title: str) -> list[str]:
    head, *rows = page.rows("device")
    return [row[head.index(title)] for row in rows]


def test_what_they_did_is_counted_from_the_records() -> None:
    """b was not in the last round; a counted 0.25 and 0.75."""
    page = section(
        record(1, devices=["a", "b"], weights={"a": 0.25, "b": 0.75}, bytes_up_by_device={"a": 10, "b": 20}),
        record(2, devices=["a"], weights={"a": 0.75}, bytes_up_by_device={"a": 10}),
        events=[Event(0.0, "announced", 1), Event(0.5, "replied", 1, "a"), Event(1.0, "failed", 2, "b", "hot")],
    )
    assert column(page, "device") == ["a", "b"]
    assert column(page, "replies") == ["2", "1"]
    assert column(page, "up") == ["20 B", "20 B"]
    assert column(page, "weight, last") == ["0.750", "0.750"] and column(page, "weight, mean") == ["0.500", "0.750"]
    assert column(page, "seconds a round") == ["0.50", "-"]
    assert column(page, "failures") == ["-", "1"]
    assert column(page, "last seen") == ["after 0.5 s", "after 1.0 s"]
    assert column(page, "last reply") == ["round 2", "round 1"]


def test_what_they_measured_last_and_the_budget_of_their_solves() -> None:
    measured = {"train.correct": 3.0, "train.examples": 4.0, "train.residual": 0.5, "train.solver_steps": 2.0}
    page = section(
        record(1, devices=["a", "b"], measured={"a": measured, "b": measured | {"train.residual": 0.25}}),
        record(2, devices=["a", "b"], measured={"a": measured | {"train.residual": None}}),
        settings={"a": {"max_steps": 2.0}, "b": {"max_steps": 32.0}},
    )
    assert column(page, "max_steps") == ["2", "32"]
    assert column(page, "train residual") == ["-", "0.25"]
    assert column(page, "train solver steps") == ["2", "2"]
    assert column(page, "train accuracy") == ["75.0%", "75.0%"]


def test_what_is_the_same_for_all_is_said_once() -> None:
    known = {name: Known(examples, 5, "digits", memory_mb=1024, cores=4) for name, examples in (("a", 10), ("b", 20))}
    page = section(known=known)
    assert page.all("p") == ["All of them: class digits, memory 1.0 GiB, cores 4."]
    assert column(page, "examples") == ["10", "20"] and "cores" not in page.rows("device")[0]


def test_a_device_that_is_odd_is_named_above_the_table() -> None:
    page = section(record(1, devices=["a", "b"]), known={"b": Known(data="values to 255, let pass as they are")})
    assert page.all("li") == ["b: values to 255, let pass as they are"]
    assert [a.get("class") for tag, a in page.tags if tag == "span"] == ["odd"]


def test_of_very_many_some_are_listed_and_the_rest_counted() -> None:
    page = section(record(1, devices=[f"pi-{i}" for i in range(MOST_DEVICES + 7)]))
    assert len(page.rows("device")) == 1 + MOST_DEVICES
    assert page.all("p")[-1] == "and 7 more devices"


def test_no_device_no_table() -> None:
    assert section().tables == []


def test_who_holds_which_classes() -> None:
    """By name where the classes have names, in their order; the darkest is the most."""
    known = {"b": Known(label_counts={"1": 9, "0": 1}), "a": Known(label_counts={"cat": 3}), "c": Known()}
    page = Page(labels_section(known, ["dog", "cat"]))
    assert page.rows("device") == [["device", "dog", "cat", "all"], ["a", "", "3", "3"], ["b", "1", "9", "10"]]
    assert [a.get("class") for tag, a in page.tags if tag == "td"] == ["h0", "h3", None, "h1", "h9", None]
    assert labels_section({"c": Known()}, []) == ""


def test_many_labels_are_counted_not_listed() -> None:
    page = Page(labels_section({"a": Known(label_counts={str(i): 1 for i in range(1000)})}, []))
    assert len(page.rows("device")[0]) == 42 and page.rows("device")[1][-1] == "1,000"
    assert page.all("p")[-1] == "and 960 more labels"


@pytest.mark.parametrize("text", ["", "[]", '{"devices": {"a": 1}}', "[" * 100_000, "\0"])
def test_what_cannot_be_read_is_as_nothing(text: str, tmp_path: Path) -> None:
    for name in ("devices.json", "confusion.json"):
        (tmp_path / name).write_text(text)
    assert read_fleet(tmp_path) == {} and read_confusion(tmp_path) is None


@pytest.mark.parametrize("matrix", [[[1]], [[1, 2], [3]], [[1, -2], [3, 4]], [[1, 2], [3, 4], [5, 6]]])
def test_a_matrix_of_another_size_is_as_nothing(matrix: list[list[int]], tmp_path: Path) -> None:
    (tmp_path / "confusion.json").write_text(json.dumps({"classes": ["a", "b"], "matrix": matrix, "round": 1}))
    assert read_confusion(tmp_path) is None
