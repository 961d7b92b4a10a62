"""A report in a real browser: what is drawn, and that nothing else happens. Skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import Page
from records import record

from edgefl.results.events import Event
from edgefl.results.report import Story, write_report
from edgefl.results.summary import summary_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "</script><img src=x onerror='document.title=1'>"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def drawn(page: Path, profile: Path) -> tuple[str, str]:
    """The page as it is after its script has run, and what the browser says on its console."""
    assert BROWSER is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}")
    done = subprocess.run([BROWSER, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_two_runs_are_drawn_and_strangers_words_stay_words(tmp_path: Path) -> None:
    measured = {name: {"evaluate.correct": 1.0, "evaluate.examples": 2.0} for name in (EVIL, "pi-1")}
    found = [record(n, accuracy=n / 4, metrics={"train.loss": 1.0}, measured=measured) for n in (1, 2, 3)]
    one, other = (summary_of(found, name=name, method="FedAvg", model="m", target=0.5) for name in ("one", EVIL))
    story = Story(one, found, tmp_path, "", events=[Event(1.0, "started"), Event(2.0, "failed", 1, EVIL, EVIL)])
    write_report(tmp_path / "report.html", story, beside=other)
    text, console = drawn(tmp_path / "report.html", tmp_path / "profile")
    assert console == ""  # no error, nothing that the content security policy had to refuse
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions == [
        *("Test accuracy", "Test accuracy by bytes", "Test accuracy by time", "Each device on its own test data"),
        *("Training loss", "Seconds a round", "Bytes a round, up and down"),
    ]
    assert text.count('<polyline class="line c0 run0"') == 7 and text.count("run1") > 7
    assert text.count('class="target"') == 3
    assert text.count("<title>one</title>") == 1 and "<img" not in text
    labels = re.findall(r'role="img"[^>]*aria-label="([^"]*)"', text)
    assert labels[0].startswith("Test accuracy, one: from 25 % at round 1 to 75 % at round 3; ")
    assert labels[-1] == "What happened when: started: 1, failed: 1. The table below has it in words."


def test_without_its_script_the_tables_are_there(tmp_path: Path) -> None:
    found = [record(1, accuracy=0.5, metrics={"train.loss": 1.0})]
    story = Story(summary_of(found, name="a", method="FedAvg", model="m"), found, tmp_path, "")
    write_report(tmp_path / "report.html", story)
    page = Page((tmp_path / "report.html").read_text())
    assert page.rows("round")[1][0] == "1" and page.rows("device")[1][0] == "pi-1"
    assert any("need JavaScript" in text for text in page.all("p"))
