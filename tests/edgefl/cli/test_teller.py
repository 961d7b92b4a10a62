"""What a command says, and where: --log, --quiet, --verbose."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from edgefl.cli import main
from edgefl.cli.output import print_table
from edgefl.cli.teller import Teller, tells
from edgefl.errors import ConfigError

Run = Callable[..., Result]
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@click.command()
@click.option("--fail", is_flag=True)
@tells
def speaker(fail: bool, teller: Teller) -> None:
    teller.tell("one\x1b[2J")
    teller.detail("more")
    teller.row("    1    2")
    with teller.working("work") as say:
        say("two")
    if fail:
        raise ConfigError("it failed", hint="do not")
    click.echo("result")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`speaker` as a command of edgefl, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    group = type(main)("edgefl", callback=main.callback, params=main.params)
    monkeypatch.setattr(group, "get_command", lambda context, name: speaker)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(group, ["speaker", *arguments])

    return run


def test_lines_have_a_date_where_there_is_no_terminal_and_a_table_has_it_at_its_end(run: Run) -> None:
    done = run()
    assert done.stdout == "result\n"
    first, row, second = done.stderr.splitlines()
    assert re.fullmatch(DATE + r" one\\x1b\[2J", first)
    assert re.fullmatch(r"    1    2  " + DATE, row)
    assert re.fullmatch(DATE + " two", second)


def test_a_log_gets_everything_dated_and_is_appended_to_however_quiet_the_command_is(run: Run) -> None:
    done = run("--quiet", "--log", "all.log")
    assert (done.stdout, done.stderr) == ("result\n", "")
    run("--verbose", "--log", "all.log", "--fail")
    lines = [re.sub(f"^{DATE} ", "", line) for line in Path("all.log").read_text().splitlines()]
    assert lines == [
        *("one\\x1b[2J", "    1    2", "two"),
        *("one\\x1b[2J", "more", "    1    2", "two", "error: it failed", "hint: do not"),
    ]


def test_an_error_is_said_however_quiet_and_has_no_date(run: Run) -> None:
    done = run("--quiet", "--fail")
    assert (done.exit_code, done.stderr) == (3, "error: it failed\nhint: do not\n")


def test_a_log_that_cannot_be_written_is_an_error_at_the_start(run: Run) -> None:
    done = run("--log", "no/folder.log")
    assert done.exit_code == 3 and done.stderr == "error: no/folder.log: No such file or directory\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_log_on_a_full_disk_is_given_up_and_ends_nothing(run: Run) -> None:
    done = run("--quiet", "--log", "/dev/full")
    assert (done.exit_code, done.stdout) == (0, "result\n")
    assert done.stderr == "/dev/full is written no more: No space left on device\n"


def test_quiet_and_verbose_exclude_each_other(run: Run) -> None:
    assert run("-q", "-v").exit_code == 2


def test_on_a_terminal_without_rich_it_says_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device does not install it."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Teller().working("work") as say:
        say("two")
    assert capsys.readouterr().err == "two\n"


def test_a_table_is_as_wide_as_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Parts", ["part", "examples", "about"], [["pi-1", "7", "x" * 200], ["a long name", "1,024", ""]])
    assert capsys.readouterr().out.splitlines() == [
        "Parts",
        "part         examples  about",
        "pi-1                7  " + "x" * 200,
        "a long name     1,024",
    ]
