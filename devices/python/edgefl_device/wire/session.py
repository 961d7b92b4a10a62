"""A device's side of the wire, without I/O but for its journal and its bundles: frames in, actions out.

    for action in session.receive(topic, payload, now_s): ...   Outgoing | Subscribe | Unsubscribe | Prepare | Perform
    session.performed(job, answer, now_s)                       when the work of a `Perform` is done
    session.tick(now_s)                                         repeats what was not answered

The driver (`edgefl_device.taking_part`) owns the connection, the clock and the thread that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from edgefl import protocol
from edgefl.errors import ProtocolError, one_line
from edgefl.manifest import PORTABLE
from edgefl.protocol import (
    AggregatorStatus,
    Announcement,
    Assignment,
    BlobChunk,
    NewerAnnouncement,
    Outgoing,
    Permit,
    Presence,
    Receipt,
    TaskFailed,
)
from edgefl_device.wire import life
from edgefl_device.wire.actions import (
    Action,
    Cancel,
    Conflict,
    Done,
    Job,
    Perform,
)
from edgefl_device.wire.epochs import Epochs
from edgefl_device.wire.failures import Failures
from edgefl_device.wire.offering import Offering
from edgefl_device.wire.presence import OwnPresence
from edgefl_device.wire.supplies import Supplies
from edgefl_device.work.interpreter import Answer
from edgefl_device.work.journal import Kept
from edgefl_device.work.memory import Memory
from edgefl_device.work.private import Private
from edgefl_device.work.upload import Upload

FINISHED_S = 30.0  # "the run is finished" counts when the aggregator says so itself, or says nothing else for so long
LATE_S, LATE = 2.0, 0.1  # after a round's duration so long, and this part of it, its work is given up


class Session:
    """One device in one run."""

    def __init__(
        self,
        run: str,
        device: str,
        directory: Path,
        *,
        engine: str = PORTABLE,
        capabilities: dict[str, int | str] | None = None,
        instance: str | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`directory` holds what survives a restart: bundles, the journal, who we are. `instance` tells this process
        from any other that uses the name; `engine` says which files of a bundle it needs."""
        self.run = run
        self.device = device
        self.chunk_bytes = protocol.CHUNK_BYTES
        self.inline_bytes = protocol.INLINE_BYTES
        self.instance = instance or life.begin(directory)
        self.working: Job | None = None
        self._log = log
        self._memory = Memory(directory, run)
        self._epochs = Epochs(directory, run)
        self._failures = Failures(directory, run)
        self._presence = OwnPresence(run, device, self.instance, engine=engine, capabilities=capabilities or {})
        self._unconfirmed: tuple[Announcement, memoryview] | None = None  # of an epoch that is not heard yet
        self._finished_s = math.inf  # when the run is over, unless the aggregator speaks
        self._assignment: Assignment | None = None
        self._announcement: Announcement | None = None
        self._late_s = math.inf  # when the work under way has taken too long
        self._failed: tuple[int, str] | None = None
        self._supplies = Supplies(run, device, directory / "bundles", engine=engine, log=log)
        self._offering: Offering | None = None

    @property
    def private(self) -> Private:
        """The private state after the last reply that counts; empty at the beginning."""
        bundle = self._supplies.bundle
        return Private() if bundle is None else self._memory.private(bundle.sha256)

    # --- the connection ---------------------------------------------------------------------------------------

    def will(self) -> Outgoing:
        """Counts a new connection, and gives what the broker shall say when it is lost."""
        return self._presence.connecting()

    def subscriptions(self) -> list[str]:
        return [
            protocol.aggregator_topic(self.run),
            protocol.round_topic(self.run),
            protocol.down_topic(self.run, self.device),
            protocol.device_topic(self.run, self.device),
        ]

    def connected(self, now_s: float, *, again: bool) -> list[Action]:
        """The connection stands (again): say that we are here, repeat what may have been lost."""
        self._epochs.listen(now_s)
        actions: list[Action] = [self._presence.connected(now_s, again=again)]
        if self._offering is not None:
            self._offering.fit(self.chunk_bytes, self._inline_bytes())
            self._offering.repeat_now(now_s)
        self._supplies.repeat_now(now_s)
        return actions + self.tick(now_s)

    def disconnected(self) -> None:
        """The connection is lost: from now on silence says nothing of the aggregator."""
        self._epochs.listen(math.inf)

    def leave(self) -> Outgoing:
        """What to publish before a clean disconnect."""
        return self._presence.say("sleeping")

    # --- events -----------------------------------------------------------------------------------------------

    def receive(self, topic: str, payload: bytes, now_s: float, *, retained: bool = False) -> list[Action]:
        """Handle one message. What breaks the protocol is logged and dropped."""
        try:
            message, body = protocol.decode(payload)
            match message:
                case Presence():
                    return [Conflict()] if self._presence.is_in_conflict(message, retained=retained) else []
                case AggregatorStatus():
                    return self._aggregator(message, now_s, topic, retained=retained)
                case Assignment():
                    return self._assigned(message, now_s, retained=retained)
                case Announcement():
                    return self._announced(message, body, now_s, retained=retained)
                case BlobChunk():
                    return self._blob(message, body, now_s)
                case Permit():
                    return self._permitted(message, now_s)
                case Receipt():
                    return self._received(message)
                case _:
                    return []
        except ProtocolError as error:
            self._log(f"dropped a message on {topic}: {error.message}")
            return []

    def performed(self, job: Job, answer: Answer, now_s: float) -> list[Action]:
        """A job is done. Its reply and the private state after it are on disk before anybody hears of it.

        Where it left that state as it was the reply is in memory only, for doing the job again would give the same.
        """
        if self.working is None or self.working.key != job.key:
            return []
        self.working = None
        bundle = self._supplies.bundle
        assert bundle is not None
        kept, upload = self._memory.keep(bundle.sha256, job.key, answer)
        if not answer.changed:
            self._offering = self._offer_of(kept, upload, now_s)
        return self._go_on(now_s)

    def failed(self, job: Job, reason: str, now_s: float) -> list[Action]:
        """A job cannot be done: the aggregator need not wait for us."""
        if self.working is None or self.working.key != job.key:
            return []
        self.working = None
        self._failed = job.key
        self._failures.note(job.key, one_line(reason))
        return [self._fail(reason)]

    def note_data(self, note: str, label_counts: Sequence[int] = ()) -> list[Action]:
        """What had to be done with the data for this bundle, or is odd about them, and how many there are of each
        class: the aggregator shows it."""
        return [self._presence.note_data(note, label_counts)]

    def unfit(self, reason: str) -> list[Action]:
        """The bundle cannot be used here (its data contract is not met): every ask will be answered with this."""
        self._supplies.broken = reason
        asked = self._announcement is not None and self.device in self._announcement.devices
        return [self._fail(reason)] if asked else []

    def tick(self, now_s: float) -> list[Action]:
        """Repeat what was not answered: our presence, requests, offers. Give up what takes too long."""
        if now_s >= self._finished_s:
            return self._finish()
        if self.working is not None and now_s >= self._late_s:
            announcement = self.working.announcement
            reason = f"took longer than the {announcement.duration_s:g} s of the round"
            said = self.failed(self.working, reason, now_s)
            self._log(f"round {announcement.round + 1}: given up: it {reason}")
            return [Cancel(), *said]
        if self._assignment is None and (presence := self._presence.due(now_s)) is not None:
            return [presence, *self.tick(now_s)]
        actions: list[Action] = [*self._supplies.due(now_s)]
        if self._offering is not None and (due := self._offering.due(now_s)) is not None:
            actions.append(self._up(*due))
        return actions

    def wake_s(self, now_s: float) -> float:
        """When `tick` next has something to do; at most a second away."""
        times = [now_s + 1.0, self._finished_s, *self._supplies.times()]
        if self.working is not None:
            times.append(self._late_s)
        if self._assignment is None:
            times.append(self._presence.time_s)
        if self._offering is not None and self._offering.time_s is not None:
            times.append(self._offering.time_s)
        return min(times)

    # --- what the aggregator says -----------------------------------------------------------------------------

    @property
    def fetched(self) -> tuple[int, int]:
        """Bytes that have come of what is being downloaded, and bytes of all of it."""
        return self._supplies.progress()

    @property
    def heard(self) -> bool:
        """Whether the aggregator has said anything to this process."""
        return self._epochs.heard

    def silent_s(self, now_s: float) -> float:
        """For how long the aggregator has said nothing; since we are connected, where it never has."""
        return self._epochs.silent_s(now_s)

    def _aggregator(self, status: AggregatorStatus, now_s: float, topic: str, *, retained: bool) -> list[Action]:
        if status.status == "down":
            return []  # the broker says it for one that is gone; it may be there again
        if status.status == "up":
            return self._hear(status.epoch, now_s, retained=retained) or []
        if topic == protocol.down_topic(self.run, self.device):
            return self._finish() if self._epochs.takes(status.epoch, now_s, retained=retained) else []
        if not self._epochs.may_be(status.epoch, retained=retained):
            if retained:
                self._log("the broker has kept that the run is finished; waiting until somebody says so")
            return []
        # Anybody could say that, to everybody at once. We ask: an aggregator that is there answers us.
        self._finished_s = min(self._finished_s, now_s + FINISHED_S)
        return [self._presence.say("up")]

    def _finish(self) -> list[Action]:
        self._offering, self.working, self._finished_s = None, None, math.inf
        return [Cancel(), Done()]

    def _assigned(self, assignment: Assignment, now_s: float, *, retained: bool) -> list[Action]:
        actions = None if retained else self._hear(assignment.epoch, now_s, retained=False)
        if actions is None:
            return []
        self._assignment = assignment
        if assignment.bundle is None:
            self._log(f"waiting: {assignment.reason}")
            return actions
        actions += self._supplies.want_bundle(assignment.bundle, now_s)
        return actions + self._go_on(now_s)

    def _hear(self, epoch: int, now_s: float, *, retained: bool) -> list[Action] | None:
        """The aggregator is at work, in this epoch: None where that instance does not count. Repeats what a restart
        made it forget, and does what the broker had kept of this epoch."""
        before = self._epochs.current if self._epochs.heard else epoch
        if not self._epochs.takes(epoch, now_s, retained=retained):
            return None
        actions: list[Action] = []
        if not retained:
            self._finished_s = math.inf
        if epoch != before:
            if self._offering is not None:  # what it counted before its restart is gone unless the round was closed
                self._offering.repeat_now(now_s, forgotten=True)
            actions += [self._presence.say("up"), *self.tick(now_s)]
        if self._unconfirmed is not None and self._unconfirmed[0].epoch == epoch:
            (announcement, body), self._unconfirmed = self._unconfirmed, None
            actions += self._announced(announcement, body, now_s, retained=True)
        return actions

    def _announced(self, announcement: Announcement, body: memoryview, now_s: float, *, retained: bool) -> list[Action]:
        before = self._announcement
        if before is not None and _order(announcement) < _order(before) and announcement.epoch == before.epoch:
            return []  # overtaken on its way
        actions = self._hear(announcement.epoch, now_s, retained=retained)
        if actions is None:
            self._unconfirmed = announcement, body
            return []
        if before is not None and before.epoch != announcement.epoch:
            self._unconfirmed = before, memoryview(b"")  # should that aggregator speak again, after all
        self._announcement = announcement
        self._late_s = now_s + announcement.duration_s * (1 + LATE) + LATE_S
        actions += self._supplies.turn_to(announcement.tensors)
        key = (announcement.round, announcement.nonce)
        if self._offering is not None and self._offering.key != key:  # its round is durable, or was given up
            if not self._offering.accepted:
                self._log(f"round {self._offering.key[0] + 1}: its reply is dropped: {_began(announcement)}")
            self._offering = None
        if self.working is not None and self.working.key != key:
            actions += self._drop(self.working, _began(announcement))
        if self.device not in announcement.devices:
            return actions
        again = announcement.attempt > 0 or (before is not None and announcement.epoch != before.epoch)
        again = again and (before is None or _order(announcement) != _order(before))
        if again and self._offering is not None:
            self._offering.repeat_now(now_s, forgotten=True)  # the round may have been undone, and what it counted too
        if body:
            self._supplies.give(announcement.tensors, body)
        if again:
            self._failed = None  # asked again: try again
        return actions + self._go_on(now_s)

    def _go_on(self, now_s: float) -> list[Action]:
        """Do the next thing that the current announcement needs of us."""
        announcement = self._announcement
        if announcement is None or self.device not in announcement.devices:
            return []
        key = (announcement.round, announcement.nonce)
        if self._supplies.broken:
            return [self._fail(self._supplies.broken)]
        if isinstance(announcement, NewerAnnouncement):
            return self._refuse(key, announcement.fault)
        if (bundle := self._supplies.bundle) is None or self._failed == key:
            return []
        if refused := self._failures.refuses(key):
            return self._refuse(key, refused)
        if self._offering is not None and self._offering.key == key:
            return self.tick(now_s)
        if (on_disk := self._memory.reply_to(key)) is not None:
            self._offering = self._offer_of(*on_disk, now_s)
            return self.tick(now_s)
        if self.working is not None:
            return []
        tensors = self._supplies.tensors(bundle, announcement.tensors)
        if tensors is None:
            return self._supplies.fetch(announcement.tensors, now_s)
        assert self._assignment is not None
        self.working = Job(announcement, tensors, self._assignment.settings)
        return [Perform(self.working)]

    def _drop(self, job: Job, reason: str) -> list[Action]:
        """Give up work that is of no use any more, and say so: whoever asked knows that we are there."""
        self.working = None
        self._log(f"round {job.announcement.round + 1}: given up: {reason}")
        return [Cancel(), self._fail(f"given up: {reason}", job.announcement)]

    def _refuse(self, key: tuple[int, str], reason: str) -> list[Action]:
        """Say once that we do not take up an ask; again where it is asked again."""
        if self._failed == key:
            return []
        self._failed = key
        self._log(f"round {key[0] + 1}: cannot do it: {reason}")
        return [self._fail(reason)]

    def _blob(self, chunk: BlobChunk, body: memoryview, now_s: float) -> list[Action]:
        actions = self._supplies.take(chunk, body, now_s)
        return actions + self._go_on(now_s) if actions else []

    # --- replies ----------------------------------------------------------------------------------------------

    def _offer_of(self, kept: Kept, upload: Upload, now_s: float) -> Offering:
        inline_bytes = self._inline_bytes()
        return Offering(self.device, kept, upload, chunk_bytes=self.chunk_bytes, inline_bytes=inline_bytes, now_s=now_s)

    def _inline_bytes(self) -> int:
        """How large a reply may travel in its offer."""
        assert self._announcement is not None
        return min(self.inline_bytes, self._announcement.inline_bytes)

    def _permitted(self, permit: Permit, now_s: float) -> list[Action]:
        if self._offering is None:
            return []
        return [self._up(chunk, body) for chunk, body in self._offering.permitted(permit, now_s)]

    def _received(self, receipt: Receipt) -> list[Action]:
        offering = self._offering
        if offering is None or not offering.is_answered_by(receipt):
            return []
        if receipt.status in ("accepted", "duplicate"):
            offering.accept()
            self._log(f"round {receipt.round + 1}: reply {receipt.status}")
        else:
            self._offering = None
            self._failed = offering.key
            self._log(f"round {receipt.round + 1}: reply {receipt.status}: {receipt.reason}")
        return []

    # --- small things -----------------------------------------------------------------------------------------

    def _fail(self, reason: str, announcement: Announcement | None = None) -> Outgoing:
        """That we cannot do what was announced last, or what was announced then."""
        announcement = announcement or self._announcement
        assert announcement is not None
        return self._up(TaskFailed(self.device, announcement.round, announcement.nonce, reason[:1000]))

    def _up(self, message: protocol.Message, body: bytes | memoryview = b"") -> Outgoing:
        return Outgoing(protocol.up_topic(self.run, self.device), protocol.encode(message, body))


def _began(announcement: Announcement) -> str:
    return f"round {announcement.round + 1} has begun"


def _order(announcement: Announcement) -> tuple[int, int, int]:
    """What a later announcement has more of."""
    return announcement.epoch, announcement.round, announcement.attempt
