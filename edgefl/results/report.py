"""report.html of a run: what it came to in words, its curves, its devices, its rounds. Needs nothing but a browser."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgefl.aggregator.fleet import Known
from edgefl.aggregator.record import Record
from edgefl.files import write_atomic
from edgefl.results.confusion import Confusion, confusion_section
from edgefl.results.devices import devices_section, labels_section
from edgefl.results.events import Event, Timed, evenly, lanes, timed
from edgefl.results.markup import Markup, joined, table, tag
from edgefl.results.page import page
from edgefl.results.rounds import COLUMNS, Rows, duration, facts, size
from edgefl.results.summary import Summary, counted, sentence

MOST_ROWS = 200  # rounds in the table
MOST_EVENTS = 200  # in the table
MOST_PICTURES = 8  # sheets that are shown
FILES = {
    "model.onnx": "predicts",
    "models": "models that predict",
    "weights.safetensors": "the fused weights",
    "confusion.json": "which class was taken for which",
    "metrics.jsonl": "every round",
    "events.jsonl": "what happened",
    "summary.json": "this page's curves",
    "run.toml": "the run file",
}


@dataclass(frozen=True)
class ClassRow:
    """A device class in the report: its condition, how many devices have it, its bundle's bytes and those it shares."""

    name: str
    condition: str
    devices: int
    bundle_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Story:
    """What a report is made from.

    place       the run directory: its files are linked, its pictures shown
    config      the run file, as text
    paper       where the method was published, as text
    about       of versions and machine: name and value
    known       of the devices, by name
    settings    that devices have of their own, by device
    labels      the names of the classes
    """

    summary: Summary
    records: Sequence[Record]
    place: Path
    config: str
    paper: str = ""
    about: Sequence[tuple[str, str]] = ()
    classes: Sequence[ClassRow] = ()
    events: Sequence[Event] = ()
    known: Mapping[str, Known] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: Sequence[str] = ()
    confusion: Confusion | None = None


def write_report(path: Path, story: Story, *, beside: Summary | None = None) -> None:
    """Write the report. `beside`: another run, whose curves are drawn over this one's."""
    happened = timed(story.events)
    runs = [story.summary, *([beside] if beside is not None else [])]
    data = {"runs": [msgspec.to_builtins(run) for run in runs], "events": _dots(happened)}
    body = (
        tag("h1", story.summary.name),
        tag("p", sentence(story.summary), _aim(story.summary), class_="lead"),
        _beside(beside) if beside is not None else "",
        tag("div", *(tag("div", name, tag("b", value)) for name, value in facts(story.records)), class_="facts"),
        _curves(story.summary, beside),
        confusion_section(story.confusion) if story.confusion is not None else "",
        devices_section(story.records, story.events, story.known, story.settings),
        labels_section(story.known, story.labels),
        _classes(story.classes) if len(story.classes) > 1 else "",
        _pictures(story.place / "pictures"),
        _rounds(story.records),
        _events(happened),
        _method(story),
        _files(story.place),
        tag("h2", "Run file"),
        tag("pre", story.config),
    )
    write_atomic(path, page(story.summary.name, tag("main", *body), data))


# --- parts ----------------------------------------------------------------------------------------------------------


def _aim(of: Summary) -> str:
    """Whether and when the target was reached, in words."""
    if of.target is None:
        return ""
    if of.reached is None:
        return f" Its target of {of.target:.2%} was not reached."
    wire, seconds = size(of.reached.bytes), duration(of.reached.seconds)
    return f" Its target of {of.target:.2%} was reached in round {of.reached.round:,}, after {wire} and {seconds}."


def _beside(other: Summary) -> Markup:
    return tag("p", "Beside it, dashed: ", tag("b", other.name), ". ", sentence(other), _aim(other), class_="lead")


def _curves(of: Summary, beside: Summary | None) -> Markup:
    if not of.charts and not (beside is not None and beside.charts):
        return Markup()
    told = "Point at a chart, or focus it and use the arrow keys, to read its values."
    without = tag("noscript", tag("p", "The charts need JavaScript; the tables below do not.", class_="more"))
    return joined(
        (tag("h2", "Curves"), tag("p", told, class_="more"), without, tag("div", id="charts", class_="charts"))
    )


def _rounds(records: Sequence[Record]) -> Markup:
    rows = Rows(records).rows
    columns = [column for column in COLUMNS if any(column.value(record) is not None for record in rows)]
    if not rows:
        return Markup()
    shown = [rows[i] for i in sorted({round(i * (len(rows) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)})]
    more = f"{len(shown)} of {len(rows):,} rows; metrics.jsonl has them all" if len(shown) < len(rows) else ""
    cells = ([column.cell(record) for column in columns] for record in shown)
    return joined((tag("h2", "Rounds"), table([column.title for column in columns], cells, more=more)))


def _classes(classes: Sequence[ClassRow]) -> Markup:
    rows = [(c.name, c.condition or "any", c.devices, size(c.bundle_bytes), size(c.shared_bytes)) for c in classes]
    return joined((tag("h2", "Device classes"), table(["class", "for", "devices", "bundle", "shared"], rows)))


def _dots(happened: Sequence[Timed]) -> list[dict[str, object]]:
    """The time line: of each kind of event when, and what."""
    return [
        {"name": kind, "seconds": [one.seconds for one in found], "words": [one.event.words for one in found]}
        for kind, found in lanes(happened).items()
    ]


def _events(happened: Sequence[Timed]) -> Markup:
    if not happened:
        return Markup()
    shown = evenly(list(happened), MOST_EVENTS)
    rows = [(duration(one.seconds), one.event.event, one.event.words) for one in shown]
    more = f"{len(shown)} of {len(happened):,} events; events.jsonl has them all" if len(shown) < len(happened) else ""
    listed = tag(
        "details", tag("summary", counted(len(happened), "event")), table(["after", "what", ""], rows, more=more)
    )
    return joined((tag("h2", "What happened"), tag("div", id="events", class_="charts"), listed))


def _method(story: Story) -> Markup:
    told = [("method", story.summary.method), *([("paper", _paper(story.paper))] if story.paper else []), *story.about]
    rows = joined(joined((tag("dt", name), tag("dd", value))) for name, value in told)
    return joined((tag("h2", "Method and machine"), tag("dl", rows)))


def _paper(text: str) -> Markup:
    """The reference, its numbers on arXiv as links."""
    parts = re.split(r"(arXiv:[0-9]{4}\.[0-9]{4,5})", text)
    return joined(
        tag("a", part, href=f"https://arxiv.org/abs/{part[6:]}", rel="noreferrer") if i % 2 else part
        for i, part in enumerate(parts)
    )


def _files(place: Path) -> Markup:
    there = [(name, what) for name, what in FILES.items() if (place / name).exists()]
    if not there:
        return Markup()
    items = (tag("li", tag("a", name, href=name), f": {what}") for name, what in there)
    everything = tag("li", tag("a", "all runs", href="../index.html"), " of this folder")
    return joined((tag("h2", "Files"), tag("ul", *items, everything)))


def _pictures(folder: Path) -> Markup:
    """The sheets of a run's pictures, WHAT-NUMBER.png and WHAT-NUMBER-MORE.png: those of some numbers, the last among
    them."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.png"), key=lambda path: path.stem):
        if (group := re.match(r"[^-]+-[0-9]+", path.stem)) is not None:
            groups.setdefault(group[0], []).append(path)
    if not groups:
        return Markup()
    names = list(groups)
    chosen = sorted({round(i * (len(names) - 1) / max(1, MOST_PICTURES - 1)) for i in range(MOST_PICTURES)})
    figures = []
    for name in (names[i] for i in chosen if i < len(names)):
        what, _, number = name.partition("-")
        title = f"{what} {int(number)}"
        shown = (_png(path, f"pictures of {title}") for path in groups[name])
        figures.append(tag("details", tag("summary", title), *shown, open=name == names[-1]))
    words = tag("p", "The files are in ", tag("code", f"{folder.name}/"), ".", class_="more")
    return joined((tag("h2", "Pictures"), words, *figures))


def _png(path: Path, what: str) -> Markup:
    """The picture, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return tag("p", tag("img", alt=what, src=f"data:image/png;base64,{data}"))
