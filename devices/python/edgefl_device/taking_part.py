"""One device in one run: the connection, the clock and the thread that works around a `Session`."""

from __future__ import annotations

import contextlib
import os
import queue
import time

from edgefl import protocol
from edgefl.errors import EdgeflError, NameTaken
from edgefl.files import write_atomic
from edgefl.mqtt import Connection
from edgefl.patience import Rarely, reach
from edgefl.protocol import Outgoing
from edgefl.tensors import save_tensors
from edgefl.transport import Broken, Connected, Disconnected, Received, Transport
from edgefl_device.data.contract import fit_all
from edgefl_device.data.dataset import Splits
from edgefl_device.data.labels import label_counts
from edgefl_device.engines.engine import Engine, start
from edgefl_device.options import Options, Say
from edgefl_device.runs_up import RunsUp
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
from edgefl_device.work.interpreter import Answer, Outcome, Progress, answer
from edgefl_device.work.kept import Buffers
from edgefl_device.work.plan import all_settings, check_own_settings
from edgefl_device.work.state_folder import Runs
from edgefl_device.work.stopping import Stop
from edgefl_device.worker import Failed, Performed, Progressed, Worker

UNHEARD_S = 5.0  # a run of which only the broker has a word is left after so long when somebody speaks for another


class TakingPart:
    """One device in one run."""

    def __init__(self, options: Options, run: str, log: Say) -> None:
        self._options = options
        self._run = run
        self._log = log
        self._rarely = Rarely(log)
        self._runs = RunsUp()
        self._runtime: Engine | None = None
        self._data: Splits | None = None
        self._trained = False
        self._done = False
        self._replaced = False  # another device has our name: it is not for us to say that it sleeps
        self.unfit: EdgeflError | None = None  # why the device cannot take part in this run
        self._session = Session(
            run, options.name, options.state, engine=options.engine, capabilities=options.capabilities(), log=log
        )
        self._connection: Transport = Connection(
            options.broker, f"edgefl-{run}-{options.name}", will=self._will, tls=options.tls, folder=options.state
        )
        self._events: queue.SimpleQueue[object] = self._connection.inbox  # type: ignore[assignment]

    def until_over(self) -> bool:
        """Take part until the run is finished; False where nobody spoke for it any more, and somebody for another.

        Raises BrokerError, and `unfit`.
        """
        # Every run's aggregator, not ours alone: where ours is gone, another may be meant.
        self._connection.subscribe(protocol.aggregator_topic("+"), *self._session.subscriptions())
        reach(self._connection, self._log, once=self._options.once)
        self._log(f"connected to {self._options.broker}; waiting for the aggregator of run {self._run}")
        worker = self._worker = Worker(self._perform, self._events.put)
        try:
            while not self._done and not self._is_deserted(time.monotonic()):
                self._step()
        finally:
            worker.end()
            self._leave()
        if self.unfit is not None:
            raise self.unfit
        if self._done and worker.has_ended() and self._trained:
            self._keep_model()
        return self._done

    # --- who speaks -------------------------------------------------------------------------------------------

    def _is_deserted(self, now_s: float) -> bool:
        """Whether to look which run is up: this one was found by itself, is silent, and another is not."""
        if self._options.run is not None or self._session.working is not None:
            return False
        patience_s = self._options.patience_s if self._session.heard else UNHEARD_S
        silent = self._session.silent_s(now_s) > patience_s
        return silent and bool(self._runs.said(now_s) - {self._run})

    def _say_waiting(self, now_s: float) -> None:
        """Say, rarely, that nobody speaks for our run."""
        silent_s = self._session.silent_s(now_s)
        if silent_s > (protocol.STATUS_COUNTS_S if self._session.heard else UNHEARD_S):
            others = ", ".join(sorted((self._runs.said(now_s) | self._runs.kept(now_s)) - {self._run}))
            up = f"; up there: {others}" if others else ""
            self._rarely(f"waiting for run {self._run}: nothing is heard of its aggregator{up}")

    def _say_transfer(self) -> None:
        """Say what is on its way, where it is more than a message or two."""
        come, wanted = self._session.fetched
        unsent = self._connection.unsent_bytes()
        if wanted > protocol.CHUNK_BYTES:
            self._options.progress(f"downloading: {come / 1e6:.1f} of {wanted / 1e6:.1f} MB")
        elif unsent > protocol.CHUNK_BYTES:
            self._options.progress(f"sending: {unsent / 1e6:.1f} MB to go")

    # --- events -----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        now_s = time.monotonic()
        self._say_waiting(now_s)
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
                if not first:
                    self._rarely("connected again")
            case Disconnected(reason):
                self._session.disconnected()
                self._rarely(f"connection lost ({reason}); connecting again")
            case Received(topic, payload, retained):
                if topic.startswith(f"{protocol.ROOT}/{self._run}/"):
                    actions = self._session.receive(topic, payload, now_s, retained=retained)
                if topic.endswith("/aggregator"):
                    self._runs.note(event, now_s)
            case Broken(error):
                raise error
            case Progressed():
                self._options.progress(_progress(event))
            case Performed(job, answered):
                self._trained = True
                self._log(f"round {job.announcement.round + 1}: {_summary(answered.outcome)}")
                actions = self._session.performed(job, answered, now_s)
            case Failed(job, reason):
                self._log(f"round {job.announcement.round + 1}: cannot do it: {reason}")
                actions = self._session.failed(job, reason, now_s)
        self._carry_out([*actions, *self._session.tick(now_s)])
        self._say_transfer()
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
                    self.unfit, self._done = error, True
                case Perform(job):
                    self._worker.begin(job)
                case Cancel():
                    self._worker.cancel()
                case Done():
                    self._log("the run is finished")
                    Runs(self._options.state).finish(self._run)
                    self._done = True
                case Conflict():
                    self._replaced = True
                    raise NameTaken(
                        f"another device named {self._options.name!r} is connected to {self._options.broker}",
                        hint="give every device its own --name",
                    )

    # --- work -------------------------------------------------------------------------------------------------

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
            self.unfit, self._done = error, True
            return
        self._data = Splits(fitted["training data"], fitted.get("test data"))
        Runs(self._options.state).begin(self._run, action.bundle.sha256)
        self._log(f"bundle {action.bundle.manifest.name}: {len(self._data.train)} training examples")
        counts = label_counts(self._data.train, contract) if self._options.label_counts else []
        if note:
            self._log(f"data: {note}")
        if note or counts:
            self._carry_out(self._session.note_data(note, counts))

    def _perform(self, job: Job, stop: Stop, progress: Progress) -> Answer:
        """On the worker's thread."""
        runtime, data = self._runtime, self._data
        assert runtime is not None and data is not None
        feeds = {"train": data.train} | ({"test": data.test} if data.test is not None else {})
        # What an earlier job left in the runtime counts only if its reply did.
        return answer(
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
            progress=progress,
        )

    def _keep_model(self) -> None:
        """Leave the model as this device has it: of a method with private state nobody else does."""
        assert self._runtime is not None
        model = [t.name for t in self._runtime.manifest.state if t.role != "optimizer"]
        path = self._options.state / f"{self._session.run}.safetensors"
        write_atomic(path, save_tensors(self._runtime.state(model)))
        self._log(f"this device's model: {path} (edgefl model makes it one file that predicts)")

    # --- the connection ---------------------------------------------------------------------------------------

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


def _progress(at: Progressed) -> str:
    loss = "" if at.loss is None else f", loss {at.loss:.4g}"
    minutes, seconds = divmod(round(at.left_s), 60)
    return (
        f"round {at.job.announcement.round + 1}: {at.program}: batch {at.done} of {at.batches}{loss}, "
        f"{minutes}:{seconds:02} left"
    )
