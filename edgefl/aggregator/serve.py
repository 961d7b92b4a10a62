"""Carries one run over MQTT: the connection, the clock and the run directory around an `Aggregator`."""

from __future__ import annotations

import contextlib
import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from edgefl import protocol
from edgefl.address import Address, Tls
from edgefl.aggregator.actions import Action, Evaluate, SaveDevice, SaveOpenRound, SaveRound
from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.fusion import Fusing, fusing
from edgefl.aggregator.record import Record
from edgefl.aggregator.rounds import GivenUp, Note
from edgefl.aggregator.session import REQUESTS_BURST, REQUESTS_PER_S, Aggregator
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store
from edgefl.errors import BelowQuorum, BrokerError, EdgeflError, InputError, NotFinite
from edgefl.memory import keep_freed
from edgefl.method import Method, State, Work, Worked
from edgefl.mqtt import Connection
from edgefl.patience import Rarely, reach
from edgefl.protocol import Outgoing
from edgefl.tensors import Array
from edgefl.transport import Broken, Connected, Disconnected, Received, Transport

CHECK_S = 1.0
FLEET_S = 10.0  # how often devices.json is written, at most
_SAID = (
    "failed",
    "refused",
    "asked again",
    "undone",
    "passed over",
    "back",
    "quorum",
    "below quorum",
    "protocol error",
    "no bundle",
    "no test data",
    "data",
    "odd",
    "run is full",
    "too many requests",
)
FAREWELL_S = 2.0  # devices leave within a tenth of that; some may be gone already

# The tensors of a state -> "evaluate.loss", "evaluate.correct" ... Raises NotFinite for a state that has diverged.
Measure = Callable[[Mapping[str, Array]], dict[str, float]]


@dataclass(frozen=True)
class Watcher:
    """Who wants to see a run while it goes on."""

    round_done: Callable[[Record, State], None] = lambda record, state: None
    progress: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class _StopRequest:
    """Ctrl-C, or a polite kill."""


class Server:
    """One run's aggregator process."""

    def __init__(
        self,
        run: str,
        classes: Sequence[DeviceClass],
        method: Method,
        store: Store,
        address: Address,
        *,
        settings: RoundSettings,
        seed: int,
        evaluate: Measure | None = None,
        work: Callable[[Work], Worked] | None = None,
        fusing: Fusing = fusing,
        target_accuracy: float | None = None,
        tls: Tls | None = None,
        requests: tuple[float, float] = (REQUESTS_PER_S, REQUESTS_BURST),
        once: bool = False,
        watcher: Watcher = Watcher(),
    ) -> None:
        """`evaluate` measures a state on data of the aggregator's; `work` is the model of a method that has one;
        `requests`: how many answers a second each device gets, and how many at once; `once`: do not wait for a broker
        that is not there."""
        self.store = store
        self._once = once
        self._evaluate = evaluate
        self._work = work
        self._watcher = watcher
        self._rarely = Rarely(watcher.progress)
        records = store.records()
        self._fleet_saved, self._fleet_saved_s = store.fleet(), -math.inf
        self.coordinator = Coordinator(
            method,
            store.load_state() or method.start(),
            settings,
            seed=seed,
            secret=store.secret,
            epoch=store.epoch,
            resumed=store.open_round(),
            replied={device for record in records for device in record.devices},
            fusing=fusing,
        )
        self._connection: Transport = Connection(
            address, f"edgefl-{run}-aggregator", will=self._will, tls=tls, folder=store.path
        )
        self._aggregator = Aggregator(
            run,
            classes,
            self.coordinator,
            epoch=store.epoch,
            assigned=store.classes(),
            examples=store.examples(),
            room=self._connection.room,
            requests_per_s=requests[0],
            requests_burst=requests[1],
            first=records[0] if records else None,
            last=records[-1] if records else None,
            known=self._fleet_saved,
            target_accuracy=target_accuracy,
        )

    def serve(self, check: Callable[[], None] | None = None) -> bool:
        """Carry the run to its end; False when it was stopped before. Raises BrokerError; KeyboardInterrupt only while
        it waits for the broker.

        `check` is called about every second; what it raises ends the run as an error.
        """
        keep_freed(block_bytes=4 * 2**20, all_bytes=32 * 2**20)
        self._connection.subscribe(*self._aggregator.subscriptions())
        reach(self._connection, self._watcher.progress, once=self._once)
        self._fit_packets()
        events: queue.SimpleQueue[Any] = self._connection.inbox
        next_check_s = time.monotonic() + CHECK_S
        self.store.event("started", epoch=self.store.epoch, broker=str(self._connection.address))
        try:
            with _signals_to(events):
                self._carry_out(self._aggregator.start(time.monotonic()))
                self._check_room()
                while not self._aggregator.finished and self._step(events):
                    self._save_fleet(every_s=FLEET_S)
                    if check is not None and time.monotonic() >= next_check_s:
                        check()
                        next_check_s = time.monotonic() + CHECK_S
                with contextlib.suppress(EdgeflError):  # the run is finished, whatever becomes of the connection
                    self._say_farewell(events)
        finally:
            if not self._aggregator.finished:
                with contextlib.suppress(EdgeflError):  # the connection may be what ended the run
                    message = self._aggregator.will()
                    self._connection.publish(message.topic, message.payload, retain=True)
            self._connection.close()
            self._save_fleet()
            self.store.event("finished" if self._aggregator.finished else "stopped")
        return self._aggregator.finished

    def _fit_packets(self) -> None:
        """Messages no larger than the broker takes, as far as is known now."""
        part_bytes, least = self._connection.part_bytes, protocol.MIN_CHUNK_BYTES
        self._aggregator.chunk_bytes = part_bytes(protocol.CHUNK_BYTES, least)
        self._aggregator.inline_bytes = part_bytes(protocol.INLINE_BYTES, least)
        self._aggregator.frame_bytes = part_bytes(protocol.MAX_FRAME_BYTES, least)

    def _save_fleet(self, *, every_s: float = 0.0) -> None:
        """Write down what is known of the devices, where that has changed and was not written just now."""
        known, now_s = self._aggregator.fleet.known, time.monotonic()
        if now_s - self._fleet_saved_s >= every_s and known != self._fleet_saved:
            self.store.save_fleet(known)
            self._fleet_saved, self._fleet_saved_s = dict(known), now_s

    def _check_room(self) -> None:
        """Raise BrokerError where the broker's packets are too small to name the devices that a round needs."""
        most, wanted = self._aggregator.most_devices, self.coordinator.settings.min_devices
        if most < wanted:
            raise BrokerError(
                f"an announcement over the broker at {self._connection.address} can name {most} devices; the run needs "
                f"{wanted} ([round] min_devices)",
                hint="raise the broker's packet limit (mosquitto: max_packet_size)",
            )

    def _say_farewell(self, events: queue.SimpleQueue[Any]) -> None:
        """Answer the devices that ask whether the run is finished, until they have left."""
        end_s = time.monotonic() + FAREWELL_S
        while self._aggregator.finished and self.coordinator.present and time.monotonic() < end_s:
            if not self._step(events):
                return

    def _step(self, events: queue.SimpleQueue[Any]) -> bool:
        now_s = time.monotonic()
        try:
            event = events.get(timeout=max(0.0, self._aggregator.wake_s(now_s) - now_s))
        except queue.Empty:
            event = None
        now_s = time.monotonic()
        match event:
            case Received(topic, payload, _):
                self._carry_out(self._aggregator.receive(topic, payload, now_s))
            case Connected(first) if not first:
                self.store.event("connected again")
                self._rarely("connected to the broker again")
                self._fit_packets()
                self._carry_out(self._aggregator.reconnected())
            case Disconnected(reason):
                self.store.event("connection lost", text=reason)
                self._rarely(f"connection to the broker lost ({reason}); connecting again")
            case Broken(error):
                raise error
            case _StopRequest():
                self._carry_out(self._aggregator.stop(now_s))
                return False
        self._carry_out(self._aggregator.tick(now_s))
        return True

    # --- what the session wants done --------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> None:
        """In this order: what is to be durable is, before anybody hears what follows from it."""
        for action in actions:
            match action:
                case Outgoing(topic, payload, retain, expires_s):
                    self._connection.publish(topic, payload, retain=retain, expires_s=expires_s)
                case SaveDevice(device, class_name, examples):
                    self.store.save_device(device, class_name, examples)
                case SaveOpenRound(announce):
                    self.store.save_open_round(announce)
                case Work():
                    self._carry_out(self._do(action))
                case Evaluate(state):
                    self._carry_out(self._measure(state))
                case SaveRound(state, record):
                    self._keep(state, record)
                case Note():
                    self._note(action)
                case GivenUp(round, text):
                    self.store.event("given up", round=round + 1, text=text)
                    raise BelowQuorum(
                        f"round {round + 1} is below its quorum for longer than {self._patience()}: {text}",
                        hint="everything is saved: go on with --resume when they are back"
                        if round or self.coordinator.replies[1]
                        else "start devices, then the run",
                    )

    def _do(self, work: Work) -> list[Action]:
        assert self._work is not None, "a method with a model of its own, and nobody who carries out its work"
        try:
            done = self._work(work)
        except InputError:
            raise  # a setting that is wrong, and would be in every attempt
        except EdgeflError as error:
            return self._aggregator.failed(f"the aggregator's own model: {error.message}", time.monotonic())
        return self._aggregator.worked(done, time.monotonic())

    def _measure(self, state: State) -> list[Action]:
        try:
            metrics = {} if self._evaluate is None else self._evaluate(state.tensors)
        except NotFinite as error:
            return self._aggregator.failed(error.message, time.monotonic())
        return self._aggregator.evaluated(metrics, time.monotonic())

    def _keep(self, state: State, record: Record) -> None:
        self.store.save_round(state, record)
        if record.durable:
            self.store.event("round done", round=record.round, replies=record.replies)
        self._watcher.round_done(record, state)

    def _note(self, note: Note) -> None:
        self.store.note(note)
        replies, asked = self.coordinator.replies
        if note.event in _SAID:
            about = f" device {note.device}" if note.device else ""
            self._watcher.progress(f"round {note.round + 1}:{about} {note.event}: {note.text}")
        elif asked:
            self._watcher.progress(f"{self._about()}: {replies} of {asked} replies")
        else:
            self._watcher.progress(f"waiting for devices: {self.coordinator.missing(time.monotonic())}")

    def _patience(self) -> str:
        return f"{self.coordinator.settings.patience_s:g} s ([round] patience_s)"

    def _about(self) -> str:
        """The open round, for a person."""
        return self.coordinator.about or f"round {self.coordinator.state.round + 1}"

    def _will(self) -> tuple[str, bytes]:
        message = self._aggregator.will()
        return message.topic, message.payload


@contextmanager
def _signals_to(events: queue.SimpleQueue[Any]) -> Iterator[None]:
    """Ctrl-C and SIGTERM become an event, so that they never cut a fusion in two. A second Ctrl-C ends at once.

    Beside the main thread nobody can: there they are the caller's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        events.put(_StopRequest())

    before = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
