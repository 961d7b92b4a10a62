"""index.html of a folder of runs: all of them, any two to be compared, and no page of a person's overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from pages import Page
from records import record

from edgefl.results.overview import write_overview
from edgefl.results.summary import SUMMARY, summary_of


def make_run(runs: Path, name: str, *, rounds: int = 3, started: int = 0, done: bool = True) -> None:
    place = runs / name
    place.mkdir(parents=True)
    (place / "run.json").write_text("{}")
    (place / "run.toml").write_text("")
    os.utime(place / "run.toml", (started, started))
    found = [
        record(n, accuracy=0.5, measured={"pi-1": {"train.x": 1.0}}, metrics={"train.x": 1.0})
        for n in range(1, rounds + 1)
    ]
    if done:
        summary = summary_of(found, name=name, method="FedAvg", model="zoo:digits", before_s=2.0, target=0.4)
        (place / SUMMARY).write_bytes(msgspec.json.encode(summary))


def page(runs: Path) -> Page:
    assert write_overview(runs) == runs / "index.html"
    return Page((runs / "index.html").read_text())


def test_all_runs_the_newest_first(tmp_path: Path) -> None:
    make_run(tmp_path, "old", started=1)
    make_run(tmp_path, "new", started=3)
    make_run(tmp_path, "on-its-way", started=2, done=False)
    (tmp_path / "no-run").mkdir()
    found = page(tmp_path)
    head, *rows = found.rows("run")
    assert [row[0] for row in rows] == ["new", "on-its-way", "old"]
    assert dict(zip(head, rows[0], strict=True)) == {
        "run": "new",
        "method": "FedAvg",
        "model": "zoo:digits",
        "devices": "1",
        "rounds": "3",
        "accuracy": "50.00%",
        "up": "0 B",
        "down": "0 B",
        "time": "1.5 s",
        "with preparation": "3.5 s",
    }
    assert rows[1][1] == "no report yet"
    assert [a["href"] for tag, a in found.tags if tag == "a"] == ["new/report.html", "old/report.html"]


def test_two_of_them_are_chosen_to_be_drawn(tmp_path: Path) -> None:
    make_run(tmp_path, "old", started=1)
    make_run(tmp_path, "new", rounds=5000, started=3)
    found = page(tmp_path)
    assert found.all("option") == ["new", "old"] * 2
    assert [i for i, (_, a) in enumerate(t for t in found.tags if t[0] == "option") if "selected" in a] == [0, 3]
    assert found.data["choose"] is True
    new, old = found.data["runs"]
    assert (new["name"], old["name"], old["target"]) == ("new", "old", 0.4)
    assert old["charts"][0]["lines"][0]["value"] == [0.5, 0.5, 0.5]
    assert len(new["charts"][0]["lines"][0]["round"]) <= 100 and new["charts"][0]["lines"][0]["round"][-1] == 5000


def test_one_run_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    make_run(tmp_path, "only")
    assert page(tmp_path).all("option") == []


def test_a_page_of_somebody_elses_stays(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    (tmp_path / "index.html").write_text("<title>My holidays</title>")
    assert write_overview(tmp_path) is None
    assert (tmp_path / "index.html").read_text() == "<title>My holidays</title>"


def test_it_is_renewed_where_it_is_and_only_there(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    assert write_overview(tmp_path, only_if_there=True) is None and not (tmp_path / "index.html").exists()
    page(tmp_path)
    make_run(tmp_path, "b", started=1)
    assert write_overview(tmp_path, only_if_there=True) == tmp_path / "index.html"
    assert "b/report.html" in (tmp_path / "index.html").read_text()


def test_a_summary_that_cannot_be_read_is_as_none(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    (tmp_path / "a" / SUMMARY).write_text('{"name": ')
    assert page(tmp_path).rows("run")[1][1] == "no report yet"
