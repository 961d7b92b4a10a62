"""A device's side of the wire, without I/O but for its journal and its bundles: frames in, actions out.

    for action in session.receive(topic, payload, now_s): ...   Outgoing | Subscribe | Unsubscribe | Prepare | Perform
    session.performed(job, answer, now_s)                       when the work of a `Perform` is done
    session.tick(now_s)                                         repeats what was not answered

The driver (`edgefl_device.participate`) owns the connection, the clock and the thread that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgefl import protocol
from edgefl.bundle import PORTABLE, Bundle
from edgefl.errors import BundleError, ProtocolError, RemoteProtocolError, one_line
from edgefl.files import sha256_hex
from edgefl.protocol import (
    AggregatorStatus,
    Announcement,
    Assignment,
    BlobChunk,
    BlobRef,
    BlobRequest,
    NewerAnnouncement,
    Outgoing,
    Permit,
    Presence,
    Receipt,
    TaskFailed,
)
from edgefl.tensors import Tensors
from edgefl_device.wire import life
from edgefl_device.wire.download import Download
from edgefl_device.wire.epochs import Epochs
from edgefl_device.wire.failures import Failures
from edgefl_device.wire.fetch import Fetches
from edgefl_device.wire.offering import AGAIN_MOST_S, Offering
from edgefl_device.work.interpreter import Answer
from edgefl_device.work.journal import Journal, Kept
from edgefl_device.work.private import Private

ASSIGNMENT_AGAIN_S = 3.0  # without an assignment for so long, say again that we are up; doubles up to a minute
FINISHED_S = 30.0  # "the run is finished" counts when the aggregator says so itself, or says nothing else for so long
LATE_S, LATE = 2.0, 0.1  # after a round's duration so long, and this part of it, its work is given up


@dataclass(frozen=True)
class Subscribe:
    topic: str


@dataclass(frozen=True)
class Unsubscribe:
    topic: str


@dataclass(frozen=True)
class Prepare:
    """A bundle is here and verified: make a runtime and fit the data to its contract."""

    bundle: Bundle


@dataclass(frozen=True)
class Unfit:
    """The bundle cannot be used here, which was said already: there is nothing to do in this run."""

    error: BundleError


@dataclass(frozen=True)
class Job:
    """The work of one ask. `settings` are those of the device's class."""

    announcement: Announcement
    tensors: Tensors
    settings: Mapping[str, float]

    @property
    def key(self) -> tuple[int, str]:
        return (self.announcement.round, self.announcement.nonce)


@dataclass(frozen=True)
class Perform:
    """Carry out this job, instead of any other that is under way."""

    job: Job


@dataclass(frozen=True)
class Cancel:
    """The round is over, somebody else's, or takes too long: stop the work under way."""


@dataclass(frozen=True)
class Done:
    """The run is finished."""


@dataclass(frozen=True)
class Conflict:
    """Another device uses our name."""


Action = Outgoing | Subscribe | Unsubscribe | Prepare | Unfit | Perform | Cancel | Done | Conflict


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
        self._directory = directory
        self._engine = engine
        self._capabilities = capabilities or {}
        self._log = log
        self._journal = Journal(directory, run)
        self._kept = _without_reply(self._journal.read())
        self.private = Private()  # after the last reply that counts, of the bundle that is used
        self._epochs = Epochs(directory, run)
        self._failures = Failures(directory, run)
        self._connections = 0
        self._found: set[tuple[str, int]] = set()  # (instance, session) of presences that the broker had kept
        self._reconnected = False
        self._unconfirmed: tuple[Announcement, memoryview] | None = None  # of an epoch that is not heard yet
        self._finished_s = math.inf  # when the run is over, unless the aggregator speaks
        self._assignment: Assignment | None = None
        self._ask_assignment_s, self._ask_assignment_delay_s = math.inf, ASSIGNMENT_AGAIN_S
        self._announcement: Announcement | None = None
        self._late_s = math.inf  # when the work under way has taken too long
        self._failed: tuple[int, str] | None = None
        self._broken = ""
        self._bundle: Bundle | None = None
        self._download: Download | None = None
        self._tensors: tuple[str, bytes] | None = None  # SHA-256, safetensors
        self._fetches = Fetches()
        self._offering: Offering | None = None

    # --- the connection ---------------------------------------------------------------------------------------

    def will(self) -> Outgoing:
        """Counts a new connection, and gives what the broker shall say when it is lost."""
        self._connections += 1
        return self._presence("down")

    def subscriptions(self) -> list[str]:
        return [
            protocol.aggregator_topic(self.run),
            protocol.round_topic(self.run),
            protocol.down_topic(self.run, self.device),
            protocol.device_topic(self.run, self.device),
        ]

    def connected(self, now_s: float, *, again: bool) -> list[Action]:
        """The connection stands (again): say that we are here, repeat what may have been lost."""
        self._reconnected = again
        self._epochs.listen(now_s)
        self._ask_assignment_s = now_s + self._ask_assignment_delay_s
        actions: list[Action] = [self._presence("up")]
        if self._offering is not None:
            self._offering.repeat_now(now_s)
        self._fetches.repeat_now(now_s)
        return actions + self.tick(now_s)

    def disconnected(self) -> None:
        """The connection is lost: from now on silence says nothing of the aggregator."""
        self._epochs.listen(math.inf)

    def leave(self) -> Outgoing:
        """What to publish before a clean disconnect."""
        return self._presence("sleeping")

    # --- events -----------------------------------------------------------------------------------------------

    def receive(self, topic: str, payload: bytes, now_s: float, *, retained: bool = False) -> list[Action]:
        """Handle one message. What breaks the protocol is logged and dropped."""
        try:
            message, body = protocol.decode(payload)
            match message:
                case Presence():
                    return self._other(message, retained)
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
        assert self._bundle is not None
        kept = Kept(
            bundle=self._bundle.sha256,
            round=job.announcement.round,
            nonce=job.announcement.nonce,
            examples=answer.outcome.examples,
            steps=answer.outcome.steps,
            metrics=answer.outcome.metrics,
            reply=answer.outcome.tensors,
            private=answer.private.tensors,
        )
        if answer.changed:
            self._journal.write(kept)
            self._kept = _without_reply(kept)
        else:
            self._offering = self._offer_of(kept, now_s)
        self.private = answer.private
        return self._go_on(now_s)

    def failed(self, job: Job, reason: str, now_s: float) -> list[Action]:
        """A job cannot be done: the aggregator need not wait for us."""
        if self.working is None or self.working.key != job.key:
            return []
        self.working = None
        self._failed = job.key
        self._failures.note(job.key, one_line(reason))
        return [self._fail(reason)]

    def unfit(self, reason: str) -> list[Action]:
        """The bundle cannot be used here (its data contract is not met): every ask will be answered with this."""
        self._broken = reason
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
        if self._assignment is None and now_s >= self._ask_assignment_s:
            self._ask_assignment_delay_s = min(2 * self._ask_assignment_delay_s, AGAIN_MOST_S)
            self._ask_assignment_s = now_s + self._ask_assignment_delay_s
            return [self._presence("up"), *self.tick(now_s)]
        actions: list[Action] = [self._up(BlobRequest(sha256, missing)) for sha256, missing in self._fetches.due(now_s)]
        if self._offering is not None and (due := self._offering.due(now_s)) is not None:
            actions.append(self._up(*due))
        return actions

    def wake_s(self, now_s: float) -> float:
        """When `tick` next has something to do; at most a second away."""
        times = [now_s + 1.0, self._finished_s, *self._fetches.times()]
        if self.working is not None:
            times.append(self._late_s)
        if self._assignment is None:
            times.append(self._ask_assignment_s)
        if self._offering is not None and self._offering.time_s is not None:
            times.append(self._offering.time_s)
        return min(times)

    # --- what the aggregator says -----------------------------------------------------------------------------

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
        return [self._presence("up")]

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
        actions += self._want_bundle(assignment.bundle, now_s)
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
            actions += [self._presence("up"), *self.tick(now_s)]
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
        if (
            before is not None
            and before.tensors != announcement.tensors
            and self._bundle
            and self._fetches.drop(before.tensors.sha256)
        ):
            actions.append(Unsubscribe(protocol.blob_topic(self.run, before.tensors.sha256)))
        key = (announcement.round, announcement.nonce)
        if self._offering is not None and self._offering.key != key:
            self._offering = None  # its round is durable, or was given up
        if self.working is not None and self.working.key != key:
            self.working = None
            actions.append(Cancel())
        if self.device not in announcement.devices:
            return actions
        again = announcement.attempt > 0 or (before is not None and announcement.epoch != before.epoch)
        again = again and (before is None or _order(announcement) != _order(before))
        if again and self._offering is not None:
            self._offering.repeat_now(now_s, forgotten=True)  # the round may have been undone, and what it counted too
        if body:
            data = bytes(body)
            if sha256_hex(data) != announcement.tensors.sha256:
                raise RemoteProtocolError("announced tensors whose SHA-256 does not match")
            self._tensors = (announcement.tensors.sha256, data)
        if again:
            self._failed = None  # asked again: try again
        return actions + self._go_on(now_s)

    def _want_bundle(self, manifest: BlobRef, now_s: float) -> list[Action]:
        if self._download is not None and self._download.manifest.sha256 == manifest.sha256:
            return []
        self._bundle, self._broken = None, ""
        self._download = Download(manifest, self._directory / "bundles", self._engine)
        try:
            stored = self._download.stored()
        except BundleError as error:
            self._log(f"downloading the bundle again: {error.message}")
            stored = None
        return self._fetch(manifest, now_s) if stored is None else self._use(stored)

    def _use(self, bundle: Bundle) -> list[Action]:
        self._bundle = bundle
        kept = self._kept
        self.private = Private(kept.private) if kept is not None and kept.bundle == bundle.sha256 else Private()
        return [Prepare(bundle)]

    def _go_on(self, now_s: float) -> list[Action]:
        """Do the next thing that the current announcement needs of us."""
        announcement = self._announcement
        if announcement is None or self.device not in announcement.devices:
            return []
        key = (announcement.round, announcement.nonce)
        if self._broken:
            return [self._fail(self._broken)]
        if isinstance(announcement, NewerAnnouncement):
            return self._refuse(key, announcement.fault)
        if self._bundle is None or self._failed == key:
            return []
        if refused := self._failures.refuses(key):
            return self._refuse(key, refused)
        if self._offering is not None and self._offering.key == key:
            return self.tick(now_s)
        if self._kept is not None and (self._kept.round, self._kept.nonce) == key:
            return self._offer(now_s)
        if self.working is not None:
            return []
        if self._bundle.manifest.weights.sha256 == announcement.tensors.sha256:
            self._tensors = (announcement.tensors.sha256, self._bundle.bytes_of(self._bundle.manifest.weights))
        if self._tensors is None or self._tensors[0] != announcement.tensors.sha256:
            return self._fetch(announcement.tensors, now_s)
        tensors = protocol.bytes_to_tensors(self._tensors[1], "the announced tensors")
        self._tensors = None  # the job has them: a board should not hold them twice
        assert self._assignment is not None
        self.working = Job(announcement, tensors, self._assignment.settings)
        return [Perform(self.working)]

    def _refuse(self, key: tuple[int, str], reason: str) -> list[Action]:
        """Say once that we do not take up an ask; again where it is asked again."""
        if self._failed == key:
            return []
        self._failed = key
        self._log(f"round {key[0] + 1}: cannot do it: {reason}")
        return [self._fail(reason)]

    # --- blobs ------------------------------------------------------------------------------------------------

    def _fetch(self, ref: BlobRef, now_s: float) -> list[Action]:
        if ref.sha256 in self._fetches:
            return []
        self._fetches.add(ref.sha256, ref.size_bytes, now_s)
        return [Subscribe(protocol.blob_topic(self.run, ref.sha256)), *self.tick(now_s)]

    def _blob(self, chunk: BlobChunk, body: memoryview, now_s: float) -> list[Action]:
        data = self._fetches.take(chunk, body, now_s)
        if data is None:
            return []
        actions: list[Action] = [Unsubscribe(protocol.blob_topic(self.run, chunk.sha256))]
        # One blob can be both: the first round announces what the bundle calls its weights.
        if self._announcement is not None and chunk.sha256 == self._announcement.tensors.sha256:
            self._tensors = (chunk.sha256, data)
        if self._bundle is None:
            actions += self._bundle_part(chunk.sha256, data, now_s)
        return actions + self._go_on(now_s)

    def _bundle_part(self, sha256: str, data: bytes, now_s: float) -> list[Action]:
        if self._download is None:
            return []
        try:
            missing = self._download.take(sha256, data)
            stored = None if missing else self._download.stored()
        except BundleError as error:
            return [*self.unfit(error.message), Unfit(error)]
        if stored is not None:
            return self._use(stored)
        return [action for ref in missing for action in self._fetch(ref, now_s)]

    # --- replies ----------------------------------------------------------------------------------------------

    def _offer(self, now_s: float) -> list[Action]:
        stored = self._journal.read()
        assert stored is not None
        self._offering = self._offer_of(stored, now_s)
        return self.tick(now_s)

    def _offer_of(self, kept: Kept, now_s: float) -> Offering:
        assert self._announcement is not None
        inline = min(self.inline_bytes, self._announcement.inline_bytes)
        return Offering(self.device, kept, chunk_bytes=self.chunk_bytes, inline_bytes=inline, now_s=now_s)

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

    def _other(self, presence: Presence, retained: bool) -> list[Action]:
        """Our own presence comes back to us; another instance's may mean that two devices use one name.

        What we find at our first connection is of somebody who is gone: perhaps of an earlier life of this device. What
        is said later, nobody but a second process can have said. The broker lets only one of the two be connected, so
        each would throw the other out for ever: the one with the greater instance stays. Earlier lives have smaller
        ones.
        """
        words = (presence.instance, presence.session)
        if retained and not self._reconnected:
            self._found.add(words)
        now = presence.status == "up" and not retained
        since = self._reconnected and words not in self._found
        return [Conflict()] if (now or since) and presence.instance > self.instance else []

    def _fail(self, reason: str) -> Outgoing:
        assert self._announcement is not None
        announcement = self._announcement
        return self._up(TaskFailed(self.device, announcement.round, announcement.nonce, reason[:1000]))

    def _up(self, message: protocol.Message, body: bytes | memoryview = b"") -> Outgoing:
        return Outgoing(protocol.up_topic(self.run, self.device), protocol.encode(message, body))

    def _presence(self, status: str) -> Outgoing:
        presence = Presence(
            device=self.device,
            session=self._connections,
            status=status,  # type: ignore[arg-type]
            instance=self.instance,
            engine=self._engine,
            **self._capabilities,  # type: ignore[arg-type]
        )
        return Outgoing(protocol.device_topic(self.run, self.device), protocol.encode(presence), retain=True)


def _order(announcement: Announcement) -> tuple[int, int, int]:
    """What a later announcement has more of."""
    return announcement.epoch, announcement.round, announcement.attempt


def _without_reply(kept: Kept | None) -> Kept | None:
    """The reply stays on disk until it is offered: it can be as large as the model."""
    return kept and replace(kept, reply={})
