"""A run in memory: the real aggregator, store, sessions, journals and runtimes around a broker made of lists.

The clock moves by hand. The broker routes by topic, keeps what is retained, and can lose, double and reorder what it
delivers, by a seed. A device trains at once, on the thread of the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from edgefl import protocol
from edgefl.aggregator.actions import Action, Evaluate, SaveDevice, SaveOpenRound, SaveRound
from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.record import Record
from edgefl.aggregator.rounds import Note
from edgefl.aggregator.session import Aggregator
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store
from edgefl.bundle import Bundle
from edgefl.errors import BundleError, NotFinite
from edgefl.manifest import PORTABLE
from edgefl.method import Method, State
from edgefl.protocol import Message, Outgoing
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.wire.actions import (
    Cancel,
    Conflict,
    Done,
    Job,
    Perform,
    Prepare,
    Subscribe,
    Unfit,
    Unsubscribe,
)
from edgefl_device.wire.session import Session
from edgefl_device.work.interpreter import Outcome, answer
from edgefl_device.work.kept import Buffers

RUN = "toy"
AGGREGATOR = "the aggregator"
MOST_STEPS = 50_000  # of one `run`; the longest test needs a tenth of it


class Killed(Exception):
    """What a test raises in the aggregator to end it there."""


@dataclass
class Broker:
    """Delivers to whoever subscribed. `drop` and `duplicate` are chances from 0 to 1; `lost` says what vanishes."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: bool = False
    seed: int = 0
    lost: Callable[[str, str], bool] = lambda client, topic: False
    published: list[Outgoing] = field(default_factory=list)  # everything that was ever said
    retained: dict[str, bytes] = field(default_factory=dict)
    subscribed: dict[str, list[str]] = field(default_factory=dict)
    pending: list[tuple[str, str, bytes, bool]] = field(default_factory=list)  # client, topic, payload, retained

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def publish(self, message: Outgoing) -> None:
        self.published.append(message)
        if message.retain:
            self.retained[message.topic] = message.payload
        for client, patterns in self.subscribed.items():
            if any(_matches(pattern, message.topic) for pattern in patterns):
                self._deliver(client, message.topic, message.payload, False)

    def subscribe(self, client: str, pattern: str) -> None:
        self.subscribed.setdefault(client, []).append(pattern)
        for topic, payload in self.retained.items():
            if _matches(pattern, topic):
                self._deliver(client, topic, payload, True)

    def unsubscribe(self, client: str, pattern: str) -> None:
        self.subscribed[client].remove(pattern)

    def forget(self, client: str) -> None:
        """The connection is cut: nothing on its way arrives."""
        self.subscribed.pop(client, None)
        self.pending = [p for p in self.pending if p[0] != client]

    def next(self) -> tuple[str, str, bytes, bool]:
        return self.pending.pop(self._rng.randrange(len(self.pending)) if self.reorder else 0)

    def said(self, kind: type[Message]) -> list[Message]:
        """Every published message of one type."""
        messages = (protocol.decode(m.payload)[0] for m in self.published)
        return [m for m in messages if isinstance(m, kind)]

    def _deliver(self, client: str, topic: str, payload: bytes, retained: bool) -> None:
        if self.lost(client, topic) or self._rng.random() < self.drop:
            return
        copies = 2 if self._rng.random() < self.duplicate else 1
        self.pending += [(client, topic, payload, retained)] * copies


def _matches(pattern: str, topic: str) -> bool:
    wanted, got = pattern.split("/"), topic.split("/")
    return len(wanted) == len(got) and all(w in ("+", g) for w, g in zip(wanted, got, strict=True))


class Node:
    """One device: what `edgefl_device.taking_part` does, without threads."""

    def __init__(
        self,
        world: World,
        name: str,
        data: Dataset,
        *,
        client: str = "",
        directory: str = "",
        capabilities: Mapping[str, int] | None = None,
    ) -> None:
        self.world, self.name, self._data = world, name, data
        self.client = client or name  # differs from the name where two devices use one
        self.directory = world.directory / (directory or name)
        self.lives = 0
        self.engine = PORTABLE
        self.capabilities = {"train_examples": len(data), "test_examples": len(data)} | dict(capabilities or {})
        self.jobs: list[tuple[int, str]] = []  # (round, nonce) of every training, over all lives
        self.log: list[str] = []
        self.done = self.conflict = False
        self.unfit: BundleError | None = None
        self.tamper: Callable[[Outcome], Outcome] = lambda outcome: outcome
        self.start()

    def start(self) -> None:
        """A new process on the same directory."""
        self.world.broker.forget(self.client)
        self.lives += 1
        instance = f"{self.client}, life {self.lives}"
        self.session = Session(
            RUN,
            self.name,
            self.directory,
            engine=self.engine,
            capabilities=self.capabilities,
            instance=instance,
            log=self.log.append,
        )
        self.session.inline_bytes = self.world.inline_bytes
        self.runtime: Runtime | None = None
        self._job: Job | None = None
        self._connect(again=False)

    def reconnect(self) -> None:
        """The connection was cut, and stands again; the aggregator hears the will late or never."""
        self.world.broker.forget(self.client)
        self._connect(again=True)

    def _connect(self, *, again: bool) -> None:
        self.will = self.session.will()
        for topic in self.session.subscriptions():
            self.world.broker.subscribe(self.client, topic)
        self._blobs = [] if not again else self._blobs
        for topic in self._blobs:
            self.world.broker.subscribe(self.client, topic)
        self.carry_out(self.session.connected(self.world.now_s, again=again))

    def receive(self, topic: str, payload: bytes, retained: bool) -> None:
        self.carry_out(self.session.receive(topic, payload, self.world.now_s, retained=retained))

    def step(self) -> None:
        if self._job is not None:
            job, self._job = self._job, None
            assert self.runtime is not None
            self.jobs.append(job.key)
            feeds = {"train": self._fitted} | ({"test": self._fitted} if self.capabilities["test_examples"] else {})
            done = answer(
                self.runtime,
                job.announcement.tasks,
                job.tensors,
                feeds,
                self.session.private,
                device=self.name,
                own=job.settings,
                buffers=Buffers(
                    self.directory / f"{RUN}.kept",
                    round=job.announcement.round,
                    ask=job.announcement.nonce,
                    before=job.announcement.before,
                ),
            )
            self.carry_out(
                self.session.performed(job, replace(done, outcome=self.tamper(done.outcome)), self.world.now_s)
            )
        self.carry_out(self.session.tick(self.world.now_s))

    @property
    def busy(self) -> bool:
        return self._job is not None

    def carry_out(self, actions: list[object]) -> None:
        for action in actions:
            match action:
                case Outgoing():
                    self.world.broker.publish(action)
                case Subscribe(topic):
                    self._blobs.append(topic)
                    self.world.broker.subscribe(self.client, topic)
                case Unsubscribe(topic):
                    self._blobs.remove(topic)
                    self.world.broker.unsubscribe(self.client, topic)
                case Prepare(bundle):
                    self.runtime = Runtime(bundle)
                    self._fitted = fit_to_contract(self._data, bundle.manifest.data, "training data")
                case Unfit(error):
                    self.unfit = error
                case Perform(job):
                    self._job = job
                case Cancel():
                    self._job = None
                case Done():
                    self.done = True
                case Conflict():
                    self.conflict = True
                    self._job = None
                    self.world.broker.forget(self.client)
                case _:
                    raise AssertionError(action)


class World:
    """One run: its broker, its aggregator, its devices, its clock."""

    def __init__(
        self,
        directory: Path,
        bundle: Bundle | Sequence[DeviceClass],
        method: Method,
        data: Mapping[str, Dataset],
        *,
        broker: Broker | None = None,
        settings: RoundSettings | None = None,
        capabilities: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
        inline_bytes: int = protocol.CHUNK_BYTES,
    ) -> None:
        """A bundle for all, or device classes. Every device is needed in every round, unless `settings` says otherwise;
        `capabilities`: what a device states, beside what all do; `inline_bytes`: what travels in one message."""
        self.inline_bytes = inline_bytes
        random.seed(broker.seed if broker else 0)  # of the sessions' jitter
        self.directory, self.method = directory, method
        self.classes = [DeviceClass("all", bundle)] if isinstance(bundle, Bundle) else list(bundle)
        self.broker = broker or Broker()
        self.settings = settings or RoundSettings(min_devices=len(data), quorum=1.0, deadline_s=60.0)
        self.now_s = 0.0
        self.notes: list[Note] = []
        self.records: list[Record] = []  # of each round that was kept
        self.evaluate: Callable[[State], dict[str, float]] = lambda state: {}
        self.kill: Callable[[str], None] = lambda moment: None
        self.store = Store.create(directory / "run", "")
        self._start_aggregator()
        self.nodes = {
            name: Node(self, name, examples, capabilities=capabilities.get(name)) for name, examples in data.items()
        }

    # --- the aggregator ---------------------------------------------------------------------------------------

    def _start_aggregator(self) -> None:
        self.broker.forget(AGGREGATOR)
        self.coordinator = Coordinator(
            self.method,
            self.store.load_state() or self.method.start(),
            self.settings,
            secret=self.store.secret,
            epoch=self.store.epoch,
            resumed=self.store.open_round(),
            replied={device for record in self.store.records() for device in record.devices},
        )
        self.aggregator = Aggregator(
            RUN,
            self.classes,
            self.coordinator,
            epoch=self.store.epoch,
            assigned=self.store.classes(),
            examples=self.store.examples(),
            inline_bytes=self.inline_bytes,
            last=next(reversed(self.store.records()), None),
        )
        for pattern in self.aggregator.subscriptions():
            self.broker.subscribe(AGGREGATOR, pattern)
        self.carry_out(self.aggregator.start(self.now_s))

    def restart_aggregator(self) -> None:
        """kill -9, then --resume. The broker says the will of the first."""
        self.broker.forget(AGGREGATOR)
        self.broker.publish(self.aggregator.will())
        self.store.close()
        self.store = Store.open(self.directory / "run")
        self._start_aggregator()

    def carry_out(self, actions: list[Action], say: Callable[[Outgoing], None] | None = None) -> None:
        """What `edgefl.aggregator.serve` does. `say`: instead of publishing."""
        for action in actions:
            match action:
                case Outgoing():
                    (say or self.broker.publish)(action)
                case SaveDevice(device, class_name, examples):
                    self.store.save_device(device, class_name, examples)
                case SaveOpenRound(announce):
                    self.store.save_open_round(announce)
                case Evaluate(state):
                    self.carry_out(self._measure(state), say)
                case SaveRound(state, record):
                    self.kill("before the round is durable")
                    self.store.save_round(state, record)
                    self.records.append(record)
                    self.kill("after the round is durable")
                case Note():
                    self.notes.append(action)
                case _:
                    raise AssertionError(action)

    def _measure(self, state: State) -> list[Action]:
        try:
            metrics = self.evaluate(state)
        except NotFinite as error:
            return self.aggregator.failed(error.message, self.now_s)
        return self.aggregator.evaluated(metrics, self.now_s)

    def receive(self, topic: str, payload: bytes, now_s: float) -> list[Outgoing]:
        """What the aggregator answers a frame with: nobody hears it, but everything else is done."""
        return self._answers(self.aggregator.receive(topic, payload, now_s))

    def tick(self, now_s: float) -> list[Outgoing]:
        """What it says as time passes, as `receive`."""
        return self._answers(self.aggregator.tick(now_s))

    def _answers(self, actions: list[Action]) -> list[Outgoing]:
        said: list[Outgoing] = []
        self.carry_out(actions, said.append)
        return said

    # --- time -------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool] | None = None, *, within_s: float = 3600.0) -> None:
        """Carry everything out until `until`, by default until every device knows that the run is finished."""
        until = until or (lambda: all(node.done or node.conflict for node in self.nodes.values()))
        end_s = self.now_s + within_s
        steps = 0
        while not until():
            steps += 1
            assert steps < MOST_STEPS, f"no end of messages: {[(p[0], p[1]) for p in self.broker.pending[:5]]}"
            assert self.now_s < end_s, f"nothing happens: {self.notes[-5:]}"
            try:
                self.step()
            except Killed:
                self.restart_aggregator()

    def step(self) -> None:
        """Deliver one message; when there is none, work; when there is no work, let time pass."""
        if self.broker.pending:
            client, topic, payload, retained = self.broker.next()
            if client == AGGREGATOR:
                self.carry_out(self.aggregator.receive(topic, payload, self.now_s))
            else:
                next(n for n in self.nodes.values() if n.client == client).receive(topic, payload, retained)
            return
        for node in self.nodes.values():
            if not node.conflict:
                node.step()
        self.carry_out(self.aggregator.tick(self.now_s))
        if not self.broker.pending and not any(node.busy for node in self.nodes.values()):
            wakes = [node.session.wake_s(self.now_s) for node in self.nodes.values() if not node.conflict]
            self.now_s = max(self.now_s, min([self.aggregator.wake_s(self.now_s), *wakes])) + 0.001

    # --- questions --------------------------------------------------------------------------------------------

    @property
    def rounds(self) -> list[tuple[int, tuple[str, ...]]]:
        """(round, who was counted) of each round that was kept."""
        return [(record.round - 1, tuple(record.devices)) for record in self.records]

    def events(self, event: str) -> list[tuple[str, str]]:
        """(device, text) of the notes of one kind."""
        return [(note.device, note.text) for note in self.notes if note.event == event]


def with_tensors(outcome: Outcome, **changed: object) -> Outcome:
    """The same outcome with some tensors replaced."""
    return replace(outcome, tensors={**outcome.tensors, **changed})
