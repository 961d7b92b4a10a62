"""What commands print: results to stdout, the rest to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from edgefl.errors import one_line

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
    """A table; columns of numbers to the right. Never cut where the output is no terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        words = index == 0 or any(row[index][:1].isalpha() for row in rows)
        table.add_column(column, justify="left" if words else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def tell(line: str) -> None:
    """A line for the person at the terminal, whoever said it."""
    click.echo(one_line(line), err=True)
