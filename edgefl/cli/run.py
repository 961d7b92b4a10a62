"""Commands that carry a run: aggregate, run, demo."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.coordinator import RoundSettings
from edgefl.aggregator.serve import Server, Watcher
from edgefl.aggregator.store import Record, Store
from edgefl.cli.live import LiveTable
from edgefl.cli.output import format_option, print_json, tell
from edgefl.cli.prepare import classes_of, evaluator_of, fusing_of, method_of, round_of, student_of, write_models
from edgefl.cli.report import ALBUM, write_run_report
from edgefl.errors import ConfigError
from edgefl.files import locked
from edgefl.method import Method, State
from edgefl.methods.codream import CoDream
from edgefl.mqtt import Address, Tls
from edgefl.results.album import Album
from edgefl.results.report import facts, size
from edgefl.runs.fleet import Fleet
from edgefl.runs.run_file import (
    BrokerEngine,
    BrokerSection,
    EvaluateSection,
    FleetSection,
    ProfileSection,
    RunFile,
    read_run_file,
    resumed,
    to_toml,
)

resume_option = click.option("--resume", is_flag=True, help="Go on with the last run of this file.")


@click.command(short_help="Run the aggregator against an MQTT broker.")
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
    config = read_run_file(run_file)
    url = url or config.broker.url
    if url is None:
        raise ConfigError(f"{run_file}: no broker", hint='add [broker] url = "mqtt://127.0.0.1:1883", or give --broker')
    command = shlex.join(
        ["edgefl", "aggregate", str(run_file), *(["--broker", url] if url != config.broker.url else [])]
    )
    with _run_directory(config, resume) as (config, place):
        result = _aggregate(config, place, url, command, fleet=None)
    _finish(result, form)


@click.command(short_help="Run broker, aggregator and emulated fleet here.")
@click.argument("run_file", type=click.Path(path_type=Path))
@resume_option
@format_option
def run(run_file: Path, resume: bool, form: str) -> None:
    """Run broker, aggregator and an emulated fleet on this machine, all from RUN_FILE.

    \b
    Example:
      edgefl run examples/digits.toml
    """
    config = read_run_file(run_file)
    _finish(_run_here(config, resume, shlex.join(["edgefl", "run", str(run_file)])), form)


@click.command(short_help="See it all: 8 devices learn digits.")
@click.option("--devices", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where to write."
)
@click.option("--engine", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@resume_option
@format_option
def demo(devices: int, runs: Path, engine: BrokerEngine, seed: int, resume: bool, form: str) -> None:
    """See it all: 8 emulated devices learn handwritten digits, each from its own uneven part.

    Exports a small CNN, starts an MQTT broker, device processes and an aggregator, and leaves runs/ID/report.html.

    \b
    Example:
      edgefl demo
    """
    config = RunFile(
        name="demo",
        model="zoo:digits",
        seed=seed,
        runs=str(runs.resolve()),
        broker=BrokerSection(engine=engine),
        method={"name": "fedavg", "rounds": 40, "epochs": 2, "batch_size": 16, "learning_rate": 0.1},
        round=RoundSettings(min_devices=devices, deadline_s=60.0),
        evaluate=EvaluateSection(data="digits", target_accuracy=0.97),
        fleet=FleetSection(devices=devices, data="digits", partition="dirichlet", alpha=0.5),
    )
    options = (("devices", devices, 8), ("runs", runs, Path("runs")), ("engine", engine, "auto"), ("seed", seed, 0))
    changed = [word for name, value, default in options if value != default for word in (f"--{name}", str(value))]
    again = shlex.join(["edgefl", "demo", *changed])
    _finish(_run_here(config, resume, again), form)


# --- parts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    store: Store
    finished: bool
    again: str  # the command that goes on


@contextlib.contextmanager
def _run_directory(given: RunFile, resume: bool) -> Iterator[tuple[RunFile, Path]]:
    """A new run's file and directory, or those of the run to go on with. What never became a run is removed."""
    config = given
    runs = Path(config.runs)
    place = runs / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if resume:
        ours = re.compile(re.escape(config.name) + r"-\d{8}-\d{6}")
        known = sorted(p for p in runs.glob("*/run.json") if ours.fullmatch(p.parent.name))
        if not known:
            raise ConfigError(f"no run of {config.name!r} in {runs} to resume", hint="start one without --resume")
        place = known[-1].parent
        config = resumed(read_run_file(place / "run.toml"), given)
    busy = ConfigError(f"another process carries the run {place}", hint="stop it first, or start a new run")
    try:
        with locked(place / "lock", busy):
            yield config, place
    except BaseException:
        if not resume and not (place / "open.json").exists():
            shutil.rmtree(place, ignore_errors=True)
        raise


def _run_here(given: RunFile, resume: bool, again: str) -> _Result:
    """Broker, fleet and aggregator on this machine."""
    import edgefl_broker
    from edgefl.cli.data import write_parts

    if given.fleet is None:
        raise ConfigError(
            "the run file has no [fleet]", hint="add [fleet] devices = 8 and data = ..., or use `edgefl aggregate`"
        )
    with _run_directory(given, resume) as (config, place), contextlib.ExitStack() as stack:
        fleet = config.fleet or given.fleet
        names = [f"device-{i + 1}" for i in range(fleet.devices)]
        parts = place / "data"
        if not (parts / f"{names[-1]}.npz").exists():
            write_parts(
                fleet.data,
                parts,
                names,
                fleet.partition,
                fleet.alpha,
                fleet.per_device,
                config.seed,
                fleet.examples,
            )
        data = {name: parts / f"{name}.npz" for name in names}
        url = config.broker.url
        if url is not None:
            return _aggregate(config, place, url, again, fleet=data)
        broker = edgefl_broker.start(config.broker.engine)
        stack.callback(lambda: broker.stop())
        tell(f"broker: {broker.engine} {broker.version} at {broker.url}")

        def keep_broker() -> None:
            nonlocal broker
            if not broker.alive():
                tell(f"the broker ended by itself; starting it again at {broker.url}")
                broker.stop()
                broker = edgefl_broker.start(broker.engine, port=broker.port)

        return _aggregate(config, place, broker.url, again, fleet=data, check=keep_broker)


def _aggregate(
    config: RunFile,
    place: Path,
    url: str,
    again: str,
    *,
    fleet: dict[str, Path] | None,
    check: Callable[[], None] = lambda: None,
) -> _Result:
    """Carry a run to its end, with a fleet of our own or whoever comes."""
    address = Address.parse(url)
    classes = classes_of(config, place)
    method = method_of(config, classes, student_of(config, place))
    evaluate = evaluator_of(config, classes, method)
    fuse = fusing_of(config, classes, place)
    begun = (place / "run.json").exists()
    store = Store.open(place) if begun else Store.create(place, to_toml(config))
    run_id = place.name
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        title = f"run {run_id}: {', '.join(one.name for one in classes)}, {config.method.get('name', 'fedavg')}"
        table = stack.enter_context(
            LiveTable(title, store.records(), own=evaluate is not None and getattr(method, "evaluate", False))
        )
        server = Server(
            run_id,
            classes,
            method,
            store,
            address,
            settings=round_of(config, method),
            seed=config.seed,
            evaluate=evaluate,
            fusing=fuse,
            target_accuracy=config.evaluate.target_accuracy if config.evaluate else None,
            tls=_tls(config.broker),
            requests=(config.broker.requests_per_s, config.broker.requests_burst),
            watcher=_watcher(table, method, store),
        )
        devices = None
        if fleet is not None and config.fleet is not None:
            files = {k: v for k in ("ca", "cert", "key") if (v := getattr(config.broker, k)) is not None}
            words = _profile_options(list(fleet), config.fleet.profile)
            devices = stack.enter_context(
                Fleet(url, run_id, fleet, place / "devices", options=words, threads=config.fleet.threads, tls=files)
            )

        def check_all() -> None:
            check()
            if devices is not None:
                devices.check()

        finished = server.serve(check_all)
        if finished:
            _write_results(store, classes, server, config)
            if devices is not None:
                devices.wait(10.0)
    return _Result(store, finished, again)


def _watcher(table: LiveTable, method: Method, store: Store) -> Watcher:
    """The table, and for dreams an album."""
    shown = table.watcher()
    if not isinstance(method, CoDream):
        return shown
    album = Album(method, store.path / ALBUM)
    if (state := store.load_state()) is not None:
        album.add(state)  # a kill may have come between the round and its picture

    def round_done(record: Record, state: State) -> None:
        album.add(state)
        if warning := album.warning(record):
            store.event("likeness", round=record["round"], text=warning)
            shown.progress(f"warning: {warning}")
        shown.round_done(record, state)

    return Watcher(round_done, shown.progress)


def _profile_options(names: list[str], profiles: Sequence[ProfileSection]) -> dict[str, list[str]]:
    """The words by which each emulated device states and sets what its profile says; devices take profiles by turns."""
    found: dict[str, list[str]] = {}
    for name, profile in zip(names, itertools.cycle(profiles), strict=False):
        stated = (("--memory-mb", profile.memory_mb), ("--cores", profile.cores))
        found[name] = [word for option, value in stated if value is not None for word in (option, str(value))]
        found[name] += [word for key, value in profile.settings.items() for word in ("--set", f"{key}={value!r}")]
    return found


def _tls(broker: BrokerSection) -> Tls:
    return Tls(*(Path(p) if p else None for p in (broker.ca, broker.cert, broker.key)))


def _write_results(store: Store, classes: Sequence[DeviceClass], server: Server, config: RunFile) -> None:
    """What a finished run leaves: weights, inference models, a report."""
    tensors = server.coordinator.state.tensors
    write_models(server.coordinator.method, classes, tensors, store.path)
    write_run_report(store.path, config, classes)


def _finish(result: _Result, form: str) -> None:
    """The last lines: how good, where it is, how to go on."""
    records = result.store.records()
    last = records[-1] if records else {}
    place = result.store.path
    shown = Path(os.path.relpath(place)) if place.is_relative_to(Path.cwd()) else place
    if form == "json":
        print_json(
            {
                "accuracy": last.get("accuracy"),
                "rounds": last.get("round", 0),
                "seconds": last.get("elapsed_s", 0.0),
                "bytes_up": sum(r["bytes_up"] for r in records),
                "bytes_down": sum(r["bytes_down"] for r in records),
                "run_dir": str(place),
                "finished": result.finished,
            }
        )
    elif result.finished:
        click.echo(", ".join(f"{name} {value}" for name, value in facts(records)))
        click.echo(f"report:    {shown / 'report.html'}")
        models = (*place.glob("model.onnx"), *sorted(place.glob("models/*.onnx")))
        for path in models:
            click.echo(f"model:     {shown / path.relative_to(place)} ({size(path.stat().st_size)})")
        if not models:
            click.echo("models:    each device has its own, in its state folder")
        if (place / "weights.safetensors").exists():
            click.echo(f"weights:   {shown / 'weights.safetensors'}")
    if not result.finished:
        tell(f"stopped after {last.get('round', 0)} rounds, everything is saved in {shown}")
        tell(f"go on with: {result.again} --resume")
        raise SystemExit(130)
