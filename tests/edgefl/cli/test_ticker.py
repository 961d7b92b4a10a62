"""How far work is: on a terminal one line that changes, elsewhere a line every ten seconds."""

from __future__ import annotations

import io
import sys

import pytest

from edgefl.cli import ticker as module
from edgefl.cli.teller import Teller
from edgefl.cli.ticker import Ticker


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_changes_and_makes_way_for_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    ticker = Ticker(Teller())
    ticker.progress("batch 1 of 9")
    ticker.progress("batch 2 of 9")
    ticker.tell("round 1: reply accepted")
    ticker.clear()
    clear = "\r\x1b[K"
    assert screen.getvalue() == f"{clear}batch 1 of 9{clear}batch 2 of 9{clear}round 1: reply accepted\n"


def test_elsewhere_it_is_said_rarely(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    ticker = Ticker(Teller())
    while now_s < 25.0:
        ticker.progress(f"after {now_s:g} s")
        now_s += 0.5
    said = [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["after 10 s", "after 20 s"]


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    ticker = Ticker(Teller(quiet=True))
    ticker.progress("batch 1 of 9")
    ticker.tell("round 1: reply accepted")
    assert screen.getvalue() == ""
