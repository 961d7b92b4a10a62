"""report.html of a run: its curves as pictures, its rounds as a table. Needs no network to be viewed."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefl.aggregator.record import Record
from edgefl.files import write_atomic
from edgefl.results.figures import empty, percent, png, svg
from edgefl.results.rounds import COLUMNS, Rows, Value, facts, metric, size

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
{pictures}{classes}<h2>Rounds</h2><table><tr>{head}</tr>{rows}</table>
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
    pictures: Path | None = None,
    beside: Sequence[Record] = (),
) -> None:
    """Write the report; several classes get a table. Raises InputError without the matplotlib package.

    `pictures`: a folder of sheets. `beside`: the records of another run, whose devices' accuracies are
    drawn dashed beside those of this one.
    """
    shown = Rows(records).rows
    columns = [column for column in COLUMNS if any(column.value(record) is not None for record in shown)]
    page = _PAGE.format(
        title=html.escape(title),
        facts="".join(f"<div>{html.escape(name)}<b>{html.escape(value)}</b></div>" for name, value in facts(records)),
        curves="".join(_curve(records, *curve) for curve in (*_CURVES, *_extremes(records)))
        + _devices(records, beside),
        pictures=_pictures(pictures) if pictures is not None else "",
        classes=_classes(classes) if len(classes) > 1 else "",
        head="".join(f"<th>{c.title}</th>" for c in columns),
        rows="".join("<tr>" + "".join(f"<td>{c.cell(r)}</td>" for c in columns) + "</tr>" for r in shown),
        weights=_weights(records),
        config=html.escape(config),
    )
    write_atomic(path, page.encode())


MOST = "_most"  # how a metric ends of which the greatest over devices says something, and not the mean


def _greatest(name: str) -> Value:
    """The greatest of all devices."""
    return lambda record: max((m.get(name) or 0.0 for m in record.measured.values()), default=None)


MOST_WEIGHTS = 50  # devices whose weights are listed

ACCURACY = "test accuracy"
_CURVES: tuple[tuple[str, Value], ...] = (
    (ACCURACY, lambda r: r.accuracy),
    ("test loss", lambda r: r.loss),
    ("training loss", metric("train.loss")),
    ("seconds per round", lambda r: r.seconds),
)


def _extremes(records: Sequence[Record]) -> list[tuple[str, Value]]:
    """A curve for each metric whose greatest value over devices counts."""
    names = sorted({name for record in records for name in record.metrics if name.endswith(MOST)})
    return [(f"greatest {name.partition('.')[0]} of any device", _greatest(name)) for name in names]


MOST_CURVES = 12  # devices whose accuracies are drawn
MOST_PICTURES = 8  # sheets that are shown


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
    devices = sorted({device for r in records for device in r.weights})
    if not 0 < len(devices) <= MOST_WEIGHTS:
        return ""
    rows = []
    for device in devices:
        found = [weight for r in records if (weight := r.weights.get(device)) is not None]
        last = records[-1].weights.get(device)
        cells = (html.escape(device), "-" if last is None else f"{last:.3f}", f"{sum(found) / len(found):.3f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<h2>Weights</h2><table><tr><th>device</th><th>last round</th><th>mean</th></tr>{''.join(rows)}</table>"


def _pictures(folder: Path) -> str:
    """The sheets of a run's pictures, WHAT-NUMBER.png and WHAT-NUMBER-MORE.png: those of some numbers, the last among
    them."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.png"), key=lambda path: path.stem):
        if (group := re.match(r"[^-]+-[0-9]+", path.stem)) is not None:
            groups.setdefault(group[0], []).append(path)
    if not groups:
        return ""
    names = list(groups)
    chosen = sorted({round(i * (len(names) - 1) / max(1, MOST_PICTURES - 1)) for i in range(MOST_PICTURES)})
    figures = []
    for name in (names[i] for i in chosen if i < len(names)):
        what, _, number = name.partition("-")
        title = f"{what} {int(number)}"
        shown = "".join(png(path, f"pictures of {title}") for path in groups[name])
        figures.append(
            f"<details{' open' if name == names[-1] else ''}><summary>{html.escape(title)}</summary>{shown}</details>"
        )
    return f"<h2>Pictures</h2><p>The files are in <code>{html.escape(folder.name)}/</code>.</p>{''.join(figures)}\n"


def own_accuracies(records: Sequence[Record]) -> dict[str, list[tuple[int, float]]]:
    """Device -> the number of each evaluation of the run that it took part in, from 1, and its accuracy then."""
    found: dict[str, list[tuple[int, float]]] = {}
    number = 0
    for record in records:
        accuracies = {
            device: correct / examples
            for device, metrics in record.measured.items()
            if (examples := metrics.get("evaluate.examples"))
            and (correct := metrics.get("evaluate.correct")) is not None
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


def _curve(records: Sequence[Record], label: str, value: Value) -> str:
    """One curve, or nothing where no round has the value."""
    points = [(record.round, y) for record in records if (y := value(record)) is not None]
    if not points:
        return ""
    figure, axes = empty(label, "round")
    axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, color="#0969da")
    if label == ACCURACY:
        percent(axes)
    else:
        axes.set_ylim(bottom=0)
    return svg(figure, f"{label} by round")
