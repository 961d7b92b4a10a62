"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgefl.aggregator.record import Record
from edgefl.cli.teller import Teller
from edgefl.errors import one_line
from edgefl.results.rounds import COLUMNS, OWN, Column, Rows
from edgefl.runs.run import Begun

SHOWN_ROUNDS = 25


class LiveTable:
    """The rounds so far and one line of progress, on stderr: stdout is for the result.

    Until the run begins there is no table, and what is said is printed.
    """

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._title = ""
        self._columns: list[Column] = []
        self._rows = Rows()
        self._line = self._of = ""
        self._live: Live | None = None

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._line = ""
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def begun(self, begun: Begun) -> None:
        """Show the table, with the rounds of earlier starts."""
        self._title = f"run {begun.name}: {', '.join(one.name for one in begun.classes)}, {begun.method}"
        self._title += f", {begun.rounds} rounds" if begun.rounds else ""
        self._of = f" of {begun.rounds}" if begun.rounds else ""
        self._columns = [column for column in COLUMNS if begun.own_accuracy or column is not OWN]
        self._rows = Rows(begun.records)
        if sys.stderr.isatty() and not self._teller.quiet:
            self._teller.note(self._title)
            self._live = Live(self._table(), console=Console(stderr=True), auto_refresh=False)
            self._live.start()
            return
        self._teller.tell(self._title)
        self._teller.row(self._line_of([column.title for column in self._columns]), new=False)
        for record in self._rows.rows:
            self._teller.row(self._line_of_record(record), new=False)

    def round_done(self, record: Record) -> None:
        """Show one more round."""
        new = self._rows.add(record)
        if not new:
            return
        line = self._line_of_record(self._rows.rows[-1])
        if self._live:
            self._teller.note(line)
            self._live.update(self._table(), refresh=True)
        else:
            self._teller.row(line)

    def progress(self, line: str) -> None:
        """Show what is going on, in one line. How many replies have come is for a terminal, or who asked for more."""
        if line == self._line:
            return
        self._line = line
        say = self._teller.detail if line.endswith("replies") else self._teller.tell
        if self._live:
            self._teller.note(line)
            self._live.update(self._table(), refresh=True)
        else:
            say(line)

    def _line_of_record(self, record: Record) -> str:
        return self._line_of([column.cell(record) for column in self._columns])

    def _line_of(self, cells: list[str]) -> str:
        widths = (max(len(column.title), 9) for column in self._columns)
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))

    def _table(self) -> Group:
        table = Table(title=self._title, title_justify="left", box=None, pad_edge=False)
        for column in self._columns:
            table.add_column(column.title, justify="right")
        for record in self._rows.rows[-SHOWN_ROUNDS:]:
            table.add_row(*(column.cell(record) for column in self._columns))
        done = f"{self._rows.rows[-1].round}{self._of} done; " if self._line and self._rows.rows else ""
        odd = self._rows.rows[-1].odd if self._rows.rows else {}
        marks = [Text(one_line(f"! {device}: {text}"), style="yellow") for device, text in odd.items()]
        return Group(table, *marks, Text(done + one_line(self._line), style="dim"))
