"""The time line of a run, and how long devices took."""

from __future__ import annotations

import json
from pathlib import Path

from edgefl.results.events import MOST_SHOWN, Event, connected_at, lanes, read_events, seconds_of_devices, timed


def test_lines_that_a_power_cut_has_spoilt_are_passed_over(tmp_path: Path) -> None:
    lines = [
        '{"time": 1.0, "event": "started", "epoch": 1}',
        "\0\0",
        "[1]",
        '{"time": "x"}',
        '{"time": 2, "event": "fai',
    ]
    (tmp_path / "events.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff")
    assert read_events(tmp_path / "events.jsonl") == [Event(1.0, "started")]
    assert read_events(tmp_path / "none.jsonl") == []


def test_the_time_between_two_starts_is_no_time_of_the_run() -> None:
    """Killed after 10 s, started again two days later."""
    day_s = 86_400.0
    events = [
        Event(1000.0, "started"),
        Event(1010.0, "round done", 1),
        Event(1010.0 + 2 * day_s, "started"),
        Event(1013.0 + 2 * day_s, "failed", 2, "pi-1", "no data"),
    ]
    assert [(one.seconds, one.event.event) for one in timed(events)] == [
        (0.0, "started"),
        (10.0, "started"),
        (13.0, "failed"),
    ]
    assert connected_at(events) == 1000.0 and connected_at([]) is None


def test_a_clock_that_was_set_back_makes_no_time_before_the_beginning() -> None:
    assert [one.seconds for one in timed([Event(1000.0, "started"), Event(5.0, "joined")])] == [0.0, 0.0]


def test_of_many_events_of_a_kind_the_first_the_last_and_some_between() -> None:
    found = lanes(timed([Event(0.0, "started"), *(Event(float(i), "failed", i) for i in range(1, 5001))]))
    assert len(found["started"]) == 1 and len(found["failed"]) == MOST_SHOWN
    assert [one.event.round for one in (found["failed"][0], found["failed"][-1])] == [1, 5000]


def test_a_device_takes_from_the_announcement_to_its_reply() -> None:
    """1, 2 and 6 seconds; a reply whose announcement is lost does not count."""
    events = [Event(0.0, "replied", 9, "pi-1")]
    for number, took_s in enumerate((1.0, 6.0, 2.0), start=1):
        events += [Event(10.0 * number, "announced", number), Event(10.0 * number + took_s, "replied", number, "pi-1")]
    assert seconds_of_devices(events) == {"pi-1": 2.0}


def test_what_the_store_writes_is_read(tmp_path: Path) -> None:
    from edgefl.aggregator.rounds import Note
    from edgefl.aggregator.store import Store

    store = Store.create(tmp_path / "run", "")
    store.note(Note("failed", 2, "pi-1", "too hot"))
    store.close()
    (event,) = read_events(tmp_path / "run" / "events.jsonl")
    assert event.words == "pi-1, too hot, round 3"
    assert event.time == json.loads((tmp_path / "run" / "events.jsonl").read_text())["time"]
