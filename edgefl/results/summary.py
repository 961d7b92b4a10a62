"""What a run has come to, in one sentence and as curves: summary.json, by which runs are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgefl.aggregator.record import Record
from edgefl.errors import InputError
from edgefl.files import from_json, read_bytes
from edgefl.results.curves import Chart, charts_of
from edgefl.results.rounds import duration, waited_s

SUMMARY = "summary.json"
MAX_BYTES = 16 * 2**20


class Reached(msgspec.Struct, frozen=True):
    """When the test accuracy was first at its target: after which round, how many bytes up and down, what time."""

    round: int
    bytes: int
    seconds: float


class Summary(msgspec.Struct, frozen=True):
    """A run, as its report and the page of all runs show it.

    seconds     of its rounds, evaluation included, from the first announcement on
    prepared_s  that, and what came before: exports, the broker, waiting for devices. None: it was not noted
    target      the accuracy that was aimed at, 0 to 1
    """

    name: str
    method: str
    model: str
    devices: int
    rounds: int
    accuracy: float | None
    seconds: float
    prepared_s: float | None
    bytes_up: int
    bytes_down: int
    target: float | None
    reached: Reached | None
    charts: list[Chart]
    finished: bool = True

    @property
    def numbers(self) -> dict[str, Any]:
        """All but the curves, as plain values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        del found["charts"]
        return found


def summary_of(
    records: Sequence[Record],
    *,
    name: str,
    method: str,
    model: str,
    target: float | None = None,
    before_s: float | None = None,
    finished: bool = True,
) -> Summary:
    """`before_s`: from when the run was asked for until its aggregator was connected."""
    elapsed_s = records[-1].elapsed_s if records else 0.0
    accuracies = [record.accuracy for record in records if record.accuracy is not None]
    return Summary(
        name=name,
        method=method,
        model=model,
        devices=len({device for record in records for device in record.devices}),
        rounds=records[-1].round if records else 0,
        accuracy=accuracies[-1] if accuracies else None,
        seconds=round(elapsed_s - waited_s(records), 3),
        prepared_s=None if before_s is None else round(max(0.0, before_s) + elapsed_s, 3),
        bytes_up=sum(record.bytes_up for record in records),
        bytes_down=sum(record.bytes_down for record in records),
        target=target,
        reached=None if target is None else reached(records, target),
        charts=charts_of(records),
        finished=finished,
    )


def reached(records: Sequence[Record], target: float) -> Reached | None:
    """None where the accuracy never was there."""
    wire, waited = 0, waited_s(records)
    for record in records:
        wire += record.bytes_up + record.bytes_down
        if record.accuracy is not None and record.accuracy >= target:
            return Reached(record.round, wire, round(record.elapsed_s - waited, 3))
    return None


def sentence(of: Summary) -> str:
    """The run in words."""
    done = f"{of.method} trained {of.model} on {counted(of.devices, 'device')} for {counted(of.rounds, 'round')}"
    done += "" if of.finished else " so far"
    accuracy = f" to {of.accuracy:.2%} test accuracy" if of.accuracy is not None else ""
    prepared = f"; {duration(of.prepared_s)} with preparation" if of.prepared_s is not None else ""
    return f"{done}{accuracy}, in {duration(of.seconds)}{prepared}."


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"


def read_summary(place: Path) -> Summary | None:
    """None where a run has none that can be read: `edgefl report` writes it again."""
    try:
        return from_json(read_bytes(place / SUMMARY, MAX_BYTES), Summary)
    except (InputError, ValueError):
        return None
