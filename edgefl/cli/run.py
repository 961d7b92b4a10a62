"""Commands that carry a run: aggregate, run, demo."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgefl.cli.install import check_print, install_options, install_or_print, words
from edgefl.cli.output import print_json, stream_option
from edgefl.cli.teller import Teller, tells
from edgefl.service import Service, edgefl_command

if TYPE_CHECKING:
    from edgefl.runs.result import Result
    from edgefl.runs.run import Begun

LAST = "the last run"  # no name of a run: what --resume without one stands for


def _resume(context: click.Context, option: click.Parameter, said: str | None) -> bool | str:
    return False if said is None else True if said == LAST else said


resume_option = click.option(
    "--resume",
    metavar="[RUN]",
    is_flag=False,
    flag_value=LAST,
    callback=_resume,
    help="Go on with RUN, a name or a directory; without RUN with the last run of this file; `auto`: with the last "
    "where it is unfinished, else begin one.",
)
once_option = click.option("--once", is_flag=True, help="Fail where no broker is there, instead of waiting for it.")
run_file_argument = click.argument("run_file", type=click.Path(path_type=Path), required=False)


@click.command()
@run_file_argument
@click.option("--broker", "url", envvar="EDGEFL_BROKER", help="Instead of the run file's [broker] url.")
@once_option
@resume_option
@install_options
@stream_option
@tells
def aggregate(
    run_file: Path | None,
    url: str | None,
    once: bool,
    resume: bool | str,
    install: bool,
    printed: bool,
    form: str,
    teller: Teller,
) -> None:
    """Run the aggregator of RUN_FILE against an MQTT broker; devices join by themselves.

    \b
    Example:
      edgefl aggregate run.toml --broker mqtt://127.0.0.1:1883
    """
    from edgefl.runs import run as verbs

    path, resume = _asked(run_file, resume)
    check_print(install, printed)
    if install:
        install_or_print(_service(path, url), printed=printed, tell=teller.tell)
        return
    again = shlex.join(["edgefl", "aggregate", str(path), *(["--broker", _masked(url)] if url else [])])
    _carry(partial(verbs.aggregate, path, broker=url, once=once, resume=resume), again, form, teller)


@click.command()
@run_file_argument
@resume_option
@stream_option
@tells
def run(run_file: Path | None, resume: bool | str, form: str, teller: Teller) -> None:
    """Run broker, aggregator and an emulated fleet on this machine, all from RUN_FILE.

    \b
    Example:
      edgefl run examples/digits.toml
    """
    from edgefl.runs import run as verbs

    path, resume = _asked(run_file, resume)
    again = shlex.join(["edgefl", "run", str(path)])
    _carry(partial(verbs.run, path, resume=resume), again, form, teller)


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
    resume: bool | str,
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


def _service(run_file: Path, url: str | None) -> Service:
    """The aggregator as a service: of the user whose run file it is, in its folder, until the run is over."""
    from edgefl.runs.run_file import read_run_file

    name = read_run_file(run_file).name
    folder = run_file.resolve().parent
    given = words(click.get_current_context(), leave_out=("url", "resume", "once", "log", "form"))
    return Service(
        name=f"edgefl-aggregator-{name}",
        about=f"edgefl aggregator of {name}",
        command=(edgefl_command(), "aggregate", *given, "--resume", "auto"),
        user=folder.owner(),
        environment={"EDGEFL_BROKER": url} if url else {},
        reads=[run_file.resolve()],
        folder=folder,
        ends=True,
    )


# --- parts --------------------------------------------------------------------------------------------------------


def _asked(run_file: Path | None, resume: bool | str) -> tuple[Path, bool | str]:
    """RUN_FILE and what to resume. In `--resume RUN_FILE` the option has taken the file for a run."""
    if run_file is not None:
        return run_file, resume
    if isinstance(resume, str):
        return Path(resume), True
    raise click.UsageError("Missing argument 'RUN_FILE'.")


def _carry(carry: Callable[..., Result], again: str, form: str, teller: Teller) -> None:
    """Carry a run in front of a person: a table while it goes on, then how good, where it is. `again`: the command that
    goes on after Ctrl-C."""
    from edgefl.cli.live import LiveTable
    from edgefl.cli.stream import JsonLines, each
    from edgefl.runs.result import Interrupted

    stream, stopped = JsonLines() if form == "jsonl" else None, False
    begun: list[Begun] = []
    try:
        with LiveTable(teller) as table:
            watchers: list[LiveTable | JsonLines] = [table, stream] if stream else [table]
            result = carry(
                on_begin=each([begun.append, *(watcher.begun for watcher in watchers)]),
                on_round=each(watcher.round_done for watcher in watchers),
                progress=each(watcher.progress for watcher in watchers),
            )
    except Interrupted as interrupted:
        result, stopped = interrupted.result, True
    except Exception as error:
        if stream:
            stream.error(error)
        if begun and begun[0].path.exists():
            teller.tell(f"what is done is saved; go on with: {again} --resume {begun[0].name}")
        raise
    if stream:
        stream.result(_summary(result))
    elif form == "json":
        print_json(_summary(result))
    elif result.finished:
        _print(result)
    place = _shown(result.path)
    if not result.finished:
        teller.tell(f"stopped after {result.rounds} rounds, everything is saved in {place}")
        teller.tell(f"go on with: {again} --resume {result.path.name}")
    elif stopped:
        teller.tell(f"stopped before its report was written; get it with: edgefl report {shlex.quote(str(place))}")
    if stopped:
        raise SystemExit(130)


def _masked(url: str) -> str:
    """A broker's address as it may be printed: what is said ends in logs."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{scheme}://{user}{colon and ':***'}{at}{place}"


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
    if result.report().exists():
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
