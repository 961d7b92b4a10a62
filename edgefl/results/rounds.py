"""The rounds of a run as rows of a table, on the terminal and in the report, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from edgefl.aggregator.record import Record

SUMMED = ("bytes_up", "bytes_down", "seconds")

Value = Callable[[Record], float | None]  # what a column or a curve shows of a round


def metric(name: str) -> Value:
    return lambda record: record.metrics.get(name)


@dataclass(frozen=True)
class Column:
    """One column of the table of rounds, on the terminal and in the report."""

    title: str
    value: Value
    form: str | Callable[[Record], str]  # a format, or what makes the cell of a record

    def cell(self, record: Record) -> str:
        value = self.value(record)
        if value is None:
            return "-"
        return format(value, self.form) if isinstance(self.form, str) else self.form(record)


OWN = Column("own accuracy", metric("evaluate.accuracy"), ".2%")  # what devices measure on their own test data

COLUMNS = (
    Column("round", lambda r: r.round, "d"),
    Column("replies", lambda r: r.replies, lambda r: f"{r.replies}/{r.asked}"),
    Column("training loss", metric("train.loss"), ".4f"),
    Column("test loss", lambda r: r.loss, ".4f"),
    Column("test accuracy", lambda r: r.accuracy, ".2%"),
    OWN,
    Column("up", lambda r: r.bytes_up, lambda r: size(r.bytes_up)),
    Column("down", lambda r: r.bytes_down, lambda r: size(r.bytes_down)),
    Column("seconds", lambda r: r.seconds, ".2f"),
)


class Rows:
    """The rounds in which devices trained, each with the bytes and seconds of those before that it follows: the steps
    of a dream are no rows of a table."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.rows: list[Record] = []
        self._since: list[Record] = []  # the last row
        for record in records:
            self.add(record)

    def add(self, record: Record) -> bool:
        """Whether it is a row."""
        self._since.append(record)
        if not any(name.startswith("train.") for name in record.metrics):
            return False
        sums = {name: sum(getattr(one, name) for one in self._since) for name in SUMMED}
        self.rows.append(msgspec.structs.replace(record, **sums))
        self._since.clear()
        return True


def facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What a reader wants first: name and value. The time is from the first announcement on."""
    if not records:
        return [("rounds", "0")]
    last = records[-1]
    found = [("rounds", str(last.round))]
    if last.accuracy is not None:
        found.insert(0, ("test accuracy", f"{last.accuracy:.2%}"))
    found.append(("time", duration(last.elapsed_s - waited_s(records))))
    found.append(("bytes up", size(sum(r.bytes_up for r in records))))
    found.append(("bytes down", size(sum(r.bytes_down for r in records))))
    found.append(("devices", str(len({d for r in records for d in r.devices}))))
    return found


def waited_s(records: Sequence[Record]) -> float:
    """How long a run waited for its first devices: its time until the first announcement."""
    return max(0.0, records[0].elapsed_s - records[0].seconds) if records else 0.0


def duration(seconds: float) -> str:
    """A time for people: 8.0 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
