"""The command that finds what is wrong with a run file before a run does."""

from __future__ import annotations

from pathlib import Path

import click

from edgefl.cli.output import format_option, print_json
from edgefl.cli.teller import Teller, tells


@click.command()
@click.argument("run_file", type=click.Path(path_type=Path))
@click.option("--broker", "url", envvar="EDGEFL_BROKER", help="Instead of the run file's [broker] url.")
@format_option
@tells
@click.pass_context
def check(context: click.Context, run_file: Path, url: str | None, form: str, teller: Teller) -> None:
    """Say whether a run of RUN_FILE could begin: its bundles, method, data and broker, each tried, nothing kept.

    Exit code: that of the first fault.

    \b
    Example:
      edgefl check run.toml --broker mqtt://127.0.0.1:1883
    """
    from edgefl.runs.check import check as verb

    found = []
    for one in verb(run_file, broker=url):
        found.append(one)
        line = f"{one.what:9} fault: {one.fault.message}" if one.fault else f"{one.what:9} {one.said}"
        hint = f"{'':9} hint: {one.fault.hint}" if one.fault and one.fault.hint else None
        for text in filter(None, (line, hint)):
            teller.note(text)
            if form == "text":
                click.echo(text)
    faults = [one.fault for one in found if one.fault]
    if form == "json":
        checked = [
            {"what": one.what, "said": one.said}
            | {key: one.fault and getattr(one.fault, name) for key, name in (("fault", "message"), ("hint", "hint"))}
            for one in found
        ]
        print_json({"run_file": str(run_file), "ready": not faults, "checked": checked})
    context.exit(faults[0].exit_code if faults else 0)
