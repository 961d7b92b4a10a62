"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgefl.aggregator.serve import Watcher
from edgefl.aggregator.store import Record
from edgefl.method import State
from edgefl.results.report import COLUMNS, OWN, Rows

SHOWN_ROUNDS = 25


class LiveTable:
    """The rounds so far and one line of progress, on stderr: stdout is for the result."""

    def __init__(self, title: str, before: Sequence[Record] = (), *, own: bool = False) -> None:
        """`before`: the rounds of earlier starts of this run. `own`: whether devices evaluate beside the aggregator."""
        self._title = title
        self._columns = [column for column in COLUMNS if own or column.key != OWN]
        self._rows = Rows(before)
        self._line = ""
        self._console = Console(stderr=True)
        self._live = Live(self._table(), console=self._console, auto_refresh=False) if self._terminal else None

    @property
    def _terminal(self) -> bool:
        return sys.stderr.isatty()

    def watcher(self) -> Watcher:
        return Watcher(round_done=self._round_done, progress=self._progress)

    def __enter__(self) -> LiveTable:
        if self._live:
            self._live.start()
        else:
            self._print(self._title)
            self._print(self._line_of([column.title for column in self._columns]))
            for record in self._rows.rows:
                self._print_row(record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._line = ""
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def _round_done(self, record: Record, state: State) -> None:
        new = self._rows.add(record)
        if self._live and new:
            self._live.update(self._table(), refresh=True)
        elif new:
            self._print_row(self._rows.rows[-1])

    def _print_row(self, record: Record) -> None:
        self._print(self._line_of([column.cell(record) for column in self._columns]))

    def _line_of(self, cells: list[str]) -> str:
        widths = (max(len(column.title), 9) for column in self._columns)
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))

    def _progress(self, line: str) -> None:
        if line == self._line:
            return
        self._line = line
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif "replies" not in line and "waiting" not in line:
            self._print(line)

    def _table(self) -> Group:
        table = Table(title=self._title, title_justify="left", box=None, pad_edge=False)
        for column in self._columns:
            table.add_column(column.title, justify="right")
        for record in self._rows.rows[-SHOWN_ROUNDS:]:
            table.add_row(*(column.cell(record) for column in self._columns))
        return Group(table, Text(self._line, style="dim"))

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
