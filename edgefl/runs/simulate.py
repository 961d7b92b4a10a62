"""The verb that carries a run in this process: no broker, no device processes, nothing on disk that stays.

Everything but the network is the real thing: the run file, bundles, tasks, the coordinator, fusion.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefl.aggregator.classes import class_of, stated
from edgefl.aggregator.record import Record, record_of
from edgefl.errors import ConfigError
from edgefl.manifest import PORTABLE
from edgefl.memory import installed_mb
from edgefl.method import State
from edgefl.protocol import Presence
from edgefl.runs.parts import deal
from edgefl.runs.prepare import Prepared, prepare
from edgefl.runs.run_file import run_file_of
from edgefl.runs.sections import FleetSection, ProfileSection, RunFile
from edgefl.runs.simulation import Device, Simulation
from edgefl.tensors import Tensors


@dataclass(frozen=True)
class Simulated:
    """A run that was carried in this process: what is noted of each round, and the method's state at the end."""

    history: tuple[Record, ...]
    state: State

    @property
    def accuracy(self) -> float | None:
        """Of the last round on the evaluation data, 0 to 1; None where none was measured."""
        return self.history[-1].accuracy if self.history else None

    @property
    def weights(self) -> Tensors:
        """The method's tensors at the end: of most methods the fused weights, by name."""
        return self.state.tensors


def _ignore(what: object) -> None:
    pass


def simulate(
    run_file: RunFile | Mapping[str, Any] | str | Path,
    *,
    on_round: Callable[[Record], None] = _ignore,
    progress: Callable[[str], None] = _ignore,
) -> Simulated:
    """Carry a run with its emulated fleet in this process, one device after the other; every round waits for all.

    Options as of `edgefl.run`. Bytes are those of tensors, without a wire. Raises as `edgefl.run`, but for the broker;
    what an `on_round` raises ends the run.
    """
    config = run_file_of(run_file)
    if config.fleet is None:
        raise ConfigError("the run file has no [fleet]", hint="add [fleet] devices = 8 and data = ...")
    begun_s = time.monotonic()
    target = config.evaluate.target_accuracy if config.evaluate else None
    history: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ready = prepare(config, place, progress)
        devices = _devices(config.fleet, ready, deal(config.fleet, place / "data", config.seed))
        bundles = {one.name: one.bundle for one in ready.classes}
        fleet = Simulation(bundles, devices, threads=config.fleet.threads, kept=place / "kept")
        state = ready.method.start()
        for done in fleet.rounds(ready.method, ready.settings, seed=config.seed, fusing=ready.fusing, work=ready.work):
            evaluated: Mapping[str, float] = {}
            if ready.evaluate is not None and done.durable:
                evaluated = ready.evaluate(done.state.tensors)
            history.append(record_of(done, fleet.take_traffic(), evaluated, time.monotonic() - begun_s))
            state = done.state
            on_round(history[-1])
            if target is not None and (history[-1].accuracy or 0.0) >= target:
                break
    return Simulated(tuple(history), state)


def _devices(fleet: FleetSection, ready: Prepared, parts: Mapping[str, Path]) -> list[Device]:
    """The fleet's devices, each of the class that suits what its profile states."""
    from edgefl_device.engines.engine import name_of
    from edgefl_device.sources import read_splits

    devices = []
    profiles = itertools.cycle(fleet.profile or (ProfileSection(),))
    for (name, path), profile in zip(parts.items(), profiles, strict=False):
        splits = read_splits(path)
        presence = Presence(
            name,
            1,
            "up",
            cores=profile.cores or os.cpu_count() or 0,
            memory_mb=profile.memory_mb or installed_mb(),
            runtime=name_of(PORTABLE),
            engine=PORTABLE,
            train_examples=len(splits.train),
            test_examples=len(splits.test) if splits.test is not None else 0,
        )
        one = class_of(presence, ready.classes)
        if one is None:
            raise ConfigError(
                f"no [[bundle]] of the run file is for {stated(presence)}",
                hint=f"of {name}: give [fleet] a profile, or the run a [[bundle]] without `for`",
            )
        feeds = {"train": splits.train} | ({"test": splits.test} if splits.test is not None else {})
        devices.append(Device(name, one.name, feeds, settings={**one.settings, **profile.settings}))
    return devices
