"""Commands that carry a run: aggregate, run, demo."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgefl.cli.output import format_option, print_json, tell

if TYPE_CHECKING:
    from edgefl.runs.result import Result

resume_option = click.option("--resume", is_flag=True, help="Go on with the last run of this file.")


@click.command()
@click.argument("run_file", type=click.Path(path_type=Path))
@click.option("--broker", "url", help="Instead of the run file's [broker] url.")
@resume_option
@format_option
def aggregate(run_file: Path, url: str | None, resume: bool, form: str) -> None:
    """Run the aggregator of RUN_FILE against an MQTT broker; devices join by themselves.

    \b
    Example:
      edgefl aggregate run.toml --broker mqtt://127.0.0.1:1883
    """
    from edgefl.runs import run as verbs

    again = shlex.join(["edgefl", "aggregate", str(run_file), *(["--broker", url] if url else [])])
    _carry(partial(verbs.aggregate, run_file, broker=url, resume=resume), again, form)


@click.command()
@click.argument("run_file", type=click.Path(path_type=Path))
@resume_option
@format_option
def run(run_file: Path, resume: bool, form: str) -> None:
    """Run broker, aggregator and an emulated fleet on this machine, all from RUN_FILE.

    \b
    Example:
      edgefl run examples/digits.toml
    """
    from edgefl.runs import run as verbs

    again = shlex.join(["edgefl", "run", str(run_file)])
    _carry(partial(verbs.run, run_file, resume=resume), again, form)


@click.command()
@click.option("--devices", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where to write."
)
@click.option("--engine", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@resume_option
@format_option
def demo(
    devices: int, runs: Path, engine: Literal["auto", "mosquitto", "iotcore"], seed: int, resume: bool, form: str
) -> None:
    """See it all: 8 emulated devices learn handwritten digits, each from its own uneven part.

    Exports a small CNN, starts an MQTT broker, device processes and an aggregator, and leaves runs/ID/report.html.

    \b
    Example:
      edgefl demo
    """
    from edgefl.runs import run as verbs
    from edgefl.runs.demo import demo_run

    config = demo_run(devices, runs.resolve(), engine, seed)
    options = (("devices", devices, 8), ("runs", runs, Path("runs")), ("engine", engine, "auto"), ("seed", seed, 0))
    changed = [word for name, value, default in options if value != default for word in (f"--{name}", str(value))]
    again = shlex.join(["edgefl", "demo", *changed])
    _carry(partial(verbs.run, config, resume=resume), again, form)


# --- parts --------------------------------------------------------------------------------------------------------


def _carry(carry: Callable[..., Result], again: str, form: str) -> None:
    """Carry a run in front of a person: a table while it goes on, then how good, where it is. `again`: the command that
    goes on after Ctrl-C."""
    from edgefl.cli.live import LiveTable
    from edgefl.runs.result import Interrupted

    try:
        with LiveTable() as table:
            result = carry(on_begin=table.begun, on_round=table.round_done, progress=table.progress)
    except Interrupted as interrupted:
        result = interrupted.result
    if form == "json":
        print_json(_summary(result))
    elif result.finished:
        _print(result)
    if not result.finished:
        tell(f"stopped after {result.rounds} rounds, everything is saved in {_shown(result.path)}")
        tell(f"go on with: {again} --resume")
        raise SystemExit(130)


def _summary(result: Result) -> dict[str, object]:
    records = result.history
    return {
        "accuracy": result.accuracy,
        "rounds": result.rounds,
        "seconds": records[-1].elapsed_s if records else 0.0,
        "bytes_up": sum(r.bytes_up for r in records),
        "bytes_down": sum(r.bytes_down for r in records),
        "run_dir": str(result.path),
        "finished": result.finished,
    }


def _print(result: Result) -> None:
    from edgefl.results.rounds import facts, size

    place = _shown(result.path)
    click.echo(", ".join(f"{name} {value}" for name, value in facts(result.history)))
    click.echo(f"report:    {place / 'report.html'}")
    for path in result.models:
        click.echo(f"model:     {place / path.relative_to(result.path)} ({size(path.stat().st_size)})")
    if not result.models:
        click.echo("models:    each device has its own, in its state folder")
    if (result.path / "weights.safetensors").exists():
        click.echo(f"weights:   {place / 'weights.safetensors'}")


def _shown(place: Path) -> Path:
    """A path as a person would type it here."""
    return Path(os.path.relpath(place)) if place.is_relative_to(Path.cwd()) else place
