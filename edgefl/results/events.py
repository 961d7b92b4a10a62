"""events.jsonl of a run for a person: a time line, and how long each device took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from edgefl.errors import InputError
from edgefl.files import read_bytes

ROUTINE = ("announced", "replied", "round done")  # of every round: the table of rounds says so
MOST_SHOWN = 300  # of one kind


class Event(msgspec.Struct, frozen=True):
    """A line of events.jsonl. `time`: seconds since 1970."""

    time: float
    event: str
    round: int = 0
    device: str = ""
    text: str = ""

    @property
    def words(self) -> str:
        """What a person reads of it."""
        return ", ".join(filter(None, (self.device, self.text, f"round {self.round}" if self.round else "")))


class Timed(msgspec.Struct, frozen=True):
    """An event, `seconds` after the run began, without the time between its starts."""

    seconds: float
    event: Event


def read_events(path: Path) -> list[Event]:
    """Every line that can be read: nothing depends on them, so none is synced, and a power cut may spoil some.

    With msgspec's own reader: a long run has 100,000 of them.
    """
    try:
        lines = read_bytes(path).splitlines()
    except InputError:
        return []
    decode = msgspec.json.Decoder(Event).decode
    found = []
    for line in lines:
        try:
            found.append(decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found


def timed(events: Iterable[Event]) -> list[Timed]:
    """What is no routine, in order of time."""
    return [Timed(seconds, event) for seconds, event in _times(events) if event.event not in ROUTINE]


def last_seen(events: Iterable[Event]) -> dict[str, float]:
    """When the aggregator heard of each device last, in seconds after the run began."""
    return {event.device: seconds for seconds, event in _times(events) if event.device}


def _times(events: Iterable[Event]) -> Iterator[tuple[float, Event]]:
    began: float | None = None
    last = 0.0
    for event in events:
        if began is None:
            began = event.time
        elif event.event == "started":
            began += max(0.0, event.time - last)
        last = event.time
        yield round(max(0.0, event.time - began), 3), event


def lanes(found: Iterable[Timed]) -> dict[str, list[Timed]]:
    """By kind, in order of their first; of each kind no more than MOST_SHOWN, evenly chosen."""
    kinds: dict[str, list[Timed]] = {}
    for one in found:
        kinds.setdefault(one.event.event, []).append(one)
    return {kind: evenly(events, MOST_SHOWN) for kind, events in kinds.items()}


def evenly(many: list[Timed], most: int) -> list[Timed]:
    if len(many) <= most:
        return many
    return [many[round(i * (len(many) - 1) / (most - 1))] for i in range(most)]


def seconds_of_devices(events: Iterable[Event]) -> dict[str, float]:
    """The median time of each device from an announcement to its reply."""
    announced: dict[int, float] = {}
    took: dict[str, list[float]] = {}
    for event in events:
        if event.event == "announced":
            announced[event.round] = event.time
        elif event.event == "replied" and event.round in announced:
            took.setdefault(event.device, []).append(event.time - announced[event.round])
    return {device: statistics.median(times) for device, times in took.items()}


def is_finished(events: Sequence[Event]) -> bool:
    """Whether the run has come to its end. Yes, where no event is known: they may be lost, and a copy may lack them."""
    return not events or any(event.event == "finished" for event in reversed(events))


def connected_at(events: Iterable[Event]) -> float | None:
    """When the aggregator had its first connection, in seconds since 1970."""
    return next((event.time for event in events if event.event == "started"), None)
