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
    help="Another run, whose devices' accuracies are drawn dashed.",
)
@format_option
@tells
def report(run_dir: Path, beside: Path | None, form: str, teller: Teller) -> None:
    """Write RUN_DIR/report.html again, perhaps with the curves of another run beside its own.

    \b
    Example:
      edgefl report runs/codream-20260102-030405 --beside runs/alone-20260102-020405
    """
    from edgefl.runs.outcome import report_again

    path = report_again(run_dir, beside=beside, progress=teller.tell)
    if form == "json":
        print_json({"report": str(path)})
    else:
        click.echo(f"report: {path}")
