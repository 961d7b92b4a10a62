"""The aggregator's side of the wire, without I/O: frames in, actions out.

It decodes and checks what devices send, gives it to the coordinator, and turns what the coordinator wants into frames
and into what has to be durable before them:

    for action in session.receive(topic, payload, now_s): ...   edgefl/aggregator/actions.py says in which order
    session.worked(done, now_s), evaluated(metrics, now_s)      when what a `Work` or an `Evaluate` wanted is done
    session.tick(now_s)                                         when time has passed

A driver carries the actions out: `edgefl.aggregator.serve` over MQTT, or a test in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import msgspec

from edgefl import protocol
from edgefl.aggregator import rounds
from edgefl.aggregator.actions import Action, Evaluate, SaveDevice, SaveOpenRound, SaveRound
from edgefl.aggregator.asked import Asked, announcement_of, frame_of
from edgefl.aggregator.classes import DeviceClass, Examples, stated
from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.fleet import Fleet, Known
from edgefl.aggregator.limits import Limits
from edgefl.aggregator.oddness import Oddness
from edgefl.aggregator.places import Places
from edgefl.aggregator.publications import Publications
from edgefl.aggregator.record import Record, Traffic, record_of
from edgefl.aggregator.rounds import Announce, Finished, GivenUp, Note, RoundDone
from edgefl.aggregator.uploads import Upload, Uploads
from edgefl.errors import ProtocolError, RemoteProtocolError, one_line
from edgefl.files import sha256_hex
from edgefl.method import Ask, Work, Worked
from edgefl.protocol import (
    AggregatorStatus,
    Announcement,
    Assembly,
    Assignment,
    BlobRef,
    BlobRequest,
    ManifestRef,
    Message,
    Offer,
    Outgoing,
    Presence,
    Receipt,
    TaskFailed,
    UploadChunk,
)

REQUESTS_PER_S = 10.0  # messages of one device that want an answer, beside a burst of them in every round
REQUESTS_BURST = 20.0
NOTE_LENGTH = 300
MOST_KEPT_S = 30 * 24 * 3600.0  # of an announcement: MQTT counts seconds in 32 bits
TASKS_BYTES = 1024  # of an announcement, until the first is made
STRANGERS = ""  # who has no place in the run shares one allowance


class Aggregator:
    """One run's aggregator. `room` says how many bytes the driver can take now: a large blob is given to it part by
    part."""

    def __init__(
        self,
        run: str,
        classes: Sequence[DeviceClass],
        coordinator: Coordinator,
        *,
        epoch: int,
        assigned: Mapping[str, str],
        examples: Mapping[str, Examples],
        chunk_bytes: int = protocol.CHUNK_BYTES,
        inline_bytes: int = protocol.INLINE_BYTES,
        frame_bytes: int = protocol.MAX_FRAME_BYTES,
        requests_per_s: float = REQUESTS_PER_S,
        requests_burst: float = REQUESTS_BURST,
        room: Callable[[], int] = lambda: protocol.MAX_BLOB_BYTES,
        first: Record | None = None,
        last: Record | None = None,
        known: Mapping[str, Known] = MappingProxyType({}),
        target_accuracy: float | None = None,
    ) -> None:
        """`assigned`, `examples`: device -> name of its class, what it stated, of an earlier start of this run;
        `known`: what else is known of them; `first`, `last`: the records of its first and last round. A round that
        reaches `target_accuracy` ends the run.
        `chunk_bytes`, `inline_bytes`, `frame_bytes`: the largest parts of blobs, the largest bodies of announcements
        and offers, and the largest frames that the broker takes. `requests_per_s`, `requests_burst`: how often each
        device is answered."""
        self.run = run
        self.coordinator = coordinator
        self.finished = False
        self._epoch = epoch
        self.chunk_bytes = chunk_bytes
        self.inline_bytes = inline_bytes
        self.frame_bytes = frame_bytes
        self._room = room
        self._requests = Limits(requests_per_s, requests_burst)
        self._places = Places(classes, assigned, examples)
        coordinator.stated |= {device: known.train for device, known in examples.items()}
        self._publications = Publications(run, _blobs_of(classes))
        self._uploads = Uploads()
        self._asked = Asked(Ask((), {}), "", classes)  # nothing, until the first announcement
        self._announced: Outgoing | None = None
        self._traffic = Traffic()
        self.fleet = Fleet(known)
        self._oddness = Oddness(first.measured if first else None)
        self._odd: set[str] = set()  # of the last durable round
        self._ended: tuple[RoundDone, Traffic] | None = None  # the round that is being evaluated
        self._status_again_s = 0.0
        self._nameable = protocol.MAX_DEVICES
        self._noted: set[str] = set()  # whose requests were too many in this round
        self._untested: set[str] = set()  # of whom it was said that they have no test data
        self._elapsed_s, self._started_s = last.elapsed_s if last else 0.0, 0.0
        self._target_accuracy = target_accuracy
        if last is not None and self._is_reached(last):
            coordinator.finish()
        self._actions: list[Action] = []

    # --- the driver's verbs -----------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Action]:
        """Say that the aggregator is up; open the first round, or the one a resume found open."""
        self._started_s = now_s
        self._publish_status("up")
        nobody = Announcement(self._epoch, 0, 0, "0" * 16, 0.0, [], [], BlobRef("0" * 64, 0))
        self._nameable = protocol.devices_that_fit(nobody, self.frame_bytes - TASKS_BYTES)
        self._status_again_s = now_s + protocol.STATUS_AGAIN_S
        self._follow(self.coordinator.begin(now_s), now_s)
        return self._take_actions()

    def reconnected(self) -> list[Action]:
        """The broker may have been restarted and have forgotten what it retained: say it again, in packets as large as
        it takes now."""
        self._publish_status("finished" if self.finished else "up")
        if self._announced is not None:
            self._announced = self._fitting(self._announced)
            self._actions.append(self._announced)
        self._publications.begin_again()
        return self._take_actions()

    def _fitting(self, announced: Outgoing) -> Outgoing:
        """An announcement without its tensors, where it is too large with them: devices then fetch these."""
        if len(announced.payload) <= self.frame_bytes:
            return announced
        announcement, _ = protocol.decode(announced.payload)
        assert isinstance(announcement, Announcement)
        smaller = msgspec.structs.replace(announcement, inline_bytes=min(announcement.inline_bytes, self.inline_bytes))
        return replace(announced, payload=protocol.encode(smaller))

    def receive(self, topic: str, payload: bytes, now_s: float) -> list[Action]:
        """Handle one message from a device. What breaks the protocol is noted and dropped; so is what is too much."""
        sender = STRANGERS
        try:
            device = protocol.device_of(topic)
            sender = device if device in self._places else STRANGERS
            message, body = protocol.decode(payload)
            if getattr(message, "device", device) != device:
                raise RemoteProtocolError(f"a message that names another device than its topic {topic!r}")
            if sender == STRANGERS:
                self._meet(device, message, now_s)
                return self._take_actions()
            wire_bytes = protocol.wire_bytes(topic, payload)
            self._traffic.up[device] = self._traffic.up.get(device, 0) + wire_bytes
            self.fleet.heard(device, wire_bytes, self._run_s(now_s))
            awaited = isinstance(message, UploadChunk) and self._uploads.awaits(device, message)
            if not awaited and not self._allows(device, now_s):
                return self._take_actions()
            if not isinstance(message, Presence) and device not in self.coordinator.present:
                # Who speaks is there, even if its presence was lost on the way.
                self._follow(self.coordinator.joined(device, now_s), now_s)
            self._handle(device, message, body, now_s)
        except ProtocolError as error:
            if self._allows(sender, now_s):
                self._note("protocol error", "", f"{topic}: {error.message}")
        return self._take_actions()

    def worked(self, done: Worked, now_s: float) -> list[Action]:
        """The method's own model has done the last `Work`."""
        self._follow(self.coordinator.worked(done, now_s), now_s)
        return self._take_actions()

    def evaluated(self, metrics: Mapping[str, float], now_s: float) -> list[Action]:
        """The state of the `Evaluate` has these metrics; none where nobody evaluates. The round is kept, unless its
        loss is no number: then it is undone, as by `failed`."""
        self._keep(metrics, now_s)
        return self._take_actions()

    def failed(self, reason: str, now_s: float) -> list[Action]:
        """The state of the last `Evaluate` or `Work` has diverged: that round is done again, nothing of it was kept."""
        self._undo(reason, now_s)
        return self._take_actions()

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: answer coalesced requests, drop stalled uploads, close or repeat a round."""
        if now_s >= self._status_again_s:
            self._publish_status("finished" if self.finished else "up")
            self._status_again_s = now_s + protocol.STATUS_AGAIN_S
        for chunk, devices in self._publications.due(self.chunk_bytes, self._room(), now_s):
            self._traffic.down += chunk.wire_bytes * devices
            self._actions.append(chunk)
        self._uploads.drop_stalled(now_s)
        self._permit_more(now_s)
        self._follow(self.coordinator.tick(now_s), now_s)
        return self._take_actions()

    def wake_s(self, now_s: float) -> float:
        """When `tick` next has something to do; at most a second away."""
        times = self._publications.due_s() if self._room() > 0 else []
        if self.coordinator.deadline_s is not None:
            times.append(self.coordinator.deadline_s)
        return min([now_s + 1.0, *times])

    def stop(self, now_s: float) -> list[Action]:
        """Close the round with what came, if that is a quorum, and open no other."""
        self._follow(self.coordinator.stop(now_s), now_s)
        return self._take_actions()

    def will(self) -> Outgoing:
        """What the broker says for us when we vanish."""
        status = AggregatorStatus(self._epoch, "down")
        return Outgoing(protocol.aggregator_topic(self.run), protocol.encode(status), retain=True)

    def subscriptions(self) -> list[str]:
        return [protocol.device_topic(self.run, "+"), protocol.up_topic(self.run, "+")]

    def _note(self, event: str, device: str, text: str) -> None:
        self._say(Note(event, self.coordinator.state.round, device, text))

    def _say(self, note: Note) -> None:
        """Whatever a device says is one short line for a person."""
        if note.event == "failed":
            self.fleet.failed(note.device)
        self._actions.append(replace(note, text=one_line(note.text, NOTE_LENGTH)))

    # --- what devices say -------------------------------------------------------------------------------------

    def _allows(self, sender: str, now_s: float) -> bool:
        """Whether a sender may have an answer now. Said once a round where not."""
        if self._requests.allows(sender, now_s):
            return True
        if sender not in self._noted:
            self._noted.add(sender)
            who = "" if sender else "devices without a place in the run: "
            self._note("too many requests", sender, f"{who}what is too much is passed over")
        return False

    def _meet(self, device: str, message: Message, now_s: float) -> None:
        """Hear somebody who has no place in the run yet: only that it is there."""
        if not isinstance(message, Presence):
            raise RemoteProtocolError(f"device {device!r}, which has not joined, sent a {type(message).__name__}")
        if message.status == "up":
            self._presence(message, now_s)

    def _handle(self, device: str, message: Message, body: memoryview, now_s: float) -> None:
        self.coordinator.heard(device)
        match message:
            case Presence():
                self._presence(message, now_s)
            case BlobRequest():
                self._publications.want(device, message, self.chunk_bytes, now_s)
            case Offer():
                self._offer(message, body, now_s)
            case UploadChunk():
                if (upload := self._uploads.take(device, message, body, now_s)) is not None:
                    self._complete(upload, now_s)
            case TaskFailed():
                if message.nonce == self._asked.nonce:
                    self._follow(self.coordinator.failed(device, message.round, message.reason, now_s), now_s)
                else:  # of a round that went on without it
                    self._say(Note("given up", message.round, device, message.reason))
            case _:
                raise RemoteProtocolError(f"device {device!r} sent a {type(message).__name__}")

    def _presence(self, presence: Presence, now_s: float) -> None:
        device = presence.device
        if self.finished:
            if presence.status == "up":  # it asks whether that is so
                self._send_to(device, AggregatorStatus(self._epoch, "finished"))
            else:
                self.coordinator.present.discard(device)
            return
        if not self._places.is_newest(presence):
            return
        if presence.status == "up":
            if self._assign(presence, now_s):
                self._places.connected(presence)
                self._know(presence, now_s)
                examples = self._places.examples_of(device)
                assert examples is not None
                self._follow(self.coordinator.joined(device, now_s, examples=examples.train), now_s)
        else:
            self._places.connected(presence)
            if presence.status == "sleeping":
                self._uploads.drop(device)  # "down" may be a short cut of the link: its chunks wait, up to a stall
            self._follow(self.coordinator.left(device, now_s), now_s)
            self._permit_more(now_s)

    def _know(self, presence: Presence, now_s: float) -> None:
        """Note what a device states of itself; a word about its data is for a person, too."""
        one = self._places.of(presence.device)
        names = one.bundle.manifest.data.class_names
        if self.fleet.states(presence, one.name, names, self._run_s(now_s)):
            self._note("data", presence.device, presence.data)

    def _run_s(self, now_s: float) -> float:
        """Seconds of the run, over all its starts."""
        return self._elapsed_s + now_s - self._started_s

    def _assign(self, presence: Presence, now_s: float) -> bool:
        """Tell a device which bundle is for it: the one it had before, else that of the first class that suits it."""
        device = presence.device
        one = self._places.suiting(presence)
        if one is None:
            reason = f"no [[bundle]] of the run file is for {stated(presence)}"
            return self._turn_away(device, "no bundle", reason, now_s)
        if device not in self._places and len(self._places) >= self.most_devices:
            reason = f"the run has {len(self._places)} devices, as many as it takes ([round] max_devices)"
            return self._turn_away(device, "run is full", reason, now_s)
        examples = Examples(presence.train_examples, presence.test_examples)
        if self._places.take(device, one, examples):
            self._actions.append(SaveDevice(device, one.name, examples))
        bundle = ManifestRef(one.bundle.sha256, len(one.bundle.manifest_bytes))
        self._send_to(device, Assignment(self._epoch, bundle, dict(one.settings)))
        return True

    def _turn_away(self, device: str, event: str, reason: str, now_s: float) -> bool:
        """Tell a device that there is no place for it."""
        if self._allows(STRANGERS, now_s):
            self._note(event, device, reason)
            self._send_to(device, Assignment(self._epoch, None, reason=reason[:1000]))
        return False

    @property
    def most_devices(self) -> int:
        """How many devices the run takes: as many as its settings say, and as an announcement can name."""
        return min(self.coordinator.settings.max_devices, self._nameable)

    def _offer(self, offer: Offer, body: memoryview, now_s: float) -> None:
        verdict = self.coordinator.judge(offer.device, offer.round, offer.nonce)
        if verdict.status != "accepted":
            self._say(Note(verdict.status, offer.round, offer.device, verdict.reason))
            self._receipt(offer, verdict.status, verdict.reason)
            return
        largest = self._asked.largest_upload(self._places.of(offer.device))
        if offer.size_bytes > largest:
            reason = f"an upload of {offer.size_bytes} bytes; the asked tensors have at most {largest}"
            self._refuse(offer, reason, now_s)
            return
        most = self._asked.most_steps(self._places.of(offer.device), offer.examples)
        if offer.steps > most:
            reason = (
                f"{offer.steps} steps of the optimizer; with {offer.examples} examples the tasks have at most {most}"
            )
            self._refuse(offer, reason, now_s)
            return
        upload = self._uploads.offered(offer, now_s)
        if len(body) == offer.size_bytes:
            upload.assembly = Assembly(offer.upload, offer.size_bytes, max(1, offer.size_bytes))
            upload.assembly.add(0, body)
            self._complete(upload, now_s)
        elif upload.permitted:
            self._send_to(offer.device, upload.permit(now_s))  # the device asks what is missing
        else:
            self._permit_more(now_s)

    def _complete(self, upload: Upload, now_s: float) -> None:
        """Every chunk is there: check the reply and count it."""
        offer = upload.offer
        self._uploads.drop(offer.device)
        one, examples = self._places.of(offer.device), self._places.examples_of(offer.device)
        try:
            reply = self._asked.reply(offer, upload.assembly.finish(), one, examples)
        except ProtocolError as error:
            self._refuse(offer, error.message, now_s)
        else:
            verdict, following = self.coordinator.replied(reply, offer.nonce, now_s)
            now = self.coordinator.judge(offer.device, offer.round, offer.nonce)
            counts = verdict.status == "accepted" and now.status == "duplicate"
            if counts:  # said first: what follows may take long, or undo the round, and then it is to offer again
                self._receipt(offer, "accepted", "")
                self._note_untested(offer.device, examples)
            self._follow(following, now_s)
            if verdict.status != "accepted":
                self._receipt(offer, verdict.status, verdict.reason)
            elif now.status == "refused":  # the round was undone, without this device; or with it, and it offers again
                self._receipt(offer, now.status, now.reason)
        self._permit_more(now_s)

    def _note_untested(self, device: str, examples: Examples | None) -> None:
        """Say once of a device that it evaluates nothing, where devices are asked to."""
        without = examples is not None and examples.test == 0
        if without and self._asked.measures_test_data and device not in self._untested:
            self._untested.add(device)
            self._note("no test data", device, "its training counts, its evaluation is left out")

    def _refuse(self, offer: Offer, reason: str, now_s: float) -> None:
        self._receipt(offer, "refused", reason)
        self._follow(self.coordinator.failed(offer.device, offer.round, f"refused: {reason}", now_s), now_s)

    def _permit_more(self, now_s: float) -> None:
        for device, permit in self._uploads.permits(now_s):
            self._send_to(device, permit)

    def _receipt(self, offer: Offer, status: str, reason: str) -> None:
        self._send_to(offer.device, Receipt(offer.upload, offer.round, status, reason[:1000]))  # type: ignore[arg-type]

    def _send_to(self, device: str, message: Message) -> None:
        outgoing = Outgoing(protocol.down_topic(self.run, device), protocol.encode(message))
        self._traffic.down += outgoing.wire_bytes
        self._actions.append(outgoing)

    # --- what the coordinator wants ---------------------------------------------------------------------------

    def _follow(self, actions: list[rounds.Action], now_s: float) -> None:
        for action in actions:
            match action:
                case Note():
                    self._say(action)
                case Announce():
                    self._announce(action)
                    self._permit_more(now_s)
                case Work() | GivenUp():
                    self._actions.append(action)
                case RoundDone():
                    self._end(action, now_s)
                case Finished():
                    self.finished = True
                    self._publish_status("finished")

    def _end(self, done: RoundDone, now_s: float) -> None:
        """A round is fused. What comes from now on belongs to the next, unless this one is undone."""
        self._uploads.clear()
        self._ended, self._traffic = (done, self._traffic), Traffic()
        if done.durable:
            self._actions.append(Evaluate(done.state))
        else:
            self._keep({}, now_s)

    def _keep(self, evaluated: Mapping[str, float], now_s: float) -> None:
        """The round that has ended is kept, and the next begins; or it is undone where its loss is no number."""
        assert self._ended is not None
        done, traffic = self._ended
        record = record_of(done, traffic, evaluated, self._run_s(now_s), self._odd_ones(done))
        if evaluated and (record.loss is None or not math.isfinite(record.loss)):
            return self._undo(f"the held-out loss would be {record.loss}", now_s)
        self._ended = None
        self._actions.append(SaveRound(done.state, record))
        self.fleet.missed(done.missed)
        self._note_odd(record)
        if self._is_reached(record):
            self.coordinator.finish()
        self._follow(self.coordinator.begin(now_s), now_s)

    def _odd_ones(self, done: RoundDone) -> dict[str, str]:
        kinds = {device: self._places.of(device).name for device in done.fused.devices}
        return self._oddness.of(done.fused.measured, done.norms, kinds) if done.durable else {}

    def _note_odd(self, record: Record) -> None:
        """Say of a device that it is odd, once until it is not."""
        for device, text in record.odd.items():
            if device not in self._odd:
                self._say(Note("odd", record.round - 1, device, text))
        if record.durable:
            self._odd = set(record.odd)

    def _undo(self, why: str, now_s: float) -> None:
        """The round that has ended goes on, with what it has cost."""
        if self._ended is not None:
            self._traffic = self._ended[1] + self._traffic
            self._ended = None
        self._follow(self.coordinator.undo(why, now_s), now_s)

    def _is_reached(self, record: Record) -> bool:
        target, accuracy = self._target_accuracy, record.accuracy
        return target is not None and accuracy is not None and accuracy >= target

    def _announce(self, action: Announce) -> None:
        self._actions.append(SaveOpenRound(action))
        data = protocol.tensors_to_bytes(action.ask.tensors)
        ref = BlobRef(sha256_hex(data), len(data))
        self._publications.announce(ref.sha256, data)
        self._uploads.let_others_pass()
        self._requests.refill()
        self._noted.clear()
        self._places.next_round()
        self._asked = Asked(action.ask, action.nonce, list(self._places.classes.values()))
        small_bytes = min(self.chunk_bytes, self.inline_bytes)  # travel inside, whoever hears it
        announcement = announcement_of(
            action, ref, epoch=self._epoch, small_bytes=small_bytes, inline_bytes=self.inline_bytes
        )
        self._nameable = protocol.devices_that_fit(announcement, self.frame_bytes - protocol.PREAMBLE.size)
        asks_most = 2 * len(action.devices) >= len(self.coordinator.present)  # else those who are asked fetch it
        most_bytes = self.inline_bytes if asks_most else small_bytes
        frame = frame_of(announcement, data, most_bytes=most_bytes, frame_bytes=self.frame_bytes)
        # At its deadline it is said again: what is kept for longer is of an aggregator that is gone.
        expires_s = math.ceil(min(action.duration_s, MOST_KEPT_S) + protocol.STATUS_COUNTS_S)
        self._announced = Outgoing(protocol.round_topic(self.run), frame, retain=True, expires_s=expires_s)
        self._traffic.down += self._announced.wire_bytes * max(1, len(self.coordinator.present))
        self._actions.append(self._announced)

    def _publish_status(self, status: str) -> None:
        message = AggregatorStatus(self._epoch, status)  # type: ignore[arg-type]
        expires_s = math.ceil(protocol.STATUS_COUNTS_S) if status == "up" else 0
        topic = protocol.aggregator_topic(self.run)
        self._actions.append(Outgoing(topic, protocol.encode(message), retain=True, expires_s=expires_s))

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


def _blobs_of(classes: Sequence[DeviceClass]) -> dict[str, bytes]:
    """What devices download of their bundles, by SHA-256."""
    blobs: dict[str, bytes] = {}
    for bundle in (one.bundle for one in classes):
        blobs[bundle.sha256] = bundle.manifest_bytes
        blobs |= {file.sha256: bundle.bytes_of(file) for file in bundle.manifest.files()}
    return blobs
