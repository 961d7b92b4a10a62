"""What a person sees of work that goes on: on a terminal one line that changes, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time

import click

from edgefl.cli.teller import Teller
from edgefl.errors import one_line

EVERY_S = 10.0  # where the lines stay


class Ticker:
    """Says lines, and how far the work between them is."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._next_s = time.monotonic() + EVERY_S
        self._shown = False

    def tell(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        self._teller.tell(line)

    def progress(self, line: str) -> None:
        """How far the work is, instead of what was said of it before."""
        if sys.stderr.isatty() and not self._teller.quiet:
            click.echo(f"\r\x1b[K{one_line(line)}", nl=False, err=True)
            self._shown = True
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + EVERY_S
            self._teller.tell(line)

    def clear(self) -> None:
        """Leave an empty line for what comes."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False
