"""Everything that a run would find wrong before its first round, found without a run: nothing is exported or kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from edgefl.address import Address
from edgefl.aggregator.classes import DeviceClass
from edgefl.errors import ConfigError, DataError, EdgeflError
from edgefl.methods import DEFAULT
from edgefl.mqtt import Connection
from edgefl.runs.evaluation import evaluation_data, evaluator_of
from edgefl.runs.parts import deal
from edgefl.runs.prepare import (
    classes_of,
    fusing_of,
    method_of,
    round_of,
    student_of,
    tls_of,
    with_own_code_kept,
)
from edgefl.runs.questions import rounds_of
from edgefl.runs.run_file import read_run_file
from edgefl.runs.sections import FleetSection, ModelSection, RunFile

LATER = "loads; it is exported when the run begins"


@dataclass(frozen=True)
class Checked:
    """One thing that a run needs: what there is to say of it, or its fault."""

    what: str
    said: str = ""
    fault: EdgeflError | None = None


def check(run_file: Path, *, broker: str | None = None) -> Iterator[Checked]:
    """What a run of this file needs, one after the other, each tried where it can be without a run.

    broker      instead of the run file's; it is connected to. Without either, that of `edgefl run` is looked for
    """
    try:
        config = read_run_file(run_file)
    except EdgeflError as error:
        yield Checked("run file", fault=error)
        return
    yield Checked("run file", f"{run_file}, run {config.name!r}")
    with tempfile.TemporaryDirectory() as folder:
        yield from _parts(config, Path(folder))
    if broker is not None:
        config = msgspec.structs.replace(config, broker=msgspec.structs.replace(config.broker, url=broker))
    yield _tried("broker", lambda: _broker(config))


def _parts(config: RunFile, place: Path) -> Iterator[Checked]:
    """Bundles, method and data, as a run prepares them, in a directory that goes."""
    later = [one for one in (*config.bundles, config.student) if one is not None and one.path is None]
    for section in later:
        yield _tried("model", partial(_model, section, config.seed))
    classes: list[DeviceClass] = []
    if not later:
        bundles = _tried("bundle", lambda: _bundles(config, place, classes))
        yield bundles
        if bundles.fault:
            classes.clear()
    if classes:
        yield _tried("method", lambda: _method(config, place, classes))
    elif later:
        yield Checked("method", f"{_called(config)}; with its bundles it is tried when the run begins")
    if config.evaluate is not None:
        yield _tried("evaluate", lambda: _evaluate(config, place, classes))
    if config.fleet is not None:
        fleet = config.fleet
        yield _tried("fleet", lambda: _fleet(fleet, config, place, classes))


def _tried(what: str, attempt: Callable[[], str]) -> Checked:
    try:
        return Checked(what, attempt())
    except EdgeflError as error:
        return Checked(what, fault=error)


def _model(section: ModelSection, seed: int) -> str:
    from edgefl_exporter.models.load_model import load_model
    from edgefl_exporter.options import checked, options

    assert section.model is not None
    said = options(checked({name: value for name, value in section.options.items() if name != "data"}, "options"))
    load_model(said.method.source(section.model), said.shape, seed=seed)
    return f"{section.model} {LATER}"


def _bundles(config: RunFile, place: Path, classes: list[DeviceClass]) -> str:
    classes += classes_of(config, place, _ignore)
    return ", ".join(f"{one.name} ({one.bundle.manifest.method})" for one in classes)


def _method(config: RunFile, place: Path, classes: list[DeviceClass]) -> str:
    config = with_own_code_kept(config, place)
    method = method_of(config, classes, student_of(config, place, _ignore))
    fusing_of(config, classes)
    settings = round_of(config, method)
    rounds = rounds_of(method)
    length = f", {rounds} rounds" if rounds else ""
    return f"{_called(config)}{length}; a round needs {settings.min_devices} devices to begin"


def _evaluate(config: RunFile, place: Path, classes: list[DeviceClass]) -> str:
    assert config.evaluate is not None
    data, held_out = evaluation_data(config.evaluate, config.seed)
    said = [f"{config.evaluate.data}: {len(data)} examples"]
    if len(held_out):
        said.append(f"{len(held_out)} held out")
    if classes:
        kept = with_own_code_kept(config, place)
        method = method_of(kept, classes, student_of(kept, place, _ignore))
        evaluator_of(kept, classes, method, said.append)
    return "; ".join(said)


def _fleet(fleet: FleetSection, config: RunFile, place: Path, classes: list[DeviceClass]) -> str:
    from edgefl_device.data.contract import fit_all
    from edgefl_device.sources import read_splits

    if (least := config.round.min_devices) > fleet.devices:
        raise ConfigError(
            f"[round] min_devices is {least}, but [fleet] has {fleet.devices} devices: a run would wait",
            hint=f"set min_devices = {fleet.devices}, or start more devices by hand",
        )
    parts = deal(fleet, place / "data", config.seed)
    examples = []
    for name, path in parts.items():
        splits = read_splits(path)
        examples.append(len(splits.train))
        for one in classes[:1]:
            try:
                fit_all({"training data": splits.train}, one.bundle.manifest.data)
            except DataError as error:
                raise DataError(f"{name}: {error.message}", hint=error.hint) from error
    return f"{len(parts)} devices with {min(examples)} to {max(examples)} examples of {fleet.data}"


def _broker(config: RunFile) -> str:
    url = config.broker.url
    if url is None:
        if config.fleet is None:
            raise ConfigError(
                "there is no [broker] url", hint='add url = "mqtt://127.0.0.1:1883" to [broker], or give --broker'
            )
        from edgefl_broker.engines import choose

        return f"{choose(config.broker.engine, None)}, which `edgefl run` starts"
    connection = Connection(Address.parse(url), f"edgefl-{config.name}-check", tls=tls_of(config.broker))
    connection.connect()
    connection.close()
    return f"{connection.address} answers"


def _called(config: RunFile) -> str:
    return str(config.method.get("name", DEFAULT))


def _ignore(line: str) -> None:
    pass
