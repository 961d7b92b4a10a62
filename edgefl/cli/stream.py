"""A run as JSON lines on stdout, one object for each thing that happens, in the order in which it does.

    {"event": "begun", "time": 1767323045.1, "run": "digits-20260102-030405", "method": "fedavg", "classes": ["digits"],
     "rounds": 40, "done": 0}
    {"event": "said", "time": ..., "text": "round 1: 3 of 8 replies"}
    {"event": "round", "time": ..., "record": {"round": 1, "accuracy": 0.91, ...}}
    {"event": "result", "time": ..., "accuracy": 0.97, "rounds": 8, "run_dir": "runs/digits-20260102-030405", ...}

The last is "result" or, with `message`, `hint` and `exit_code`, "error". `record` is as in metrics.jsonl
(edgefl/aggregator/record.py); `done` are the rounds of earlier starts, `rounds` those of the whole run, null where its
length is counted otherwise; `time` counts seconds since 1970.

A device says "said", and how far its work is, several times a second; its last is "left" or "error":

    {"event": "progress", "time": ..., "text": "round 3: train: batch 40 of 120, loss 0.31, 0:12 left"}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from edgefl.cli import about
from edgefl.errors import one_line

if TYPE_CHECKING:
    from edgefl.aggregator.record import Record
    from edgefl.runs.run import Begun


class JsonLines:
    """Writes what happens to stdout, each line as soon as it does."""

    def begun(self, begun: Begun) -> None:
        names = [one.name for one in begun.classes]
        self._write(
            "begun", run=begun.name, method=begun.method, classes=names, rounds=begun.rounds, done=len(begun.records)
        )

    def round_done(self, record: Record) -> None:
        self._write("round", record=record)

    def progress(self, line: str) -> None:
        self._write("said", text=one_line(line))

    def how_far(self, line: str) -> None:
        self._write("progress", text=one_line(line))

    def left(self) -> None:
        self._write("left")

    def result(self, summary: Mapping[str, object]) -> None:
        self._write("result", **summary)

    def error(self, error: Exception) -> None:
        if (said := about(error)) is not None:
            message, hint, exit_code = said
            self._write("error", message=message, hint=hint, exit_code=exit_code)

    def _write(self, event: str, **about: object) -> None:
        from edgefl.aggregator.store import json_line

        click.echo(json_line({"event": event, "time": round(time.time(), 3), **about}), nl=False)


def each(told: Iterable[Callable[[Any], None]]) -> Callable[[Any], None]:
    """What tells all of them."""
    all_told = list(told)

    def tell(what: Any) -> None:
        for one in all_told:
            one(what)

    return tell
