"""Emulated devices in this process: everything but the network is the real thing.

fleet = Simulation({"cnn1": bundle}, [Device("device-0", "cnn1", {"train": train, "test": test})])
for done in fleet.rounds(method, RoundSettings(fraction=0.1), seed=0):
    print(done.round, done.fused.metrics)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.fusion import Fusing, fusing
from edgefl.aggregator.record import Traffic
from edgefl.aggregator.rounds import Action, Announce, RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.method import Method, Reply, State, Task, Work, Worked
from edgefl.tensors import Tensors
from edgefl_device.data import Dataset, fit_all
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Outcome, answer, perform
from edgefl_device.work.kept import Buffers
from edgefl_device.work.private import Private


@dataclass
class Device:
    """One emulated device.

    bundle      which of the fleet's bundles it has
    feeds       its own data: "train", and "test" where it has that
    settings    its own settings, in place of a task's where the program has them: max_steps = 4
    private     its own state after the last ask; empty before the first, when it is the bundle's
    metrics     what it measured in the last ask
    """

    name: str
    bundle: str
    feeds: Mapping[str, Dataset]
    settings: Mapping[str, float] = field(default_factory=dict)
    private: Private = field(default_factory=Private)
    metrics: Mapping[str, float] = field(default_factory=dict)


class Simulation:
    """Devices that share one runtime per bundle, each with its private state. `bundles`: name -> bundle.

    `kept`: a folder for the buffers of examples that tasks keep, for methods that have such. `traffic` counts the bytes
    of the tensors that devices were announced and sent.
    """

    def __init__(
        self, bundles: Mapping[str, Bundle], devices: Sequence[Device], *, threads: int = 1, kept: Path | None = None
    ) -> None:
        self._kept = kept
        self.traffic = Traffic()
        self.runtimes = {name: Runtime(bundle, threads=threads) for name, bundle in bundles.items()}
        self.devices = {device.name: device for device in devices}
        for device in devices:
            contract = bundles[device.bundle].manifest.data
            called = {f"{device.name}'s {feed} data": data for feed, data in device.feeds.items()}
            fitted, _ = fit_all(called, contract)
            device.feeds = dict(zip(device.feeds, fitted.values(), strict=True))

    def perform(self, device: Device, tasks: Sequence[Task], tensors: Tensors, round: int = 0) -> Outcome:
        """One device carries out tasks, from its private state to its private state."""
        done = answer(
            self.runtimes[device.bundle],
            tasks,
            tensors,
            device.feeds,
            device.private,
            device=device.name,
            own=device.settings,
            buffers=None if self._kept is None else Buffers(self._kept / device.name, round=round),
        )
        device.private = done.private
        device.metrics = done.outcome.metrics
        return done.outcome

    def carry_out(self, announce: Announce, coordinator: Coordinator) -> list[Action]:
        """Every asked device does its tasks and replies; what the coordinator wants next."""
        actions: list[Action] = []
        for name in announce.devices:
            outcome = self.perform(self.devices[name], announce.ask.tasks, announce.ask.tensors, announce.round)
            sent = sum(array.nbytes for array in outcome.tensors.values())
            self.traffic.up[name] = self.traffic.up.get(name, 0) + sent
            self.traffic.down += sum(array.nbytes for array in announce.ask.tensors.values())
            reply = Reply(name, announce.round, outcome.examples, outcome.tensors, outcome.metrics, outcome.steps)
            verdict, wanted = coordinator.replied(reply, announce.nonce, time.monotonic())
            assert verdict.status == "accepted", verdict
            actions += wanted
        return actions

    def take_traffic(self) -> Traffic:
        """What was counted since it was last taken."""
        taken, self.traffic = self.traffic, Traffic()
        return taken

    def rounds(
        self,
        method: Method,
        settings: RoundSettings,
        *,
        seed: int,
        fusing: Fusing = fusing,
        state: State | None = None,
        work: Callable[[Work], Worked] | None = None,
    ) -> Iterator[RoundDone]:
        """Each round when it is fused, until the method's end or until nobody asks for the next.

        `seed`: of who is asked. A round waits for all its replies. `state`: to go on from, in place of the first.
        `work`: the model of a method that has one.
        """
        settings = msgspec.structs.replace(settings, min_devices=len(self.devices), quorum=1.0, deadline_s=float("inf"))
        coordinator = Coordinator(method, state or method.start(), settings, seed=seed, fusing=fusing)
        pending: list[Action] = []
        for name in self.devices:
            pending += coordinator.joined(name, time.monotonic())
        while pending:
            action = pending.pop(0)
            if isinstance(action, Announce):
                pending += self.carry_out(action, coordinator)
            elif isinstance(action, Work):
                assert work is not None
                pending += coordinator.worked(work(action), time.monotonic())
            elif isinstance(action, RoundDone):
                yield action
                pending += coordinator.begin(time.monotonic())

    def evaluate(
        self, bundle: str, tensors: Tensors, test: Dataset, settings: Mapping[str, float] = MappingProxyType({})
    ) -> tuple[float, float]:
        """Accuracy and loss on data of the aggregator, of the shared tensors alone."""
        runtime = self.runtimes[bundle]
        task = Task(program="evaluate", feed="test", load=("*",), batch_size=500, settings=dict(settings))
        feeds = {"test": fit_all({"test data": test}, runtime.manifest.data)[0]["test data"]}
        metrics = perform(runtime, [task], tensors, feeds, device="aggregator").metrics
        return metrics["evaluate.correct"] / metrics["evaluate.examples"], metrics["evaluate.loss"]
