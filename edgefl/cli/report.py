"""The command that writes a run's report again."""

from __future__ import annotations

from pathlib import Path

import click

from edgefl.cli.output import format_option, print_json
from edgefl.cli.teller import Teller, tells


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--beside",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Another run: its curves are drawn over this one's, dashed.",
)
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True),
    help="An accuracy: when it was reached, in rounds, bytes and seconds.  [default: the run file's]",
)
@format_option
@tells
def report(run_dir: Path, beside: Path | None, target: float | None, form: str, teller: Teller) -> None:
    """Write RUN_DIR/report.html again, perhaps with the curves of another run over its own; of a folder of runs, its
    index.html.

    \b
    Example:
      edgefl report runs/codream-20260102-030405 --beside runs/alone-20260102-020405
      edgefl report runs/digits-20260102-030405 --target 0.9
      edgefl report runs
    """
    from edgefl.runs.reports import report_again

    path, summary = report_again(run_dir, beside=beside, target=target, progress=teller.tell)
    if form == "json":
        print_json({"report": str(path)} | (summary.numbers if summary is not None else {}))
    else:
        click.echo(f"report: {path}")
