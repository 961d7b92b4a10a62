"""Commands that carry a run: aggregate, run, demo."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgefl.cli.output import print_json, stream_option
from edgefl.cli.teller import Teller, tells
from edgefl.errors import EdgeflError

if TYPE_CHECKING:
    from edgefl.runs.result import Result

resume_option = click.option("--resume", is_flag=True, help="Go on with the last run of this file.")


@click.command()
@click.argument("run_file", type=click.Path(path_type=Path))
@click.option("--broker", "url", help="Instead of the run file's [broker] url.")
@resume_option
@stream_option
@tells
def aggregate(run_file: Path, url: str | None, resume: bool, form: str, teller: Teller) -> None:
    """Run the aggregator of RUN_FILE against an MQTT broker; devices join by themselves.

    \b
    Example:
      edgefl aggregate run.toml --broker mqtt://127.0.0.1:1883
    """
    from edgefl.runs import run as verbs

    again = shlex.join(["edgefl", "aggregate", str(run_file), *(["--broker", url] if url else [])])
    _carry(partial(verbs.aggregate, run_file, broker=url, resume=resume), again, form, teller)


@click.command()
@click.argument("run_file", type=click.Path(path_type=Path))
@resume_option
@stream_option
@tells
def run(run_file: Path, resume: bool, form: str, teller: Teller) -> None:
    """Run broker, aggregator and an emulated fleet on this machine, all from RUN_FILE.

    \b
    Example:
      edgefl run examples/digits.toml
    """
    from edgefl.runs import run as verbs

    again = shlex.join(["edgefl", "run", str(run_file)])
    _carry(partial(verbs.run, run_file, resume=resume), again, form, teller)


@click.command()
@click.option("--devices", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where to write."
)
@click.option("--engine", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@resume_option
@stream_option
@tells
def demo(
    devices: int,
    runs: Path,
    engine: Literal["auto", "mosquitto", "iotcore"],
    seed: int,
    resume: bool,
    form: str,
    teller: Teller,
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
    _carry(partial(verbs.run, config, resume=resume), again, form, teller)


# --- parts --------------------------------------------------------------------------------------------------------


def _carry(carry: Callable[..., Result], again: str, form: str, teller: Teller) -> None:
    """Carry a run in front of a person: a table while it goes on, then how good, where it is. `again`: the command that
    goes on after Ctrl-C."""
    from edgefl.cli.live import LiveTable
    from edgefl.cli.stream import JsonLines
    from edgefl.runs.result import Interrupted

    stream = JsonLines() if form == "jsonl" else None
    try:
        with LiveTable(teller) as table:
            watchers: list[LiveTable | JsonLines] = [table, stream] if stream else [table]
            result = carry(
                on_begin=_each(watcher.begun for watcher in watchers),
                on_round=_each(watcher.round_done for watcher in watchers),
                progress=_each(watcher.progress for watcher in watchers),
            )
    except Interrupted as interrupted:
        result = interrupted.result
    except EdgeflError as error:
        if stream:
            stream.error(error)
        raise
    if stream:
        stream.result(_summary(result))
    elif form == "json":
        print_json(_summary(result))
    elif result.finished:
        _print(result)
    if not result.finished:
        teller.tell(f"stopped after {result.rounds} rounds, everything is saved in {_shown(result.path)}")
        teller.tell(f"go on with: {again} --resume")
        raise SystemExit(130)


def _each(told: Iterable[Callable[[Any], None]]) -> Callable[[Any], None]:
    """What tells all of them."""
    all_told = list(told)

    def tell(what: Any) -> None:
        for one in all_told:
            one(what)

    return tell


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
