"""confusion.json of a run: how often each class was taken for which, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edgefl.errors import InputError
from edgefl.files import from_json, read_bytes, write_atomic
from edgefl.results.markup import Markup, bar, joined, shaded, table, tag

MOST_CLASSES = 40  # of a matrix that is shown; of more only the accuracies and what is confused most
MOST_CONFUSED = 10
MAX_BYTES = 64 * 2**20


class Confusion(msgspec.Struct, frozen=True):
    """matrix[i][j]: how many examples of class i were taken for class j, by the fused model of that round."""

    classes: list[str]
    matrix: list[list[Annotated[int, Meta(ge=0)]]]
    round: int = 0


def read_confusion(place: Path) -> Confusion | None:
    """None where a run has none that can be read, or whose sizes do not agree."""
    try:
        found = from_json(read_bytes(place / "confusion.json", MAX_BYTES), Confusion)
    except (InputError, ValueError):
        return None
    count = len(found.classes)
    return found if count and [len(row) for row in found.matrix] == [count] * count else None


def write_confusion(place: Path, found: Confusion) -> None:
    """Write RUN_DIR/confusion.json."""
    write_atomic(place / "confusion.json", msgspec.json.encode(found))


def confusion_section(found: Confusion) -> Markup:
    """The accuracy of each class, and what it was taken for."""
    totals = [sum(row) for row in found.matrix]
    right = [row[i] / totals[i] if totals[i] else 0.0 for i, row in enumerate(found.matrix)]
    each = [
        [name, f"{totals[i]:,}", f"{right[i]:.1%}" if totals[i] else "-", tag("td", bar(right[i]), class_="wide")]
        for i, name in enumerate(found.classes)
    ]
    shown = [tag("div", table(["class", "examples", "accuracy", ""], each))]
    if len(found.classes) <= MOST_CLASSES:
        shown.append(tag("div", _matrix(found, totals)))
    parts = [
        tag("h2", "Each class"),
        tag("p", f"The fused model of round {found.round} on the aggregator's data.", class_="more"),
        tag("div", *shown, class_="pair"),
        _confused(found),
    ]
    return joined(parts)


def _matrix(found: Confusion, totals: list[int]) -> Markup:
    rows = [
        [name, *(_cell(found, i, j, totals[i]) for j in range(len(found.classes)))]
        for i, name in enumerate(found.classes)
    ]
    caption = tag("p", "Rows: what it was. Columns: what it was taken for.", class_="more")
    return joined((table(["", *found.classes], rows), caption))


def _cell(found: Confusion, i: int, j: int, total: int) -> Markup:
    count = found.matrix[i][j]
    title = f"{found.classes[i]} taken for {found.classes[j]}: {count:,} of {total:,}"
    return shaded(f"{count:,}" if count else "", count / total if total else 0.0, title=title)


def _confused(found: Confusion) -> Markup:
    """The pairs that are taken for each other most, in words."""
    wrong = sorted(
        ((count, i, j) for i, row in enumerate(found.matrix) for j, count in enumerate(row) if i != j and count),
        key=lambda pair: -pair[0],
    )[:MOST_CONFUSED]
    if not wrong:
        return Markup()
    words = ", ".join(f"{found.classes[i]} for {found.classes[j]} ({count:,})" for count, i, j in wrong)
    return tag("p", f"Most often wrong: {words}.", class_="more")
