"""The aggregator's side of the wire, without I/O: frames in, frames out.

It decodes and checks what devices send, gives it to the coordinator, and turns what the coordinator wants into
frames. A driver (`edgefl.aggregator.serve` over MQTT, or a test in memory) carries them:

    for message in aggregator.receive(topic, payload, now_s): publish(message)
    for message in aggregator.tick(now_s): publish(message)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgefl import protocol
from edgefl.aggregator import checks as asks
from edgefl.aggregator.classes import DeviceClass, Examples, class_of, stated
from edgefl.aggregator.coordinator import Action, Announce, Coordinator, Finished, Note, RoundDone
from edgefl.aggregator.limits import Limits
from edgefl.aggregator.record import Traffic
from edgefl.errors import NotFinite, ProtocolError, RemoteProtocolError, one_line
from edgefl.files import sha256_hex
from edgefl.method import Ask, Reply
from edgefl.protocol import (
    AggregatorStatus,
    Announcement,
    Assembly,
    Assignment,
    BlobChunk,
    BlobRef,
    BlobRequest,
    ManifestRef,
    Message,
    Offer,
    Outgoing,
    Permit,
    Presence,
    Receipt,
    TaskFailed,
    UploadChunk,
)

UPLOAD_BUDGET_BYTES = 64 * 2**20  # uploads on their way at one time; bounds what the broker has to hold
UPLOAD_STALL_S = 30.0  # an upload without a chunk for so long makes room for the next
COALESCE_S = 0.005  # requests for one blob within this time are answered by one publication
# What a device has been sent, it is sent again at this pace; the first time is free. A link that loses every second
# chunk of a 20 MB model needs half of the burst.
AGAIN_BYTES_PER_S = 2 * 2**20
AGAIN_BURST_BYTES = 32 * 2**20
REQUESTS_PER_S = 10.0  # messages of one device that want an answer, beside a burst of them in every round
REQUESTS_BURST = 20.0
NOTE_LENGTH = 300
TASKS_BYTES = 1024  # of an announcement, until the first is made
STRANGERS = ""  # who has no place in the run shares one allowance


@dataclass
class _Upload:
    offer: Offer
    assembly: Assembly
    last_s: float
    permitted: bool = False


@dataclass
class _Publication:
    """A blob that devices wait for: the chunks that are still to be said, and who asked for them."""

    due_s: float
    devices: set[str] = field(default_factory=set)
    indices: set[int] = field(default_factory=set)


class Aggregator:
    """One run's aggregator. `on_round` makes a finished round durable before the next is announced, and says
    whether there should be a next, or raises NotFinite before anything is kept where its state is no use; `on_assign`
    makes durable which class a device has and what it states; `on_note` is told what happens.

    `room` says how many bytes the driver can take now: a large blob is given to it part by part.
    """

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
        on_assign: Callable[[str, str, Examples], None],
        on_announce: Callable[[Announce], None],
        on_round: Callable[[RoundDone, Traffic], bool],
        on_note: Callable[[Note], None],
    ) -> None:
        """`assigned`, `examples`: device -> name of its class, what it stated, of an earlier start of this run.
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
        self._again = Limits(AGAIN_BYTES_PER_S, AGAIN_BURST_BYTES)
        self._on_assign = on_assign
        self._on_announce = on_announce
        self._on_round = on_round
        self._on_note = on_note
        self._classes = {one.name: one for one in classes}
        self._assigned = {device: self._classes[name] for device, name in assigned.items()}
        self._examples = dict(examples)
        coordinator.stated |= {device: known.train for device, known in examples.items()}
        self._bundle_blobs: dict[str, bytes] = {}
        for bundle in (one.bundle for one in classes):
            self._bundle_blobs[bundle.sha256] = bundle.manifest_bytes
            self._bundle_blobs |= {f.sha256: bundle.bytes_of(f) for f in bundle.manifest.files()}
        self._tensor_blobs: dict[str, bytes] = {}
        self._publications: dict[str, _Publication] = {}  # by SHA-256: one of each blob is under way at a time
        self._sent: set[tuple[str, str]] = set()  # (device, SHA-256) of what was sent once
        self._connections: dict[str, Presence] = {}  # the newest of each device
        self._uploads: dict[str, _Upload] = {}  # by device
        self._ask = Ask((), {})  # of the open round
        self._expected: dict[str, asks.Expected] = {}  # by class
        self._largest_uploads: dict[str, int] = {}
        self._nonce = ""
        self._announced: Outgoing | None = None
        self._traffic = Traffic()
        self._status_again_s = 0.0
        self._nameable = protocol.MAX_DEVICES
        self._restated: set[str] = set()  # who has stated its examples anew in this round: once, as it is written down
        self._noted: set[str] = set()  # whose requests were too many in this round
        self._out: list[Outgoing] = []

    # --- the driver's verbs -----------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Outgoing]:
        """Say that the aggregator is up; open the first round, or the one a resume found open."""
        self._publish_status("up")
        nobody = Announcement(self._epoch, 0, 0, "0" * 16, 0.0, [], [], BlobRef("0" * 64, 0))
        self._nameable = protocol.devices_that_fit(nobody, self.frame_bytes - TASKS_BYTES)
        self._status_again_s = now_s + protocol.STATUS_AGAIN_S
        self._carry_out(self.coordinator.begin(now_s), now_s)
        return self._take_out()

    def reconnected(self) -> list[Outgoing]:
        """The broker may have been restarted and have forgotten what it retained: say it again."""
        self._publish_status("finished" if self.finished else "up")
        if self._announced is not None:
            self._out.append(self._announced)
        return self._take_out()

    def receive(self, topic: str, payload: bytes, now_s: float) -> list[Outgoing]:
        """Handle one message from a device. What breaks the protocol is logged and dropped; so is what is too much."""
        sender = STRANGERS
        try:
            device = protocol.device_of(topic)
            sender = device if device in self._assigned else STRANGERS
            message, body = protocol.decode(payload)
            if getattr(message, "device", device) != device:
                raise RemoteProtocolError(f"a message that names another device than its topic {topic!r}")
            if sender == STRANGERS:
                self._meet(device, message, now_s)
                return self._take_out()
            self._traffic.up[device] = self._traffic.up.get(device, 0) + protocol.wire_bytes(topic, payload)
            if not self._is_awaited(device, message) and not self._allows(device, now_s):
                return self._take_out()
            if not isinstance(message, Presence) and device not in self.coordinator.present:
                # Who speaks is there, even if its presence was lost on the way.
                self._carry_out(self.coordinator.joined(device, now_s), now_s)
            self._handle(device, message, body, now_s)
        except ProtocolError as error:
            if self._allows(sender, now_s):
                self._note("protocol error", "", f"{topic}: {error.message}")
        return self._take_out()

    def tick(self, now_s: float) -> list[Outgoing]:
        """Time has passed: answer coalesced requests, drop stalled uploads, close or repeat a round."""
        if now_s >= self._status_again_s:
            self._publish_status("finished" if self.finished else "up")
            self._status_again_s = now_s + protocol.STATUS_AGAIN_S
        room = self._room()
        for sha256 in [s for s, publication in self._publications.items() if publication.due_s <= now_s]:
            room = self._publish_blob(sha256, room)
        for device in [d for d, u in self._uploads.items() if u.permitted and now_s - u.last_s > UPLOAD_STALL_S]:
            del self._uploads[device]
        self._permit_more(now_s)
        self._carry_out(self.coordinator.tick(now_s), now_s)
        return self._take_out()

    def wake_s(self, now_s: float) -> float:
        """When `tick` next has something to do; at most a second away."""
        times = [publication.due_s for publication in self._publications.values()] if self._room() > 0 else []
        if self.coordinator.deadline_s is not None:
            times.append(self.coordinator.deadline_s)
        return min([now_s + 1.0, *times])

    def stop(self, now_s: float) -> list[Outgoing]:
        """Close the round with what came, if that is a quorum, and open no other."""
        self._carry_out(self.coordinator.stop(now_s), now_s)
        return self._take_out()

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
        self._on_note(replace(note, text=one_line(note.text, NOTE_LENGTH)))

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

    def _is_awaited(self, device: str, message: Message) -> bool:
        """Whether it is a chunk that the device was told to send: these are as many as the upload has."""
        upload = self._uploads.get(device)
        return (
            isinstance(message, UploadChunk)
            and upload is not None
            and upload.permitted
            and upload.offer.upload == message.upload
        )

    def _meet(self, device: str, message: Message, now_s: float) -> None:
        """Hear somebody who has no place in the run yet: only that it is there."""
        if not isinstance(message, Presence):
            raise RemoteProtocolError(f"device {device!r}, which has not joined, sent a {type(message).__name__}")
        if message.status == "up":
            self._presence(message, now_s)

    def _handle(self, device: str, message: Message, body: memoryview, now_s: float) -> None:
        match message:
            case Presence():
                self._presence(message, now_s)
            case BlobRequest():
                self._request(device, message, now_s)
            case Offer():
                self._offer(message, body, now_s)
            case UploadChunk():
                self._chunk(device, message, body, now_s)
            case TaskFailed():
                if message.nonce == self._nonce:
                    self._carry_out(self.coordinator.failed(device, message.round, message.reason, now_s), now_s)
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
        known = self._connections.get(device)
        same = known is not None and known.instance == presence.instance
        if known is not None and same and presence.session < known.session:
            return  # a late will of a connection that the device has replaced
        if known is not None and not same and presence.status != "up":
            return  # the will of a process that another one has replaced
        if presence.status == "up":
            if self._assign(presence, now_s):
                self._connections[device] = presence
                examples = self._examples[device].train
                self._carry_out(self.coordinator.joined(device, now_s, examples=examples), now_s)
        else:
            self._connections[device] = presence
            if presence.status == "sleeping":
                self._uploads.pop(device, None)  # "down" may be a short cut of the link: its chunks wait, up to a stall
            self._carry_out(self.coordinator.left(device, now_s), now_s)
            self._permit_more(now_s)

    def _assign(self, presence: Presence, now_s: float) -> bool:
        """Tell a device which bundle is for it: the one it had before, else that of the first class that suits it."""
        device = presence.device
        one = self._assigned.get(device) or class_of(presence, self._classes.values())
        if one is None:
            reason = f"no [[bundle]] of the run file is for {stated(presence)}"
            return self._turn_away(device, "no bundle", reason, now_s)
        if device not in self._assigned and len(self._assigned) >= self.most_devices:
            reason = f"the run has {len(self._assigned)} devices, as many as it takes ([round] max_devices)"
            return self._turn_away(device, "run is full", reason, now_s)
        examples = Examples(presence.train_examples, presence.test_examples)
        if device not in self._restated and self._examples.get(device) != examples:
            self._restated.add(device)
            self._on_assign(device, one.name, examples)
            self._assigned[device], self._examples[device] = one, examples
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

    def _request(self, device: str, request: BlobRequest, now_s: float) -> None:
        data = self._blob(request.sha256)
        if data is None:
            return  # of a round that is over; the device learns it from the announcement
        count = protocol.chunk_count(len(data), self.chunk_bytes)
        wanted = set(protocol.indices(list(request.missing), count))
        publication = self._publications.get(request.sha256)
        new = wanted - publication.indices if publication else wanted
        cost = min(len(new) * self.chunk_bytes, AGAIN_BURST_BYTES)
        if (device, request.sha256) in self._sent and not self._again.allows(device, now_s, cost):
            return  # it will ask again
        self._sent.add((device, request.sha256))
        if publication is None:
            publication = self._publications[request.sha256] = _Publication(now_s + COALESCE_S)
        publication.devices.add(device)
        publication.indices |= new

    def _offer(self, offer: Offer, body: memoryview, now_s: float) -> None:
        self.coordinator.heard(offer.device)
        verdict = self.coordinator.judge(offer.device, offer.round, offer.nonce)
        if verdict.status != "accepted":
            self._say(Note(verdict.status, offer.round, offer.device, verdict.reason))
            self._receipt(offer, verdict.status, verdict.reason)
            return
        largest = self._largest_uploads[self._assigned[offer.device].name]
        if offer.size_bytes > largest:
            reason = f"an upload of {offer.size_bytes} bytes; the asked tensors have at most {largest}"
            self._refuse(offer, reason, now_s)
            return
        upload = self._uploads.get(offer.device)
        if upload is None or upload.offer != offer:
            assembly = Assembly(offer.upload, offer.size_bytes, offer.chunk_bytes)
            upload = self._uploads[offer.device] = _Upload(offer, assembly, now_s)
        if len(body) == offer.size_bytes:
            upload.assembly = Assembly(offer.upload, offer.size_bytes, max(1, offer.size_bytes))
            upload.assembly.add(0, body)
            self._complete(upload, now_s)
        elif upload.permitted:
            self._send_permit(upload, now_s)  # the device asks what is missing
        else:
            self._permit_more(now_s)

    def _chunk(self, device: str, chunk: UploadChunk, body: memoryview, now_s: float) -> None:
        upload = self._uploads.get(device)
        if upload is None or not self._is_awaited(device, chunk):
            return  # a duplicate of an upload that is complete, or one that stalled: the device will offer again
        if not upload.assembly.add(chunk.index, body):
            return
        upload.last_s = now_s
        if upload.assembly.complete:
            self._complete(upload, now_s)

    def _complete(self, upload: _Upload, now_s: float) -> None:
        """Every chunk is there: check the reply and count it."""
        offer = upload.offer
        del self._uploads[offer.device]
        try:
            tensors = protocol.bytes_to_tensors(upload.assembly.finish(), f"the upload of device {offer.device!r}")
            one = self._assigned[offer.device]
            checked = asks.check_reply(tensors, self._expected[one.name], offer.device, self._ask.certain)
        except ProtocolError as error:
            self._refuse(offer, error.message, now_s)
        else:
            examples = self._examples.get(offer.device)
            metrics = asks.metrics_of(self._ask, one.bundle.manifest, offer.metrics, examples)
            reply = Reply(offer.device, offer.round, offer.examples, checked, metrics)
            verdict, actions = self.coordinator.replied(reply, offer.nonce, now_s)
            self._carry_out(actions, now_s)  # first what others wait for, perhaps the next round
            now = self.coordinator.judge(offer.device, offer.round, offer.nonce)
            if verdict.status == "accepted" and now.status == "refused":
                verdict = now  # the round was undone, without this device
            if (verdict.status, now.status) != ("accepted", "accepted"):  # or with it: it will offer again
                self._receipt(offer, verdict.status, verdict.reason)
        self._permit_more(now_s)

    def _refuse(self, offer: Offer, reason: str, now_s: float) -> None:
        self._receipt(offer, "refused", reason)
        self._carry_out(self.coordinator.failed(offer.device, offer.round, f"refused: {reason}", now_s), now_s)

    # --- uploads and blobs ------------------------------------------------------------------------------------

    def _let_others_pass(self) -> None:
        """Uploads that are under way go behind those that wait, and keep what has come: whoever sends one chunk now and
        then holds nobody up for longer than an attempt."""
        slow = {device: upload for device, upload in self._uploads.items() if upload.permitted}
        for device, upload in slow.items():
            upload.permitted = False
            self._uploads[device] = self._uploads.pop(device)

    def _permit_more(self, now_s: float) -> None:
        """Let waiting uploads begin, first come first served, within the budget. One always may."""
        active = sum(u.offer.size_bytes for u in self._uploads.values() if u.permitted)
        for upload in self._uploads.values():
            if upload.permitted:
                continue
            if active and active + upload.offer.size_bytes > UPLOAD_BUDGET_BYTES:
                return
            active += upload.offer.size_bytes
            self._send_permit(upload, now_s)

    def _send_permit(self, upload: _Upload, now_s: float) -> None:
        upload.permitted = True
        upload.last_s = now_s
        self._send_to(upload.offer.device, Permit(upload.offer.upload, upload.assembly.missing()))

    def _receipt(self, offer: Offer, status: str, reason: str) -> None:
        self._send_to(offer.device, Receipt(offer.upload, offer.round, status, reason[:1000]))  # type: ignore[arg-type]

    def _send_to(self, device: str, message: Message) -> None:
        outgoing = Outgoing(protocol.down_topic(self.run, device), protocol.encode(message))
        self._traffic.down += outgoing.wire_bytes
        self._out.append(outgoing)

    def _blob(self, sha256: str) -> bytes | None:
        return self._tensor_blobs.get(sha256, self._bundle_blobs.get(sha256))

    def _publish_blob(self, sha256: str, room: int) -> int:
        """Say the next chunks of a blob, as many as there is room for; the room that is left."""
        data, publication = self._blob(sha256), self._publications[sha256]
        if data is None:
            del self._publications[sha256]
            return room
        topic = protocol.blob_topic(self.run, sha256)
        for index in sorted(publication.indices):
            if room <= 0:
                return 0
            body = memoryview(data)[index * self.chunk_bytes : (index + 1) * self.chunk_bytes]
            chunk = Outgoing(topic, protocol.encode(BlobChunk(sha256, len(data), self.chunk_bytes, index), body))
            self._traffic.down += chunk.wire_bytes * len(publication.devices)
            self._out.append(chunk)
            publication.indices.discard(index)
            room -= len(chunk.payload)
        del self._publications[sha256]
        return room

    # --- what the coordinator wants ---------------------------------------------------------------------------

    def _carry_out(self, actions: list[Action], now_s: float) -> None:
        for action in actions:
            match action:
                case Note():
                    self._say(action)
                case Announce():
                    self._announce(action)
                    self._permit_more(now_s)
                case RoundDone():
                    traffic, self._traffic = self._traffic, Traffic()
                    self._uploads.clear()
                    try:
                        go_on = self._on_round(action, traffic)
                    except NotFinite as error:
                        self._traffic = traffic  # the round goes on
                        self._carry_out(self.coordinator.undo(error.message, now_s), now_s)
                        continue
                    if not go_on:
                        self.coordinator.finish()
                    self._carry_out(self.coordinator.begin(now_s), now_s)
                case Finished():
                    self.finished = True
                    self._publish_status("finished")

    def _announce(self, action: Announce) -> None:
        self._on_announce(action)
        data = protocol.tensors_to_bytes(action.ask.tensors)
        ref = BlobRef(sha256_hex(data), len(data))
        self._tensor_blobs = {ref.sha256: data}
        self._let_others_pass()
        self._sent = {(device, blob) for device, blob in self._sent if self._blob(blob) is not None}
        self._requests.refill()
        self._noted.clear()
        self._restated.clear()
        self._nonce = action.nonce
        self._expect(action.ask)
        small_bytes = min(self.chunk_bytes, self.inline_bytes)  # travel inside, whoever hears it
        announcement = Announcement(
            epoch=self._epoch,
            round=action.round,
            attempt=action.attempt,
            nonce=action.nonce,
            duration_s=action.duration_s,
            devices=list(action.devices),
            tasks=list(action.ask.tasks),
            tensors=ref,
            before=action.before,
            # All may come at once, and nobody has permitted them.
            inline_bytes=max(small_bytes, min(self.inline_bytes, UPLOAD_BUDGET_BYTES // len(action.devices))),
        )
        self._nameable = protocol.devices_that_fit(announcement, self.frame_bytes - protocol.PREAMBLE.size)
        asks_most = 2 * len(action.devices) >= len(self.coordinator.present)  # else those who are asked fetch it
        payload = protocol.encode(announcement)
        if (
            len(data) <= (self.inline_bytes if asks_most else small_bytes)
            and len(payload) + len(data) <= self.frame_bytes
        ):
            payload = protocol.encode(announcement, data)
        self._announced = Outgoing(protocol.round_topic(self.run), payload, retain=True)
        self._traffic.down += self._announced.wire_bytes * max(1, len(self.coordinator.present))
        self._out.append(self._announced)

    def _expect(self, ask: Ask) -> None:
        self._ask = ask
        self._expected = {name: asks.reply_names(ask, one.bundle.manifest) for name, one in self._classes.items()}
        self._largest_uploads = {name: asks.largest_reply_bytes(names) for name, names in self._expected.items()}

    def _publish_status(self, status: str) -> None:
        message = AggregatorStatus(self._epoch, status)  # type: ignore[arg-type]
        self._out.append(Outgoing(protocol.aggregator_topic(self.run), protocol.encode(message), retain=True))

    def _take_out(self) -> list[Outgoing]:
        out, self._out = self._out, []
        return out
