"""What an error says is one line, whatever it quotes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.errors import MOST_CHARACTERS, BundleError, EdgeflError, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Grüße, 東京 🎉", "Grüße, 東京 🎉"),
        (" first\r\n   second \n\n", "first second"),
        ("\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        ("a\tb\0c\x7f\x9b", r"a\tb\x00c\x7f\x9b"),
        ("pay\u202e001\u2066\u200f", r"pay\u202e001\u2066\u200f"),
        ("a\u2028b\u2029c\x85", r"a\u2028b\u2029c\x85"),
        ("\ud800", r"\ud800"),
        ("", ""),
    ],
)
def test_a_line_shows_what_it_holds_and_does_nothing(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_long_text_is_cut_and_says_so() -> None:
    assert one_line("abcdef", 6) == "abcdef"
    assert one_line("abcdefg", 6) == "abcde…"
    assert len(one_line("\x1b" * 10_000)) == MOST_CHARACTERS


@given(st.text(), st.integers(1, 40))
def test_it_is_one_printable_line_within_its_limit(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit and len(line.splitlines()) <= 1
    line.encode()
    assert one_line(line, limit) == line


def test_every_error_keeps_its_message_and_its_hint_to_a_line() -> None:
    error = BundleError("the file\nsays \x1b[31m", hint="look\nhere" + "!" * 10_000)
    assert str(error) == error.message == r"the file says \x1b[31m"
    assert error.hint is not None and error.hint.startswith("look here!!") and len(error.hint) == MOST_CHARACTERS
    assert EdgeflError("plain").hint is None
