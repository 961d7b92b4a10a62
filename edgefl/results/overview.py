"""index.html of a folder of runs: all of them in a table, and the curves of any two over each other."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgefl.errors import InputError
from edgefl.files import read_bytes, write_atomic
from edgefl.results.markup import Markup, joined, table, tag
from edgefl.results.page import page
from edgefl.results.rounds import duration, size
from edgefl.results.summary import Summary, read_summary

INDEX = "index.html"
TITLE = "All runs"
MOST_COMPARED = 50  # runs whose curves are inside the page, the newest
BUCKETS = 25  # of a line's points there
_OURS = (
    f'<meta name="generator" content="edgefl">\n<title>{TITLE}</title>'.encode()
)  # how our page is told from a person's own of that name


def write_overview(runs: Path, *, only_if_there: bool = False) -> Path | None:
    """Write RUNS/index.html; where it is. None where a page of that name is somebody else's, or `only_if_there` and
    there is none."""
    path = runs / INDEX
    if only_if_there and not path.exists():
        return None
    if path.exists() and not _is_ours(path):
        return None
    places = sorted((place.parent for place in runs.glob("*/run.json")), key=_started, reverse=True)
    found = [(place, read_summary(place)) for place in places]
    done = [summary for _, summary in found if summary is not None]
    compared = [summary for summary in done if summary.charts][:MOST_COMPARED]
    body = (
        tag("h1", TITLE),
        table(
            ["run", "method", "model", "devices", "rounds", "accuracy", "up", "down", "time", "with preparation"],
            (_row(place, summary) for place, summary in found),
        ),
        _choice(compared) if len(compared) > 1 else "",
    )
    data = {"runs": [_curves(summary) for summary in compared], "choose": True}
    write_atomic(path, page(TITLE, tag("main", *body), data))
    return path


def _is_ours(path: Path) -> bool:
    try:
        return _OURS in read_bytes(path)
    except InputError:
        return False


def _started(place: Path) -> tuple[float, str]:
    """For the order of runs: a run file is written once."""
    try:
        return (place / "run.toml").stat().st_mtime, place.name
    except OSError:
        return 0.0, place.name


def _row(place: Path, of: Summary | None) -> list[object]:
    if of is None:
        return [place.name, "no report yet", *["-"] * 8]
    name = tag("a", place.name, href=f"{place.name}/report.html")
    accuracy = "-" if of.accuracy is None else f"{of.accuracy:.2%}"
    prepared = "-" if of.prepared_s is None else duration(of.prepared_s)
    rounds = f"{of.rounds:,}" if of.finished else f"{of.rounds:,} so far"
    counts = (f"{of.devices:,}", rounds, accuracy, size(of.bytes_up), size(of.bytes_down))
    return [name, of.method, of.model, *counts, duration(of.seconds), prepared]


def _curves(of: Summary) -> dict[str, object]:
    """What a comparison draws of a run: what there is one line of, and fewer points than in its own report."""
    charts = [
        {**msgspec.to_builtins(chart), "lines": [msgspec.to_builtins(line.thinned(BUCKETS)) for line in chart.lines]}
        for chart in of.charts
        if len(chart.lines) == 1
    ]
    return {"name": of.name, "target": of.target, "charts": charts}


def _choice(compared: list[Summary]) -> Markup:
    """Two lists to choose from; the script draws the two runs."""

    def options(chosen: int) -> Markup:
        return joined(tag("option", one.name, value=i, selected=i == chosen) for i, one in enumerate(compared))

    lists = (
        tag("label", text, tag("select", options(chosen), id=f"run-{chosen}"))
        for chosen, text in enumerate(("this run, ", "and dashed, "))
    )
    without = tag("noscript", tag("p", "Comparing needs JavaScript; each run has its own report.", class_="more"))
    drawn = tag("div", id="charts", class_="charts")
    return joined((tag("h2", "Two runs over each other"), without, tag("p", *lists, class_="choice"), drawn))
