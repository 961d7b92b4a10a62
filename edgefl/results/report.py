"""report.html of a run: its curves as pictures, its rounds as a table. Needs no network to be viewed."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefl.aggregator.store import Record
from edgefl.files import write_atomic
from edgefl.results.figures import empty, percent, png, svg

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1b1f24 }}
h1 {{ font-size: 1.4rem }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
.facts {{ display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0 }}
.facts b {{ display: block; font-size: 1.5rem }}
.curves img {{ width: 100%; max-width: 31rem }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }}
td, th {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #d0d7de }}
pre {{ background: #f6f8fa; padding: 1rem; overflow: auto; font-size: .85rem }}
</style></head><body>
<h1>{title}</h1>
<div class="facts">{facts}</div>
<h2>Curves</h2><div class="curves">{curves}</div>
{album}{classes}<h2>Rounds</h2><table><tr>{head}</tr>{rows}</table>
{weights}
<h2>Run file</h2><pre>{config}</pre>
</body></html>
"""


@dataclass(frozen=True)
class ClassRow:
    """A device class in the report: its condition, how many devices have it, its bundle's bytes and those it shares."""

    name: str
    condition: str
    devices: int
    bundle_bytes: int
    shared_bytes: int


def write_report(
    path: Path,
    title: str,
    records: Sequence[Record],
    config: str,
    classes: Sequence[ClassRow] = (),
    *,
    album: Path | None = None,
    beside: Sequence[Record] = (),
) -> None:
    """Write the report; several classes get a table. Raises InputError without the matplotlib package.

    `album`: a folder of pictures, epoch by epoch. `beside`: the records of another run, whose devices' accuracies are
    drawn dashed beside those of this one.
    """
    shown = Rows(records).rows
    columns = [c for c in COLUMNS if any(c.key in r and r[c.key] is not None for r in shown)]
    page = _PAGE.format(
        title=html.escape(title),
        facts="".join(f"<div>{html.escape(name)}<b>{html.escape(value)}</b></div>" for name, value in facts(records)),
        curves="".join(_curve(records, key, label) for key, label in _CURVES) + _devices(records, beside),
        album=_album(album) if album is not None else "",
        classes=_classes(classes) if len(classes) > 1 else "",
        head="".join(f"<th>{c.title}</th>" for c in columns),
        rows="".join("<tr>" + "".join(f"<td>{c.cell(r)}</td>" for c in columns) + "</tr>" for r in shown),
        weights=_weights(records),
        config=html.escape(config),
    )
    write_atomic(path, page.encode())


class Column:
    """One column of the table of rounds, on the terminal and in the report."""

    def __init__(self, title: str, key: str, form: str) -> None:
        self.title, self.key, self.form = title, key, form

    def cell(self, record: Record) -> str:
        value = record.get(self.key)
        if value is None:
            return "-"
        if self.form == "bytes":
            return size(value)
        if self.form == "replies":
            return f"{value}/{record['asked']}"
        return format(value, self.form)


LIKENESS = "likeness.likeness_most"
SUMMED = ("bytes_up", "bytes_down", "seconds")
OWN = "evaluate.accuracy"  # the column of what devices measure on their own test data

COLUMNS = (
    Column("round", "round", "d"),
    Column("replies", "replies", "replies"),
    Column("training loss", "train.loss", ".4f"),
    Column("test loss", "loss", ".4f"),
    Column("test accuracy", "accuracy", ".2%"),
    Column("own accuracy", OWN, ".2%"),
    Column("up", "bytes_up", "bytes"),
    Column("down", "bytes_down", "bytes"),
    Column("seconds", "seconds", ".2f"),
)

MOST_WEIGHTS = 50  # devices whose weights are listed

_CURVES = (
    ("accuracy", "test accuracy"),
    ("loss", "test loss"),
    ("train.loss", "training loss"),
    ("seconds", "seconds per round"),
    (LIKENESS, "greatest likeness of a dream to an image of a device, cosine"),
)

MOST_CURVES = 12  # devices whose accuracies are drawn
MOST_PICTURES = 8  # epochs of an album that are shown


class Rows:
    """The rounds in which devices trained, each with the bytes and seconds of those before that it follows: the steps
    of a dream are no rows of a table."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.rows: list[Record] = []
        self._sums = dict.fromkeys(SUMMED, 0.0)
        for record in records:
            self.add(record)

    def add(self, record: Record) -> bool:
        """Whether it is a row."""
        self._sums = {key: value + record[key] for key, value in self._sums.items()}
        if not any(key.startswith("train.") for key in record):
            return False
        self.rows.append(record | self._sums)
        self._sums = dict.fromkeys(SUMMED, 0.0)
        return True


def facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What a reader wants first: name and value."""
    if not records:
        return [("rounds", "0")]
    last = records[-1]
    found = [("rounds", str(last["round"]))]
    if last.get("accuracy") is not None:
        found.insert(0, ("test accuracy", f"{last['accuracy']:.2%}"))
    found.append(("time", f"{last['elapsed_s']:.1f} s"))
    found.append(("bytes up", size(sum(r["bytes_up"] for r in records))))
    found.append(("bytes down", size(sum(r["bytes_down"] for r in records))))
    found.append(("devices", str(len({d for r in records for d in r["devices"]}))))
    return found


def size(count: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _classes(classes: Sequence[ClassRow]) -> str:
    rows = [
        (html.escape(c.name), html.escape(c.condition or "any"), c.devices, size(c.bundle_bytes), size(c.shared_bytes))
        for c in classes
    ]
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{title}</th>" for title in ("class", "for", "devices", "bundle", "shared"))
    return f"<h2>Device classes</h2><table><tr>{head}</tr>{cells}</table>\n"


def _weights(records: Sequence[Record]) -> str:
    """How much each device counted, in the last round and in the mean of those it took part in; few devices only."""
    devices = sorted({device for r in records for device in r.get("weights", {})})
    if not 0 < len(devices) <= MOST_WEIGHTS:
        return ""
    rows = []
    for device in devices:
        found = [r["weights"][device] for r in records if device in r.get("weights", {})]
        last = records[-1]["weights"].get(device)
        cells = (html.escape(device), "-" if last is None else f"{last:.3f}", f"{sum(found) / len(found):.3f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<h2>Weights</h2><table><tr><th>device</th><th>last round</th><th>mean</th></tr>{''.join(rows)}</table>"


def _album(folder: Path) -> str:
    """The pictures of some epochs, the last among them, and of the path of one dream."""
    epochs = sorted(path for path in folder.glob("epoch-*.png") if not path.stem.endswith("-path"))
    if not epochs:
        return ""
    chosen = sorted({round(i * (len(epochs) - 1) / max(1, MOST_PICTURES - 1)) for i in range(MOST_PICTURES)})
    figures = []
    for path in (epochs[i] for i in chosen if i < len(epochs)):
        title = f"epoch {int(path.stem.removeprefix('epoch-'))}"
        steps = path.with_name(f"{path.stem}-path.png")
        pictures = "".join(png(p, f"{what} of {title}") for p, what in ((path, "dreams"), (steps, "path of one dream")))
        figures.append(
            f"<details{' open' if path == epochs[-1] else ''}><summary>{title}</summary>{pictures}</details>"
        )
    return (
        "<h2>Dreams</h2><p>Each with the class that its label gives most; below them one dream, from noise to its "
        f"end. The files are in <code>{html.escape(folder.name)}/</code>.</p>{''.join(figures)}\n"
    )


def own_accuracies(records: Sequence[Record]) -> dict[str, list[tuple[int, float]]]:
    """Device -> the number of each evaluation of the run that it took part in, from 1, and its accuracy then."""
    found: dict[str, list[tuple[int, float]]] = {}
    number = 0
    for record in records:
        accuracies = {
            device: metrics["evaluate.correct"] / metrics["evaluate.examples"]
            for device, metrics in record.get("measured", {}).items()
            if metrics.get("evaluate.examples") and "evaluate.correct" in metrics
        }
        number += bool(accuracies)
        for device, accuracy in accuracies.items():
            found.setdefault(device, []).append((number, accuracy))
    return found


def _devices(records: Sequence[Record], beside: Sequence[Record]) -> str:
    """The accuracy of each device on its own test data, of few devices only."""
    own, other = own_accuracies(records), own_accuracies(beside)
    own = {device: values for device, values in sorted(own.items()) if len(values) > 1}
    if not 0 < len(own) <= MOST_CURVES:
        return ""
    figure, axes = empty("each device, on its own test data" + (", dashed: beside" if other else ""), "evaluation")
    for i, (device, values) in enumerate(own.items()):
        axes.plot(*zip(*values, strict=True), color=f"C{i % 10}", label=device, linewidth=1.5)
        if device in other:
            axes.plot(*zip(*other[device], strict=True), color=f"C{i % 10}", linestyle="--", linewidth=1)
    axes.legend(fontsize=7, frameon=False)
    percent(axes)
    return svg(figure, "accuracy of each device")


def _curve(records: Sequence[Record], key: str, label: str) -> str:
    """One curve, or nothing where no round has the value."""
    points = [(r["round"], r[key]) for r in records if r.get(key) is not None]
    if key == LIKENESS:  # in a record it is the mean over devices
        points = [(r["round"], max(m.get(key, 0.0) for m in r["measured"].values())) for r in records if key in r]
    if not points:
        return ""
    figure, axes = empty(label, "round")
    axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, color="#0969da")
    if key == "accuracy":
        percent(axes)
    else:
        axes.set_ylim(bottom=0)
    return svg(figure, f"{label} by round")
