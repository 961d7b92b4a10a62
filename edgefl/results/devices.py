"""What a run knows of its devices: who they are, what they hold, how they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgefl.aggregator.fleet import Known
from edgefl.aggregator.record import Record
from edgefl.results.curves import natural
from edgefl.results.events import Event, last_seen, seconds_of_devices
from edgefl.results.markup import Markup, joined, shaded, table, tag
from edgefl.results.rounds import duration, size

MOST_DEVICES = 100  # that are listed
MOST_LABELS = 40  # columns of labels

Cells = dict[str, str]  # device -> what its cell of a column shows


def devices_section(
    records: Sequence[Record],
    events: Sequence[Event],
    known: Mapping[str, Known],
    settings: Mapping[str, Mapping[str, float]],
) -> Markup:
    """A table of devices. `settings`: what each has of its own, as the budget of a solve."""
    names = sorted({*known, *settings, *(device for r in records for device in r.devices)}, key=natural)
    if not names:
        return Markup()
    rows = _Rows(records, events, known, settings)
    shared, differing = _alike(names, rows.stated())
    columns = [(title, cells) for title, cells in (*differing, *rows.did()) if any(map(cells.get, names))]
    odd = rows.notes()
    shown = [
        [tag("span", name, class_="odd") if name in odd else name, *(cells.get(name, "-") for _, cells in columns)]
        for name in names[:MOST_DEVICES]
    ]
    head = ["device", *(title for title, _ in columns)]
    return joined(
        (
            tag("h2", "Devices"),
            tag("p", f"All of them: {shared}.", class_="more") if shared else "",
            tag("ul", *(tag("li", name, ": ", text) for name, text in odd.items()), class_="odd") if odd else "",
            table(head, shown, more=_more(len(names), MOST_DEVICES, "device")),
        )
    )


def _alike(names: Sequence[str], columns: Sequence[tuple[str, Cells]]) -> tuple[str, list[tuple[str, Cells]]]:
    """What is the same for all devices, in words, and the columns that differ."""
    shared, differing = [], []
    for title, cells in columns:
        values = {cells.get(name, "") for name in names}
        if len(names) > 1 and len(values) == 1:
            shared += [f"{title} {value}" for value in values if value]
        else:
            differing.append((title, cells))
    return ", ".join(shared), differing


class _Rows:
    """The columns of the table of devices, in order."""

    def __init__(
        self,
        records: Sequence[Record],
        events: Sequence[Event],
        known: Mapping[str, Known],
        settings: Mapping[str, Mapping[str, float]],
    ) -> None:
        self.records, self.events, self.known, self.settings = records, events, known, settings
        self.last = {device: record for record in records for device in record.devices}

    def stated(self) -> list[tuple[str, Cells]]:
        """What a device is, by its own word or the run's, and whether it still is there."""
        known = self.known.items()
        keys = sorted({key for own in self.settings.values() for key in own})
        return [
            ("class", {name: one.name for name, one in known}),
            ("memory", {name: size(one.memory_mb * 2**20) for name, one in known if one.memory_mb}),
            ("cores", {name: str(one.cores) for name, one in known if one.cores}),
            ("runtime", {name: one.runtime for name, one in known}),
            ("last reply", {name: f"round {record.round:,}" for name, record in self.last.items()}),
            *((key, _numbers({name: own.get(key) for name, own in self.settings.items()}, "g")) for key in keys),
        ]

    def did(self) -> list[tuple[str, Cells]]:
        """What a device holds, did and measured."""
        known = self.known.items()
        replies = Counter(device for record in self.records for device in record.devices)
        wire: Counter[str] = Counter()
        for record in self.records:
            wire.update(record.bytes_up_by_device)
        failed = Counter(event.device for event in self.events if event.event == "failed")
        return [
            ("examples", {name: f"{one.examples:,}" for name, one in known if one.examples}),
            ("test", {name: f"{one.test_examples:,}" for name, one in known if one.test_examples}),
            ("replies", {name: f"{count:,}" for name, count in replies.items()}),
            ("up", {name: size(count) for name, count in wire.items()}),
            ("seconds a round", {name: f"{s:.2f}" for name, s in seconds_of_devices(self.events).items()}),
            *self._measured(),
            ("weight, last", _numbers({d: r.weights.get(d) for d, r in self.last.items()}, ".3f")),
            ("weight, mean", _numbers(_means(self.records), ".3f")),
            ("failures", {name: f"{n:,}" for name in {*failed, *self.known} if (n := self._failures(name, failed))}),
            ("last seen", {name: f"after {duration(seconds)}" for name, seconds in last_seen(self.events).items()}),
            ("missed", {name: f"{one.missed:,}" for name, one in known if one.missed}),
        ]

    def _failures(self, name: str, failed: Mapping[str, int]) -> int:
        return max(failed.get(name, 0), self.known[name].failures if name in self.known else 0)

    def _measured(self) -> list[tuple[str, Cells]]:
        """What devices measured when they last did: loss, accuracy, the steps and the residual of a solver."""
        found: dict[str, Mapping[str, float | None]] = {}
        for record in self.records:
            found.update(record.measured)
        columns: list[tuple[str, Cells]] = []
        for key in sorted({key for metrics in found.values() for key in metrics}):
            program, _, output = key.partition(".")
            if output == "correct":
                shares = {d: _share(m.get(key), m.get(f"{program}.examples")) for d, m in found.items()}
                columns.append((f"{program} accuracy", _numbers(shares, ".1%")))
            elif output != "examples":
                columns.append((key.replace(".", " ").replace("_", " "), _numbers(_of(found, key), ".4g")))
        return columns

    def notes(self) -> dict[str, str]:
        """What is odd about a device: its data, and the newest word on what it sends."""
        odd: dict[str, str] = {}
        for record in self.records:
            odd.update(record.odd)
        both = (
            (name, [self.known[name].data if name in self.known else "", odd.get(name, "")])
            for name in sorted({*self.known, *odd}, key=natural)
        )
        return {name: "; ".join(filter(None, texts)) for name, texts in both if any(texts)}


def _of(found: Mapping[str, Mapping[str, float | None]], key: str) -> dict[str, float | None]:
    return {device: metrics.get(key) for device, metrics in found.items()}


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _means(records: Sequence[Record]) -> dict[str, float | None]:
    """How much each device counted in the mean of the rounds it took part in."""
    found: dict[str, list[float]] = {}
    for record in records:
        for device, weight in record.weights.items():
            if weight is not None:
                found.setdefault(device, []).append(weight)
    return {device: sum(weights) / len(weights) for device, weights in found.items()}


def _numbers(values: Mapping[str, float | None], form: str) -> Cells:
    return {device: format(value, form) for device, value in values.items() if value is not None}


def _more(count: int, most: int, noun: str) -> str:
    return f"and {count - most:,} more {noun}s" if count > most else ""


# --- labels ---------------------------------------------------------------------------------------------------------


def labels_section(known: Mapping[str, Known], names: Sequence[str]) -> Markup:
    """Who holds which labels. `names` of the classes, by their number."""
    held = {device: one.label_counts for device, one in sorted(known.items(), key=lambda d: natural(d[0]))}
    counts = {device: _named(found, names) for device, found in held.items() if found}
    if not counts:
        return Markup()
    labels = sorted({label for found in counts.values() for label in found}, key=_order(names))
    shown = labels[:MOST_LABELS]
    most = max(count for found in counts.values() for count in found.values()) or 1
    rows = [
        [device, *(_held(device, label, found.get(label, 0), most) for label in shown), f"{sum(found.values()):,}"]
        for device, found in list(counts.items())[:MOST_DEVICES]
    ]
    more = ", ".join(
        filter(None, (_more(len(counts), MOST_DEVICES, "device"), _more(len(labels), MOST_LABELS, "label")))
    )
    words = tag("p", "Training examples of each label on each device; the darker, the more.", class_="more")
    return joined((tag("h2", "Who holds which classes"), words, table(["device", *shown, "all"], rows, more=more)))


def _named(found: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    number = {str(i): name for i, name in enumerate(names)}
    return {label if label in names else number.get(label, label): count for label, count in found.items()}


def _order(names: Sequence[str]) -> Any:
    place = {name: i for i, name in enumerate(names)}
    return lambda label: (place.get(label, len(place)), natural(label))


def _held(device: str, label: str, count: int, most: int) -> Markup:
    return shaded(f"{count:,}" if count else "", count / most, title=f"{device}: {count:,} of {label}")
