"""What commands print: results to stdout, the rest to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

format_option: Callable[[F], F] = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="How to print the result."
)
stream_option: Callable[[F], F] = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "jsonl"]),
    default="text",
    help="How to print the result; jsonl: a line for each thing that happens, too.",
)


def print_json(value: object) -> None:
    """One object on one line."""
    click.echo(json.dumps(value))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; columns of numbers to the right. Never cut, however narrow the terminal is."""
    click.echo(title)
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    words = [index == 0 or any(row[index][:1].isalpha() for row in rows) for index in range(len(columns))]
    for line in lines:
        cells = (c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, widths, words, strict=True))
        click.echo("  ".join(cells).rstrip())
