"""report.html: everything inside one file, and nothing of a name becomes markup."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import records

from edgefl.aggregator.record import Record
from edgefl.results.report import write_report
from edgefl.results.rounds import COLUMNS, OWN, Rows, facts, size

CONFIG = 'name = "digits"  # <5 & more\nmodel = "</pre><script>alert(1)</script>"\n'


def record(number: int, **more: Any) -> Record:
    plain: dict[str, Any] = {
        "replies": 7,
        "asked": 8,
        "bytes_up": 1024,
        "bytes_down": 3 * 2**20,
        "devices": ["pi-1", f"pi-{number}"],
        "weights": {},
        "metrics": {"train.loss": 1 / number},
    }
    return records.record(number, **(plain | more))


RECORDS = [record(n, loss=2 / n, accuracy=1 - 0.5 / n) for n in (1, 2, 3, 4)]


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def all(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag and text.strip()]


def page(path: Path, records: list[Record], title: str = "digits", config: str = CONFIG) -> Page:
    write_report(path / "report.html", title, records, config)
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_the_curves_are_pictures_inside_the_page(tmp_path: Path) -> None:
    images = [attributes for tag, attributes in page(tmp_path, RECORDS).tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        "test accuracy by round",
        "test loss by round",
        "training loss by round",
        "seconds per round by round",
    ]
    for image in images:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/svg+xml;base64"
        picture = ElementTree.fromstring(base64.b64decode(data))
        assert picture.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(picture.iter("{http://www.w3.org/2000/svg}use"))) >= len(RECORDS)  # a marker for each round
        for element in picture.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith("#")  # inside the picture


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    found = page(tmp_path, RECORDS)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "embed"})
    for _, attributes in found.tags:
        assert not str(attributes.get("href", "")) and str(attributes.get("src") or "data:").startswith("data:")


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    title = '<b onload="x">a & b</b>'
    found = page(tmp_path, RECORDS, title)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "".join(found.all("title")) == "".join(found.all("h1")) == title
    assert "".join(found.all("pre")).strip() == CONFIG.strip()


def test_braces_in_a_run_file_are_text_too(tmp_path: Path) -> None:
    assert "".join(page(tmp_path, RECORDS, config="x = {title} {0}").all("pre")).strip() == "x = {title} {0}"


def test_the_table_of_rounds(tmp_path: Path) -> None:
    found = page(tmp_path, RECORDS)
    shown = [column for column in COLUMNS if column is not OWN]
    assert found.all("th") == [column.title for column in shown]
    cells = found.all("td")
    assert cells[: len(shown)] == ["1", "7/8", "1.0000", "2.0000", "50.00%", "1.0 KiB", "3.0 MiB", "0.50"]
    assert len(cells) == len(RECORDS) * len(shown)


def test_columns_and_curves_without_values_are_left_out(tmp_path: Path) -> None:
    found = page(tmp_path, [record(1, accuracy=None), record(2)])
    assert "test accuracy" not in found.all("th")
    assert [a["alt"] for tag, a in found.tags if tag == "img"] == [
        "training loss by round",
        "seconds per round by round",
    ]


def test_a_value_that_one_round_lacks_is_a_dash(tmp_path: Path) -> None:
    assert page(tmp_path, [record(1), record(2, accuracy=0.5)]).all("td")[3:4] == ["-"]


def test_a_run_without_rounds_has_a_report(tmp_path: Path) -> None:
    found = page(tmp_path, [])
    assert found.all("b") == ["0"]
    assert "img" not in {tag for tag, _ in found.tags}


def test_facts_by_hand() -> None:
    assert facts(RECORDS) == [
        ("test accuracy", "87.50%"),
        ("rounds", "4"),
        ("time", "2.0 s"),
        ("bytes up", "4.0 KiB"),
        ("bytes down", "12.0 MiB"),
        ("devices", "4"),
    ]
    assert facts([]) == [("rounds", "0")]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (2**40, "1024.0 GiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_weights_of_the_last_round_and_in_the_mean(tmp_path: Path) -> None:
    """a counted 0.25 and 0.75; b was not in the last round."""
    weighted = [record(1, weights={"a": 0.25, "<b>": 0.75}), record(2, weights={"a": 0.75, "c": 0.25})]
    cells = page(tmp_path, weighted).all("td")
    start = cells.index("<b>")
    assert cells[start : start + 9] == ["<b>", "-", "0.750", "a", "0.750", "0.500", "c", "0.250", "0.250"]
    assert "Weights" not in page(tmp_path, RECORDS).all("h2")
    many = [record(1, weights={f"d{i}": 0.01 for i in range(100)})]
    assert "Weights" not in page(tmp_path, many).all("h2")


def test_a_round_without_training_is_part_of_the_next_row() -> None:
    made = [record(1), record(2, bytes_up=7, metrics={}), record(3, seconds=2.0, metrics={}), record(4)]
    rows = Rows(made).rows
    assert [r.round for r in rows] == [1, 4]
    assert rows[1].bytes_up == 1024 + 7 + 1024 and rows[1].seconds == 0.5 + 2.0 + 0.5
    assert sum(r.bytes_down for r in rows) == sum(r.bytes_down for r in made)


def test_each_device_is_drawn_beside_another_run(tmp_path: Path) -> None:
    def measured(right: float) -> dict[str, Any]:
        return {"pi-1": {"evaluate.correct": right, "evaluate.examples": 10.0}}

    own = [record(n, measured=measured(n)) for n in (1, 2, 3)]
    other = [record(n, measured=measured(1)) for n in (1, 2, 3)]
    write_report(tmp_path / "own.html", "run", own, CONFIG)
    write_report(tmp_path / "both.html", "run", own, CONFIG, beside=other)
    alone, both = (devices_in(tmp_path / f"{name}.html") for name in ("own", "both"))
    dashed = "stroke-dasharray"
    assert both.count(dashed) > alone.count(dashed)


def devices_in(path: Path) -> str:
    """The picture of each device's accuracy, as SVG."""
    (found,) = re.findall(r'alt="accuracy of each device" src="data:image/svg\+xml;base64,([^"]*)"', path.read_text())
    return base64.b64decode(found).decode()


def test_an_album_is_shown_and_its_last_epoch_open(tmp_path: Path) -> None:
    album = tmp_path / "dreams"
    album.mkdir()
    for name in ("epoch-001", "epoch-001-path", "epoch-002", "epoch-002-path"):
        (album / f"{name}.png").write_bytes(name.encode())
    write_report(tmp_path / "report.html", "run", RECORDS, CONFIG, pictures=album)
    text = (tmp_path / "report.html").read_text()
    shown = [base64.b64decode(data).decode() for data in re.findall(r"data:image/png;base64,([^\"]*)", text)]
    assert shown == ["epoch-001", "epoch-001-path", "epoch-002", "epoch-002-path"]
    assert text.count("<details open>") == 1 and text.index("<details open>") > text.index("epoch 1<")
