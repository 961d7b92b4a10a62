"""What a command says while it works: lines on stderr, and dated lines in a file. Results go to stdout: `output.py`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from edgefl.errors import one_line

F = TypeVar("F", bound=Callable[..., Any])


class Teller:
    """Says what happens, one line at a time, whoever said it.

    A line on a terminal has no date; elsewhere (a file, a pipe, a service's journal) it begins with one. `log` gets
    every line with its date, also where `quiet` keeps them from stderr.
    """

    def __init__(self, *, log: Path | None = None, quiet: bool = False, verbose: bool = False) -> None:
        """Raises OSError for a log that cannot be written."""
        self.quiet = quiet
        self._verbose = verbose
        self._log = log
        if log is not None:
            open(log, "a").close()

    def tell(self, line: str) -> None:
        """A line for everybody."""
        line = one_line(line)
        self.note(line)
        if not self.quiet:
            click.echo(line if sys.stderr.isatty() else dated(line), err=True)

    def row(self, line: str, *, new: bool = True) -> None:
        """A line of a table: what is `new` has its date at the end, where it keeps the columns in their places."""
        self.note(line)
        if not self.quiet:
            click.echo(f"{line}  {now()}" if new else line, err=True)

    def detail(self, line: str) -> None:
        """A line for who asked for more."""
        if self._verbose:
            self.tell(line)

    def note(self, line: str) -> None:
        """A line for the log alone. It is opened anew each time, so that it may be moved away while a run goes on; one
        that cannot be written any more (a full disk) is given up, and ends nothing."""
        if self._log is None:
            return
        try:
            with open(self._log, "a", encoding="utf-8", errors="replace") as file:
                file.write(dated(line) + "\n")
        except OSError as error:
            click.echo(f"{self._log} is written no more: {error.strerror or error}", err=True)
            self._log = None

    @contextmanager
    def working(self, title: str) -> Iterator[Callable[[str], None]]:
        """While the block runs: a function that says what is being done. On a terminal the time counts beside it."""
        if self.quiet or not sys.stderr.isatty():
            yield self.tell
            return
        try:
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        except ImportError:  # on a device, where 5 MB for this would be too many
            yield self.tell
            return

        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(title)

            def say(line: str) -> None:
                line = one_line(line)
                self.note(line)
                progress.update(task, description=line)
                progress.console.print(line, style="dim", highlight=False, markup=False)

            yield say


def tells(command: F) -> F:
    """The options that say how much a command says, and where: --log, --quiet, --verbose. The command gets `teller`."""

    @click.option(
        "--log",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Append what is said to this file too, with dates.",
    )
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more.")
    @wraps(command)
    def telling(*given: Any, log: Path | None, quiet: bool, verbose: bool, **more: Any) -> Any:
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose exclude each other")
        teller = Teller(log=log, quiet=quiet, verbose=verbose)
        click.get_current_context().find_root().obj = teller  # so that an error gets into the log, too
        return command(*given, teller=teller, **more)

    return telling  # type: ignore[return-value]


def dated(line: str) -> str:
    return f"{now()} {line}"


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
