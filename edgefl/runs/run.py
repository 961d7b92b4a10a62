"""The two verbs that carry a run: `aggregate` with whoever comes, `run` with a broker and a fleet of its own.

    result = run("digits.toml", on_round=lambda record: print(record))

Nothing is printed: a caller sees progress through callbacks, the end as a `Result`, Ctrl-C as `Interrupted` when
everything is saved.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefl.address import Address
from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.record import Record
from edgefl.aggregator.serve import Server, Watcher
from edgefl.aggregator.store import Store
from edgefl.errors import ConfigError
from edgefl.method import State
from edgefl.methods import DEFAULT
from edgefl.results.overview import write_overview
from edgefl.results.pictures import write_pictures
from edgefl.runs import questions
from edgefl.runs.directory import Resume, run_directory
from edgefl.runs.fleet import Fleet
from edgefl.runs.outcome import PICTURES, leave
from edgefl.runs.parts import deal
from edgefl.runs.prepare import Prepared, prepare, tls_of
from edgefl.runs.reports import write_run_report
from edgefl.runs.result import Interrupted, Result
from edgefl.runs.run_file import run_file_of, to_toml
from edgefl.runs.sections import BrokerEngine, FleetSection, ProfileSection, RunFile


@dataclass(frozen=True)
class Begun:
    """A run that is about to open its first round, or the one in which it was stopped.

    path            its directory
    rounds          that it has at most; None where its length is counted otherwise
    own_accuracy    whether devices measure their own models beside the aggregator
    """

    name: str
    path: Path
    method: str
    classes: Sequence[DeviceClass]
    records: Sequence[Record]
    rounds: int | None
    own_accuracy: bool


@dataclass(frozen=True)
class _Watch:
    """Who is told what happens."""

    begun: Callable[[Begun], None]
    round_done: Callable[[Record], None]
    progress: Callable[[str], None]


def _ignore(what: object) -> None:
    pass


def aggregate(
    run_file: RunFile | Mapping[str, Any] | str | Path,
    *,
    broker: str | None = None,
    once: bool = False,
    resume: Resume = False,
    on_begin: Callable[[Begun], None] = _ignore,
    on_round: Callable[[Record], None] = _ignore,
    progress: Callable[[str], None] = _ignore,
) -> Result:
    """Run the aggregator against an MQTT broker; devices join by themselves.

    run_file    the path of a file (TOML), or the same as a RunFile or a dict
    broker      mqtt://HOST:PORT, instead of the run file's
    once        raise BrokerError where no broker is there, instead of waiting for it
    resume      go on with the last run of that name (True), with one by its own name or directory, or, "auto", with
                the last where it is unfinished; else begin a new one
    on_begin    told before the first round; `on_round` after each, when it is durable; `progress` one line at a time

    Raises ConfigError, BundleError, BrokerError; Interrupted on Ctrl-C, when everything is saved.
    """
    config = run_file_of(run_file)
    url = broker or config.broker.url
    if url is None:
        raise ConfigError(
            f"run {config.name!r} has no broker",
            hint='add [broker] url = "mqtt://127.0.0.1:1883", or give --broker',
        )
    with run_directory(config, resume=resume, progress=progress) as (config, place):
        result = _carry(config, place, url, _Watch(on_begin, on_round, progress), parts={}, once=once)
    return _ended(result)


def run(
    run_file: RunFile | Mapping[str, Any] | str | Path,
    *,
    resume: Resume = False,
    on_begin: Callable[[Begun], None] = _ignore,
    on_round: Callable[[Record], None] = _ignore,
    progress: Callable[[str], None] = _ignore,
) -> Result:
    """Run broker, aggregator and an emulated fleet on this machine, all from one run file.

    Options, and what is raised, as of `aggregate`; ConfigError also for a run file without a fleet.
    """
    watch = _Watch(on_begin, on_round, progress)
    config = run_file_of(run_file)
    if config.fleet is None:
        raise ConfigError(
            "the run file has no [fleet]", hint="add [fleet] devices = 8 and data = ..., or use `edgefl aggregate`"
        )
    asked = config.fleet
    with run_directory(config, resume=resume, progress=progress) as (config, place), contextlib.ExitStack() as stack:
        parts = deal(config.fleet or asked, place / "data", config.seed)
        url, check = config.broker.url, _nothing
        if url is None:
            url, check = _start_broker(config.broker.engine, stack, watch)
        result = _carry(config, place, url, watch, parts=parts, check=check)
    return _ended(result)


def _ended(result: Result) -> Result:
    """What a caller gets, when nobody uses the run's directory any more. Raises Interrupted for a run that stopped."""
    if not result.finished:
        raise Interrupted(result)
    return result


def _start_broker(engine: BrokerEngine, stack: contextlib.ExitStack, watch: _Watch) -> tuple[str, Callable[[], None]]:
    """A broker of this run, stopped with `stack`: its address, and what starts it again should it have ended."""
    import edgefl_broker

    broker = edgefl_broker.start(engine)
    stack.callback(lambda: broker.stop())
    watch.progress(f"broker: {broker.engine} {broker.version} at {broker.url}")

    def keep() -> None:
        nonlocal broker
        if not broker.alive():
            watch.progress(f"the broker ended by itself; starting it again at {broker.url}")
            broker.stop()
            broker = edgefl_broker.start(broker.engine, port=broker.port)

    return broker.url, keep


def _nothing() -> None:
    pass


def _carry(
    config: RunFile,
    place: Path,
    url: str,
    watch: _Watch,
    *,
    parts: dict[str, Path],
    once: bool = False,
    check: Callable[[], None] = _nothing,
) -> Result:
    """Carry a run to its end, with a fleet of our own where there are `parts` of data, or whoever comes."""
    address = Address.parse(url)
    ready = prepare(config, place, watch.progress)
    config = ready.config
    begun = (place / "run.json").exists()
    store = Store.open(place) if begun else Store.create(place, to_toml(config))
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        own = ready.evaluate is not None and getattr(ready.method, "evaluate", False)
        called, rounds = str(config.method.get("name", DEFAULT)), questions.rounds_of(ready.method)
        watch.begun(Begun(place.name, place, called, ready.classes, store.records(), rounds, own))
        server = Server(
            place.name,
            ready.classes,
            ready.method,
            store,
            address,
            settings=ready.settings,
            seed=config.seed,
            evaluate=ready.evaluate,
            work=ready.work,
            fusing=ready.fusing,
            target_accuracy=config.evaluate.target_accuracy if config.evaluate else None,
            tls=tls_of(config.broker),
            requests=(config.broker.requests_per_s, config.broker.requests_burst),
            once=once,
            watcher=_watcher(ready, store, watch),
        )
        devices = None
        if parts and config.fleet is not None:
            devices = stack.enter_context(_fleet(config, config.fleet, url, place, parts))

        def check_all() -> None:
            check()
            if devices is not None:
                devices.check()

        if not server.serve(check_all):
            return Result(place, finished=False)
        try:
            leave(ready, server.coordinator.state.tensors, place, store.records(), watch.progress)
        except KeyboardInterrupt:
            return Result(place, finished=False)
        result = Result(place, finished=True)
        try:
            write_run_report(place, config)
            write_overview(place.parent)
        except KeyboardInterrupt:
            raise Interrupted(result) from None
        if devices is not None:
            devices.wait(10.0)
    return result


def _watcher(ready: Prepared, store: Store, watch: _Watch) -> Watcher:
    """What a round leaves for a person, before the caller hears of it."""
    folder = store.path / PICTURES
    if (state := store.load_state()) is not None:
        write_pictures(folder, questions.pictures_of(ready.method, state))  # a kill may have come before them

    def round_done(record: Record, state: State) -> None:
        write_pictures(folder, questions.pictures_of(ready.method, state))
        if warning := questions.warning_of(ready.method, record.measured):
            store.event("warning", round=record.round, text=warning)
            watch.progress(f"warning: {warning}")
        watch.round_done(record)

    return Watcher(round_done, watch.progress)


def _fleet(config: RunFile, fleet: FleetSection, url: str, place: Path, parts: dict[str, Path]) -> Fleet:
    files = {k: v for k in ("ca", "cert", "key") if (v := getattr(config.broker, k)) is not None}
    options = _profile_options(list(parts), fleet.profile)
    return Fleet(url, place.name, parts, place / "devices", options=options, threads=fleet.threads, tls=files)


def _profile_options(names: list[str], profiles: Sequence[ProfileSection]) -> dict[str, list[str]]:
    """The words by which each emulated device states and sets what its profile says; devices take profiles by turns."""
    found: dict[str, list[str]] = {}
    for name, profile in zip(names, itertools.cycle(profiles), strict=False):
        stated = (("--memory-mb", profile.memory_mb), ("--cores", profile.cores))
        found[name] = [word for option, value in stated if value is not None for word in (option, str(value))]
        found[name] += [word for key, value in profile.settings.items() for word in ("--set", f"{key}={value!r}")]
    return found
