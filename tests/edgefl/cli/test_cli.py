"""Every command explains itself and stands in the README."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgefl.cli import main

README = (Path(__file__).parents[3] / "README.md").read_text()
COMMANDS = main.list_commands(click.Context(main))  # type: ignore[attr-defined]


def help_of(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--help"], prog_name="edgefl", terminal_width=80)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_fits_a_screen_and_cuts_no_sentence() -> None:
    lines = help_of().splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if "..." in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_help_with_an_example_and_stands_in_the_readme(command: str) -> None:
    text = help_of(command)
    assert "Example:" in text
    example = next(line for line in text.splitlines() if line.startswith(("    edgefl ", "  edgefl ")))
    assert example.split()[:2] == ["edgefl", command]
    assert f"edgefl {command}" in README or f"`{command}`" in README, command


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_is_explained_or_says_its_default(command: str) -> None:
    found = main.get_command(click.Context(main), command)  # type: ignore[attr-defined]
    assert found is not None
    for parameter in found.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help or parameter.show_default, f"{command} {parameter.opts[0]}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_gives_json_and_one_that_takes_time_says_what_it_does_where_it_is_told(command: str) -> None:
    text = help_of(command)
    assert "--format" in text
    if command not in ("inspect", "model", "zoo"):
        assert all(option in text for option in ("--log FILE", "--quiet", "--verbose"))


def test_wrong_usage_exits_2() -> None:
    assert CliRunner().invoke(main, ["exprot"]).exit_code == 2
    assert CliRunner().invoke(main, ["inspect"]).exit_code == 2


def test_a_mistyped_command_names_the_nearest() -> None:
    assert "no command 'agregate'; did you mean 'aggregate'?" in CliRunner().invoke(main, ["agregate"]).stderr
    assert "no command 'xyz'; known: demo, " in CliRunner().invoke(main, ["xyz"]).stderr


def test_debug_shows_the_traceback_of_our_own_errors() -> None:
    result = CliRunner().invoke(main, ["--debug", "inspect", "nothing-here"])
    assert type(result.exception).__name__ == "BundleError"
    plain = CliRunner().invoke(main, ["inspect", "nothing-here"])
    assert plain.exit_code == 3
    assert plain.stderr == (
        "error: no bundle at nothing-here: manifest.json is missing\nhint: make one with `edgefl export`\n"
    )
