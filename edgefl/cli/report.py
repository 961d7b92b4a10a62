"""The report of a run: written at its end, and by a command again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.store import Record, read_classes, read_records
from edgefl.cli.bundle import total_bytes
from edgefl.cli.prepare import classes_of
from edgefl.errors import ConfigError
from edgefl.results.report import ClassRow, write_report
from edgefl.runs.run_file import RunFile, read_run_file, to_toml

ALBUM = "dreams"  # the folder of a run's pictures


def write_run_report(
    place: Path, config: RunFile, classes: Sequence[DeviceClass], beside: Sequence[Record] = ()
) -> None:
    """Write RUN_DIR/report.html. `beside`: another run's records."""
    held = Counter(read_classes(place).values())
    rows = [
        ClassRow(
            name=one.name,
            condition=" and ".join(filter(None, (section.condition, ", ".join(section.devices)))),
            devices=held[one.name],
            bundle_bytes=total_bytes(one.bundle),
            shared_bytes=sum(t.size_bytes for t in one.bundle.manifest.shared()),
        )
        for one, section in zip(classes, config.bundles, strict=True)
    ]
    records = read_records(place / "metrics.jsonl")
    write_report(place / "report.html", place.name, records, to_toml(config), rows, album=place / ALBUM, beside=beside)


@click.command(short_help="Write the report of a run again.")
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--beside",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Another run, whose devices' accuracies are drawn dashed.",
)
def report(run_dir: Path, beside: Path | None) -> None:
    """Write RUN_DIR/report.html again, perhaps with the curves of another run beside its own.

    \b
    Example:
      edgefl report runs/codream-20260102-030405 --beside runs/alone-20260102-020405
    """
    for place in filter(None, (run_dir, beside)):
        if not (place / "metrics.jsonl").exists():
            raise ConfigError(f"{place} holds no finished round of a run", hint="give a folder of runs/")
    config = read_run_file(run_dir / "run.toml")
    write_run_report(
        run_dir, config, classes_of(config, run_dir), read_records(beside / "metrics.jsonl") if beside else ()
    )
    click.echo(f"report: {run_dir / 'report.html'}")
