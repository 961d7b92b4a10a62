"""A stranger's words in a report: whatever a device, a run or a bundle calls itself stays text, and no script runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from pages import Page
from records import record

from edgefl.aggregator.fleet import Known
from edgefl.results.confusion import Confusion
from edgefl.results.events import Event
from edgefl.results.overview import write_overview
from edgefl.results.report import ClassRow, Story, write_report
from edgefl.results.summary import SUMMARY, Summary, summary_of

WORDS = [
    "</script><img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    '" onfocus=alert(1) autofocus x="',
    "' onfocus='alert(1)",
    "<!--<script>",
    "]]></svg><style>*{display:none}</style>",
    "javascript:alert(1)",
    "\u2028&lt;b&gt;\u2029&#60;b&#62;",
    "$script ${data} {title}",
]


def evil_story(words: str, place: Path) -> tuple[Story, Summary]:
    """A run in which everything that has a name has this one."""
    measured = {words: {"evaluate.correct": 1.0, "evaluate.examples": 2.0, f"{words}.x": 1.0}}
    more = {"devices": [words], "measured": measured, "metrics": {f"{words}.x": 1.0, "train.loss": 1.0}}
    found = [record(n, accuracy=0.5, weights={words: 1.0}, bytes_up_by_device={words: 1}, **more) for n in (1, 2)]
    summary = summary_of(found, name=words, method=words, model=words)
    story = Story(
        summary,
        found,
        place,
        words,
        paper=words,
        about=[(words, words)],
        classes=[ClassRow(words, words, 1, 1, 1), ClassRow("b", "", 1, 1, 1)],
        events=[Event(1.0, words, 1, words, words)],
        known={words: Known(1, 1, words, runtime=words, data=words, label_counts={words: 3})},
        settings={words: {words: 1.0}},
        labels=[words],
        confusion=Confusion([words, "b"], [[1, 2], [0, 1]]),
    )
    return story, summary


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The same report where everything is called "a"."""
    place = tmp_path_factory.mktemp("harmless")
    story, other = evil_story("a", place)
    write_report(place / "report.html", story, beside=other)
    return Page((place / "report.html").read_text())


@pytest.mark.parametrize("words", WORDS)
def test_a_report_has_the_elements_that_it_has_with_harmless_words(words: str, harmless: Page, tmp_path: Path) -> None:
    story, other = evil_story(words, tmp_path)
    write_report(tmp_path / "report.html", story, beside=other)
    page = Page((tmp_path / "report.html").read_text())
    assert [(tag, list(attributes)) for tag, attributes in page.tags] == [
        (tag, list(attributes)) for tag, attributes in harmless.tags
    ]
    assert page.all("h1") == [words] and page.all("pre") == [words]
    assert page.data["runs"][1]["name"] == words and page.data["events"][0]["name"] == words
    assert not [a for tag, a in page.tags if tag == "a"]


@pytest.mark.parametrize("words", WORDS)
def test_so_has_the_page_of_all_runs(words: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        place = tmp_path / name
        place.mkdir()
        (place / "run.json").write_text("{}")
        (place / SUMMARY).write_bytes(msgspec.json.encode(evil_story(words, tmp_path)[1]))
    (tmp_path / "' onfocus='alert(1)").mkdir()
    (tmp_path / "' onfocus='alert(1)" / "run.json").write_text("{}")
    write_overview(tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    assert {tag for tag, _ in page.tags if tag in ("script", "img", "style", "b", "svg")} == {"script", "style"}
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["b/report.html", "a/report.html"]
    assert page.all("option") == [words] * 4
