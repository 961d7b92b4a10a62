"""report.html: everything inside one file, what the records say, and nothing of a name becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path
from typing import Any

import pytest
from pages import Page
from records import of_fleet as record

from edgefl.aggregator.fleet import Known
from edgefl.aggregator.record import Record
from edgefl.results.confusion import Confusion
from edgefl.results.events import Event
from edgefl.results.report import MOST_ROWS, ClassRow, Story, write_report
from edgefl.results.rounds import COLUMNS, OWN
from edgefl.results.summary import summary_of

CONFIG = 'name = "digits"  # <5 & more\nmodel = "</pre><script>alert(1)</script>"\n'


RECORDS = [record(n, loss=2 / n, accuracy=1 - 0.5 / n) for n in (1, 2, 3, 4)]


def story(place: Path, found: list[Record], name: str = "digits", **more: Any) -> Story:
    target = more.pop("target", None)
    summary = summary_of(found, name=name, method="FedAvg", model="zoo:digits", target=target)
    return Story(summary, found, place, **({"config": CONFIG} | more))


def page(place: Path, found: list[Record], name: str = "digits", beside: Any = None, **more: Any) -> Page:
    write_report(place / "report.html", story(place, found, name, **more), beside=beside)
    return Page((place / "report.html").read_text(encoding="utf-8"))


def test_the_values_inside_are_those_of_the_records(tmp_path: Path) -> None:
    (run,) = page(tmp_path, RECORDS).data["runs"]
    assert run["name"] == "digits"
    charts = {chart["key"]: chart for chart in run["charts"]}
    assert list(charts) == ["accuracy", "loss", "train.loss", "seconds", "bytes"]
    assert charts["accuracy"]["against"] == ["round", "bytes", "seconds"]
    wire = 1024 + 3 * 2**20
    assert charts["accuracy"]["lines"] == [
        {
            "name": "",
            "round": [1, 2, 3, 4],
            "bytes": [wire, 2 * wire, 3 * wire, 4 * wire],
            "seconds": [0.5, 1.0, 1.5, 2.0],
            "value": [0.5, 0.75, 0.8333333, 0.875],
        }
    ]
    assert charts["bytes"]["lines"][0]["value"] == [wire] * 4


def test_nothing_is_loaded_from_anywhere_and_only_our_script_may_run(tmp_path: Path) -> None:
    found = page(tmp_path, RECORDS, paper='Li, "On X", 2020, arXiv:1812.06127.')
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://[^\s\"')]*", text) == [
        "https://arxiv.org/abs/1812.06127",  # a link: nothing is loaded before somebody follows it
        "http://www.w3.org/2000/svg",  # a name
    ]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|innerHTML|\bimport\b[ (]", text)
    assert {tag for tag, _ in found.tags}.isdisjoint({"link", "iframe", "object", "embed", "form", "base"})
    for _, attributes in found.tags:
        assert str(attributes.get("src") or "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    policy = next(a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    for kind in ("style", "script"):
        (allowed,) = re.findall(rf"{kind}-src 'sha256-([^']+)'", policy)
        (made,) = re.findall(rf'<{kind}(?: type="module")?>(.*?)</{kind}>', text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(made.encode()).digest()).decode() == allowed


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    found = page(tmp_path, RECORDS, known={"pi-1": Known(label_counts={"\ud800": 3})})
    assert found.rows("device")[0] and "?" in [row[1] for table in found.tables for row in table[:1]]


@pytest.mark.parametrize("text", ["x = {title} {0}", "$style ${script} $$"])
def test_what_looks_like_a_place_to_fill_is_text_too(text: str, tmp_path: Path) -> None:
    assert "".join(page(tmp_path, RECORDS, name=text, config=text).all("pre")).strip() == text


def test_the_table_of_rounds(tmp_path: Path) -> None:
    head, *rows = page(tmp_path, RECORDS).rows("round")
    assert head == [column.title for column in COLUMNS if column is not OWN]
    assert rows[0] == ["1", "7/8", "1.0000", "2.0000", "50.00%", "1.0 KiB", "3.0 MiB", "0.50"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]


def test_columns_and_curves_without_values_are_left_out(tmp_path: Path) -> None:
    found = page(tmp_path, [record(1, accuracy=None), record(2)])
    assert "test accuracy" not in found.rows("round")[0]
    assert [chart["key"] for chart in found.data["runs"][0]["charts"]] == ["train.loss", "seconds", "bytes"]


def test_a_value_that_one_round_lacks_is_a_dash(tmp_path: Path) -> None:
    head, first, _ = page(tmp_path, [record(1), record(2, accuracy=0.5)]).rows("round")
    assert first[head.index("test accuracy")] == "-"


def test_a_run_without_rounds_has_a_report(tmp_path: Path) -> None:
    found = page(tmp_path, [])
    assert found.all("b") == ["0"] and "Curves" not in found.all("h2")
    assert "".join(found.all("p")) == "FedAvg trained zoo:digits on 0 devices for 0 rounds, in 0.0 s."


def test_a_long_run_of_many_devices_has_a_page_of_sane_size_at_once(tmp_path: Path) -> None:
    devices = [f"pi-{i}" for i in range(120)]
    long = [
        record(
            n,
            accuracy=0.5,
            devices=devices,
            weights=dict.fromkeys(devices, 1 / 120),
            bytes_up_by_device=dict.fromkeys(devices, 10),
            measured={
                device: {"evaluate.correct": i % 7, "evaluate.examples": 10.0} for i, device in enumerate(devices)
            },
        )
        for n in range(1, 501)
    ]
    begun_s = time.process_time()
    found = page(tmp_path, [*long, *(record(n) for n in range(501, 3001))])
    took_s = time.process_time() - begun_s
    assert (tmp_path / "report.html").stat().st_size < 600_000
    assert took_s < 2.0  # 0.2 s where this was written
    rows = found.rows("round")[1:]
    assert len(rows) == MOST_ROWS and rows[0][0] == "1" and rows[-1][0] == "3000"
    assert "200 of 3,000 rows; metrics.jsonl has them all" in found.all("p")
    assert "and 2,520 more devices" in found.all("p")
    own = next(chart for chart in found.data["runs"][0]["charts"] if chart["key"] == "own")
    assert [line["name"] for line in own["lines"]] == ["most", "median", "least"]
    assert [line["value"][0] for line in own["lines"]] == [0.6, 0.3, 0.0]


def test_the_run_in_words(tmp_path: Path) -> None:
    """The target of 80 % is reached in the third round."""
    found = page(tmp_path, RECORDS, target=0.8)
    lead = "".join(found.all("p"))
    assert "FedAvg trained zoo:digits on 4 devices for 4 rounds to 87.50% test accuracy, in 2.0 s." in lead
    assert "Its target of 80.00% was reached in round 3, after 9.0 MiB and 1.5 s." in lead
    missed = "".join(page(tmp_path, RECORDS, target=0.9).all("p"))
    assert "Its target of 90.00% was not reached." in missed


def test_another_run_is_named_and_drawn_over_this_one(tmp_path: Path) -> None:
    other = summary_of([record(1, accuracy=0.25)], name="other-run", method="FedProx", model="nets.py:cnn", target=0.2)
    found = page(tmp_path, RECORDS, beside=other)
    assert "other-run" in found.all("b")
    assert "FedProx trained nets.py:cnn on 1 device for 1 round to 25.00% test accuracy" in "".join(
        found.all("b") + found.all("p")
    )
    one, two = found.data["runs"]
    assert [chart["key"] for chart in two["charts"]] == ["accuracy", "train.loss", "seconds", "bytes"]
    assert two["charts"][0]["lines"][0]["value"] == [0.25] and two["name"] == "other-run"
    assert one["charts"][0]["lines"][0]["value"][-1] == 0.875


def test_files_that_are_there_are_linked(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    links = [a["href"] for tag, a in page(tmp_path, RECORDS).tags if tag == "a"]
    assert links == ["model.onnx", "../index.html"]


def test_classes_of_devices_where_there_are_several(tmp_path: Path) -> None:
    rows = [ClassRow("large", "memory_mb >= 4000", 1, 2048, 1024), ClassRow("little", "", 2, 1024, 1024)]
    assert page(tmp_path, RECORDS, classes=rows).rows("class")[1:] == [
        ["large", "memory_mb >= 4000", "1", "2.0 KiB", "1.0 KiB"],
        ["little", "any", "2", "1.0 KiB", "1.0 KiB"],
    ]
    assert "Device classes" not in page(tmp_path, RECORDS, classes=rows[:1]).all("h2")


def test_each_class_and_what_it_was_taken_for(tmp_path: Path) -> None:
    """Of four cats one was taken for a dog, of two dogs none for a cat."""
    found = page(tmp_path, RECORDS, confusion=Confusion(["cat", "dog"], [[3, 1], [0, 2]], 4))
    assert found.rows("class")[1:] == [["cat", "4", "75.0%", ""], ["dog", "2", "100.0%", ""]]
    assert found.rows("")[1:] == [["cat", "3", "1"], ["dog", "", "2"]]
    assert "Most often wrong: cat for dog (1)." in found.all("p")


def test_many_classes_have_no_matrix(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(100)]
    matrix = [[9 if i == j else int(i == 7 and j == 8) for j in range(100)] for i in range(100)]
    found = page(tmp_path, RECORDS, confusion=Confusion(names, matrix))
    assert len(found.rows("class")) == 101
    assert "Most often wrong: c7 for c8 (1)." in found.all("p") and "it was taken for" not in "".join(found.all("p"))


def test_what_happened_is_told_in_words_and_as_dots(tmp_path: Path) -> None:
    events = [
        Event(100.0, "started"),
        Event(101.0, "announced", 1),
        Event(102.0, "replied", 1, "pi-1"),
        Event(103.0, "failed", 1, "pi-2", "it is too hot"),
    ]
    found = page(tmp_path, RECORDS, events=events)
    assert found.data["events"] == [
        {"name": "started", "seconds": [0.0], "words": [""]},
        {"name": "failed", "seconds": [3.0], "words": ["pi-2, it is too hot, round 1"]},
    ]
    assert found.rows("after")[1:] == [["0.0 s", "started", ""], ["3.0 s", "failed", "pi-2, it is too hot, round 1"]]


def test_an_album_is_shown_and_its_last_epoch_open(tmp_path: Path) -> None:
    album = tmp_path / "pictures"
    album.mkdir()
    for name in ("epoch-001", "epoch-001-path", "epoch-002", "epoch-002-path"):
        (album / f"{name}.png").write_bytes(name.encode())
    page(tmp_path, RECORDS)
    text = (tmp_path / "report.html").read_text()
    shown = [base64.b64decode(data).decode() for data in re.findall(r"data:image/png;base64,([^\"]*)", text)]
    assert shown == ["epoch-001", "epoch-001-path", "epoch-002", "epoch-002-path"]
    assert text.count("<details open>") == 1 and text.index("<details open>") > text.index("epoch 1<")
