"""A device process: connects, trains on a thread of its own, and takes part until the run is finished."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgefl import protocol
from edgefl.errors import BrokerError, ConfigError, EdgeflError, ProtocolError
from edgefl.files import locked, write_atomic
from edgefl.manifest import PORTABLE
from edgefl.memory import installed_mb, keep_freed
from edgefl.mqtt import Address, Connection, Tls
from edgefl.protocol import AggregatorStatus, Outgoing
from edgefl.tensors import save_tensors
from edgefl.transport import Broken, Connected, Disconnected, Received, Transport
from edgefl_device.data.contract import fit_all
from edgefl_device.data.dataset import Splits
from edgefl_device.engines.engine import Engine, name_of, start
from edgefl_device.wire.actions import (
    Action,
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
from edgefl_device.work.interpreter import Answer, Outcome, answer
from edgefl_device.work.kept import Buffers
from edgefl_device.work.plan import all_settings, check_own_settings
from edgefl_device.work.state_folder import sweep_state
from edgefl_device.work.stopping import Stop, Stopped

LAST_STEP_S = 30.0  # wait so long for the step under way when the run ends
LEAVING_S = 3.0  # an emulated device whose run was killed notices within a second; the next may start meanwhile
DESERTED_S = 600.0  # a run whose aggregator says nothing for so long is left for another: it may be fusing, or learning
RUNS_SETTLE_S = 0.2  # retained messages of all runs arrive together; wait so long for a second run

Log = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a device takes part. `run` None: the one run that is up on the broker."""

    broker: Address
    name: str
    data: Splits
    state: Path
    run: str | None = None
    tls: Tls | None = None
    threads: int = 1
    engine: str = PORTABLE
    memory_mb: int | None = None  # what it states instead of what it has; so with cores
    cores: int | None = None
    settings: Mapping[str, float] = field(default_factory=dict)  # of programs, its own
    as_is: bool = False  # data far outside the bundle's range are used all the same
    parent: int | None = None  # end when this process is no longer our parent


@dataclass(frozen=True)
class _Performed:
    job: Job
    answered: Answer


@dataclass(frozen=True)
class _Failed:
    job: Job
    reason: str


def participate(options: Options, log: Log) -> None:
    """Take part in one run until it is finished.

    Raises InputError (the engine is not installed), BrokerError, BundleError (the run's bundle cannot be used),
    DataError (the data does not fit it), ConfigError; KeyboardInterrupt leaves cleanly.
    """
    name_of(options.engine)
    # What glibc keeps by default cost, for a model of 6.7 MB, 14 MB at the peak and 40 MB after it
    # (bench/device_memory.py); to keep nothing made a dream step twice the work (bench/dream_floor.py).
    keep_freed(block_bytes=2**20, all_bytes=4 * 2**20)
    busy = ConfigError(
        f"another device process uses {options.state}", hint="give every device its own --name, or its own --state"
    )
    with locked(options.state / "lock", busy, patience_s=LEAVING_S):
        sweep_state(options.state)
        dead = ""  # the run whose aggregator was not heard for long: what the broker has kept of it counts no more
        while True:
            run = options.run or find_run(options.broker, options.name, options.tls, log, dead=dead)
            if _Participant(options, run, log).take_part():
                return
            dead = run


def find_run(broker: Address, name: str, tls: Tls | None, log: Log, *, dead: str = "") -> str:
    """The run whose aggregator is up; waits until there is one. Raises ConfigError when there are several.

    Of several that the broker has kept, those count whose aggregator says again that it is up; so does `dead` only
    then.
    """
    connection: Transport = Connection(broker, f"edgefl-find-{name}", tls=tls)
    connection.subscribe(protocol.aggregator_topic("+"))
    connection.connect()
    runs: dict[str, bool] = {}  # that are up -> whether somebody has said so since we listen
    waiting_s, told = math.inf, ""
    try:
        while True:
            try:
                event = connection.inbox.get(timeout=RUNS_SETTLE_S)
            except queue.Empty:
                event = None
            if isinstance(event, Broken):
                raise event.error
            if event is not None:
                if isinstance(event, Received):
                    _note_run(event, runs)
                continue
            said = sorted(run for run, heard in runs.items() if heard)
            found = said or sorted(runs.keys() - {dead})
            if len(said) > 1:
                raise ConfigError(f"{len(said)} runs are up: {', '.join(said)}", hint="choose with --run")
            if len(found) == 1 and (len(runs) == 1 or time.monotonic() >= waiting_s):
                return found[0]
            line = f"connected to {broker}; waiting for an aggregator"
            if len(runs) > 1:
                line = f"waiting until one of {', '.join(sorted(runs))} says that it is up, or choose with --run"
            if runs and waiting_s == math.inf:
                waiting_s = time.monotonic() + protocol.STATUS_AGAIN_S
            if line != told:
                log(line)
                told = line
    finally:
        connection.close()


def _note_run(event: Received, runs: dict[str, bool]) -> None:
    try:
        message, _ = protocol.decode(event.payload)
        run = protocol.run_of(event.topic)
    except ProtocolError:
        return
    if isinstance(message, AggregatorStatus):
        if message.status == "up":
            runs[run] = runs.get(run, False) or not event.retained
        else:
            runs.pop(run, None)


class _Participant:
    """The connection, the clock and the training thread of one session."""

    def __init__(self, options: Options, run: str, log: Log) -> None:
        self._options = options
        self._log = log
        self._runtime: Engine | None = None
        self._data: Splits | None = None
        self._jobs: queue.SimpleQueue[tuple[Job, Stop] | None] = queue.SimpleQueue()
        self._stop_job = Stop()
        self._trained = False
        self._fatal: EdgeflError | None = None
        self._done = False
        self._replaced = False  # another device has our name: it is not for us to say that it sleeps
        capabilities: dict[str, int | str] = {
            "memory_mb": installed_mb() if options.memory_mb is None else options.memory_mb,
            "cores": (os.cpu_count() or 0) if options.cores is None else options.cores,
            "runtime": name_of(options.engine),
            "train_examples": len(options.data.train),
            "test_examples": len(options.data.test) if options.data.test is not None else 0,
        }
        self._session = Session(
            run, options.name, options.state, engine=options.engine, capabilities=capabilities, log=log
        )
        self._connection: Transport = Connection(
            options.broker, f"edgefl-{run}-{options.name}", will=self._will, tls=options.tls
        )
        self._events: queue.SimpleQueue[object] = self._connection.inbox  # type: ignore[assignment]

    def take_part(self) -> bool:
        """Until the run is finished; False where its aggregator was not heard for so long that another may be meant."""
        # No daemon: one in the middle of a step aborts the process (SIGABRT) when Python is torn down around it.
        worker = threading.Thread(target=self._work)
        worker.start()
        self._connection.subscribe(*self._session.subscriptions())
        self._connection.connect()
        self._log(f"connected to {self._options.broker}; waiting for the aggregator of run {self._session.run}")
        try:
            while not self._done and not self._is_deserted():
                self._step()
        finally:
            self._stop_job.request()
            self._jobs.put(None)
            self._leave()
        if self._fatal is not None:
            raise self._fatal
        if not self._done:
            return False
        worker.join(LAST_STEP_S)
        if self._trained and not worker.is_alive():
            self._keep_model()
        return True

    def _is_deserted(self) -> bool:
        """Whether to look which run is up: this one was found by itself, and nobody speaks for it."""
        silent = self._session.silent_s(time.monotonic()) > DESERTED_S
        return silent and self._options.run is None and self._session.working is None

    def _step(self) -> None:
        now_s = time.monotonic()
        try:
            event = self._events.get(timeout=max(0.0, self._session.wake_s(now_s) - now_s))
        except queue.Empty:
            event = None
        now_s = time.monotonic()
        actions: list[Action] = []
        match event:
            case Connected(first):
                connection, least = self._connection, protocol.MIN_CHUNK_BYTES
                self._session.chunk_bytes = connection.part_bytes(protocol.CHUNK_BYTES, least)
                self._session.inline_bytes = connection.part_bytes(protocol.INLINE_BYTES, least)
                actions = self._session.connected(now_s, again=not first)
            case Disconnected(reason):
                self._session.disconnected()
                self._log(f"connection lost ({reason}); connecting again")
            case Received(topic, payload, retained):
                actions = self._session.receive(topic, payload, now_s, retained=retained)
            case Broken(error):
                raise error
            case _Performed(job, answered):
                self._trained = True
                self._log(f"round {job.announcement.round + 1}: {_summary(answered.outcome)}")
                actions = self._session.performed(job, answered, now_s)
            case _Failed(job, reason):
                self._log(f"round {job.announcement.round + 1}: cannot do it: {reason}")
                actions = self._session.failed(job, reason, now_s)
        self._carry_out([*actions, *self._session.tick(now_s)])
        if self._options.parent is not None and os.getppid() != self._options.parent:
            self._done = True

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Outgoing(topic, payload, retain):
                    self._connection.publish(topic, payload, retain=retain)
                case Subscribe(topic):
                    self._connection.subscribe(topic)
                case Unsubscribe(topic):
                    self._connection.unsubscribe(topic)
                case Prepare():
                    self._prepare(action)
                case Unfit(error):
                    self._fatal, self._done = error, True
                case Perform(job):
                    self._stop_job.request()  # of the job before
                    self._stop_job = Stop()
                    self._jobs.put((job, self._stop_job))
                case Cancel():
                    self._stop_job.request()
                case Done():
                    self._log("the run is finished")
                    self._done = True
                case Conflict():
                    self._replaced = True
                    raise BrokerError(
                        f"another device named {self._options.name!r} is connected to {self._options.broker}",
                        hint="give every device its own --name",
                    )

    def _prepare(self, action: Prepare) -> None:
        contract = action.bundle.manifest.data
        data = self._options.data
        parts = {"training data": data.train} | ({"test data": data.test} if data.test is not None else {})
        try:
            fitted, note = fit_all(parts, contract, as_is=self._options.as_is)
            check_own_settings(self._options.settings, action.bundle.manifest)
            self._runtime = start(self._options.engine, action.bundle, threads=self._options.threads)
        except EdgeflError as error:
            self._carry_out(self._session.unfit(error.message))
            self._fatal, self._done = error, True
            return
        self._data = Splits(fitted["training data"], fitted.get("test data"))
        self._log(f"bundle {action.bundle.manifest.name}: {len(self._data.train)} training examples")
        if note:
            self._log(f"data: {note}")
            self._carry_out(self._session.note_data(note))

    def _work(self) -> None:
        """The training thread: one job after the other; never touches the connection."""
        while self._do(self._jobs.get()):
            pass  # nothing is held while waiting: a job's tensors can be as large as the model

    def _do(self, work: tuple[Job, Stop] | None) -> bool:
        """Carry out one job; False when there are no more."""
        if work is None:
            return False
        job, stop = work
        try:
            self._events.put(self._perform(job, stop))
        except Stopped:
            pass
        except EdgeflError as error:
            self._events.put(_Failed(job, error.message))
        except Exception as error:  # a bug of ours or of the runtime's: the aggregator should not wait for it
            self._events.put(_Failed(job, f"{type(error).__name__}: {error}"))
        return True

    def _perform(self, job: Job, stop: Stop) -> _Performed:
        runtime, data = self._runtime, self._data
        assert runtime is not None and data is not None
        feeds = {"train": data.train} | ({"test": data.test} if data.test is not None else {})
        # What an earlier job left in the runtime counts only if its reply did.
        answered = answer(
            runtime,
            job.announcement.tasks,
            job.tensors,
            feeds,
            self._session.private,
            device=self._options.name,
            own=all_settings(own=self._options.settings, of_class=job.settings),
            buffers=Buffers(
                self._options.state / f"{self._session.run}.kept",
                round=job.announcement.round,
                ask=job.announcement.nonce,
                before=job.announcement.before,
            ),
            stop=stop,
        )
        return _Performed(job, answered)

    def _keep_model(self) -> None:
        """Leave the model as this device has it: of a method with private state nobody else does."""
        assert self._runtime is not None
        model = [t.name for t in self._runtime.manifest.state if t.role != "optimizer"]
        path = self._options.state / f"{self._session.run}.safetensors"
        write_atomic(path, save_tensors(self._runtime.state(model)))
        self._log(f"this device's model: {path} (edgefl model makes it one file that predicts)")

    def _leave(self) -> None:
        if not self._replaced:
            with contextlib.suppress(EdgeflError):  # the connection may be the reason why we leave
                message = self._session.leave()
                self._connection.publish(message.topic, message.payload, retain=message.retain)
        self._connection.close(timeout_s=2.0)

    def _will(self) -> tuple[str, bytes]:
        message = self._session.will()
        return message.topic, message.payload


def _summary(outcome: Outcome) -> str:
    metrics = (f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    return ", ".join(metrics)
