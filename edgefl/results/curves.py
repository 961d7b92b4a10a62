"""The curves of a run: what changes with its rounds, thinned to what a page can show."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal

import msgspec

from edgefl.aggregator.record import Record
from edgefl.results.rounds import Rows, Value, metric, waited_s

MOST_LINES = 12  # devices that have a line each; of more the least, the median and the most are drawn
MOST_OTHER = 12  # charts of metrics that only some programs have
BUCKETS = 200  # of a line's points; a chart is some 400 pixels wide

Axis = Literal["round", "bytes", "seconds"]
Unit = Literal["share", "number", "seconds", "bytes"]
Values = Callable[[Record], Mapping[str, float | None]]  # of each device


class Line(msgspec.Struct, frozen=True):
    """Points: the round of each, the bytes on the wire and the seconds of the run until then, and the value."""

    name: str
    round: list[int]
    bytes: list[int]
    seconds: list[float]
    value: list[float]

    def thinned(self, buckets: int) -> Line:
        """With the points that `thinned` chooses."""
        chosen = thinned(self.value, buckets)
        columns = ([column[i] for i in chosen] for column in (self.round, self.bytes, self.seconds, self.value))
        return Line(self.name, *columns)  # type: ignore[arg-type]


class Chart(msgspec.Struct, frozen=True):
    """Lines of one kind. `key` is the same in all runs: what is drawn over each other."""

    key: str
    title: str
    unit: Unit
    lines: list[Line]
    against: tuple[Axis, ...] = ("round",)


def charts_of(records: Sequence[Record]) -> list[Chart]:
    """Every chart that the run has values for."""
    rows = Rows(records).rows
    along: tuple[Axis, ...] = ("round", "bytes", "seconds")
    charts = [
        Chart("accuracy", "Test accuracy", "share", _one(records, lambda r: r.accuracy), along),
        Chart("own", "Each device on its own test data", "share", _each(records, _own_accuracy)),
        Chart("loss", "Test loss", "number", _one(records, lambda r: r.loss)),
        Chart("train.loss", "Training loss", "number", _one(records, metric("train.loss"))),
        *_others(records),
        Chart("norms", "Norm of each device's update", "number", _each(records, _norms)),
        Chart("seconds", "Seconds a round", "seconds", _one(rows, lambda r: r.seconds)),
        Chart("bytes", "Bytes a round, up and down", "bytes", _one(rows, lambda r: r.bytes_up + r.bytes_down)),
    ]
    return [chart for chart in charts if chart.lines]


def _others(records: Sequence[Record]) -> Iterator[Chart]:
    """What else programs measure: the solver of an equilibrium model, the loss of a dream."""
    plain = ("train.loss", "evaluate.loss", "train.accuracy", "evaluate.accuracy")
    names = {name for record in records for name in record.metrics if not name.endswith((".correct", ".examples"))}
    for name in sorted(names.difference(plain))[:MOST_OTHER]:
        program, _, output = name.partition(".")
        words = output.replace("_", " ")
        title = f"{words[:1].upper()}{words[1:]} ({program})"
        lines = _each(records, lambda r, name=name: _measured(r, name)) or _one(records, metric(name))  # type: ignore[misc]
        yield Chart(name, title, "share" if output == "accuracy" else "number", lines)


def _own_accuracy(record: Record) -> dict[str, float | None]:
    return {
        device: correct / examples
        for device, metrics in record.measured.items()
        if (examples := metrics.get("evaluate.examples")) and (correct := metrics.get("evaluate.correct")) is not None
    }


def _norms(record: Record) -> Mapping[str, float | None]:
    return record.norms


def _measured(record: Record, name: str) -> dict[str, float | None]:
    return {device: metrics.get(name) for device, metrics in record.measured.items()}


def _one(records: Sequence[Record], value: Value) -> list[Line]:
    """One line, or none where no round has the value."""
    found = [(place, y) for place, record in _places(records) if (y := value(record)) is not None and math.isfinite(y)]
    return _lines({"": found})


def _each(records: Sequence[Record], values: Values) -> list[Line]:
    """A line for each device. Of many devices three lines: the least, the median and the most."""
    found: dict[str, list[tuple[_Place, float]]] = {}
    many: dict[str, list[tuple[_Place, float]]] = {"most": [], "median": [], "least": []}
    for place, record in _places(records):
        finite = {device: y for device, y in values(record).items() if y is not None and math.isfinite(y)}
        for device, y in finite.items():
            found.setdefault(device, []).append((place, y))
        if finite:
            for name, of in (("most", max), ("median", statistics.median), ("least", min)):
                many[name].append((place, of(finite.values())))
    return _lines({name: found[name] for name in sorted(found, key=natural)} if len(found) <= MOST_LINES else many)


_Place = tuple[int, int, float]  # round, bytes and seconds until then


def _places(records: Sequence[Record]) -> Iterator[tuple[_Place, Record]]:
    wire, waited = accumulate(record.bytes_up + record.bytes_down for record in records), waited_s(records)
    for record, until in zip(records, wire, strict=True):
        yield (record.round, until, round(record.elapsed_s - waited, 3)), record


def _lines(found: Mapping[str, Sequence[tuple[_Place, float]]]) -> list[Line]:
    lines = []
    for name, points in found.items():
        if points:
            rounds, wire, seconds = (list(axis) for axis in zip(*(place for place, _ in points), strict=True))
            values = [float(f"{y:.7g}") for _, y in points]
            lines.append(Line(name, rounds, wire, seconds, values).thinned(BUCKETS))
    return lines


def thinned(values: Sequence[float], buckets: int = BUCKETS) -> list[int]:
    """Which of many points to draw: the first, the last, the least and the greatest of each bucket of neighbours.

    So a line looks the same: where it was high or low for one round, it still is. All, where there are few.
    """
    if len(values) <= 4 * buckets:
        return list(range(len(values)))
    chosen: set[int] = set()
    for bucket in range(buckets):
        inside = range(bucket * len(values) // buckets, (bucket + 1) * len(values) // buckets)
        chosen |= {inside[0], inside[-1], min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)}
    return sorted(chosen)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that puts pi-2 before pi-10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]
