"""The aggregator's side of the wire, without I/O: frames in, frames out.

It decodes and checks what devices send, gives it to the coordinator, and turns what the coordinator wants into
frames. A driver (`edgefl.serve` over MQTT, or a test in memory) carries them:

    for message in aggregator.receive(topic, payload, now_s): publish(message)
    for message in aggregator.tick(now_s): publish(message)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgefl import asks, protocol
from edgefl.classes import DeviceClass, class_of, stated
from edgefl.coordinator import Action, Announce, Coordinator, Finished, Note, RoundDone
from edgefl.errors import ProtocolError, RemoteProtocolError
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


@dataclass
class Traffic:
    """MQTT bytes of one round, payload and packet header. Down counts a broadcast once for each device that
    needed it."""

    up: dict[str, int] = field(default_factory=dict)
    down: int = 0

    @property
    def up_total(self) -> int:
        return sum(self.up.values())


@dataclass
class _Upload:
    offer: Offer
    assembly: Assembly
    last_s: float
    permitted: bool = False


@dataclass
class _BlobDemand:
    due_s: float
    devices: set[str] = field(default_factory=set)
    everything: bool = False
    indices: set[int] = field(default_factory=set)


class Aggregator:
    """One run's aggregator. `on_round` makes a finished round durable before the next is announced, and says
    whether there should be a next; `on_assign` makes durable which class a device has; `on_note` is told what
    happens."""

    def __init__(
        self,
        run: str,
        classes: Sequence[DeviceClass],
        coordinator: Coordinator,
        *,
        epoch: int,
        assigned: Mapping[str, str],
        chunk_bytes: int = protocol.CHUNK_BYTES,
        inline_bytes: int = protocol.INLINE_BYTES,
        on_assign: Callable[[str, str], None],
        on_announce: Callable[[Announce], None],
        on_round: Callable[[RoundDone, Traffic], bool],
        on_note: Callable[[Note], None],
    ) -> None:
        """`assigned`: device -> name of its class, of an earlier start of this run. `chunk_bytes`, `inline_bytes`: the
        largest parts of blobs, and the largest bodies of announcements and offers, that the broker takes."""
        self.run = run
        self.coordinator = coordinator
        self.finished = False
        self._epoch = epoch
        self.chunk_bytes = chunk_bytes
        self.inline_bytes = inline_bytes
        self._on_assign = on_assign
        self._on_announce = on_announce
        self._on_round = on_round
        self._on_note = on_note
        self._classes = {one.name: one for one in classes}
        self._assigned = {device: self._classes[name] for device, name in assigned.items()}
        self._bundle_blobs: dict[str, bytes] = {}
        for bundle in (one.bundle for one in classes):
            self._bundle_blobs[bundle.sha256] = bundle.manifest_bytes
            self._bundle_blobs |= {f.sha256: bundle.bytes_of(f) for f in bundle.manifest.files()}
        self._tensor_blobs: dict[str, bytes] = {}
        self._demand: dict[str, _BlobDemand] = {}
        self._connections: dict[str, Presence] = {}  # the newest of each device
        self._uploads: dict[str, _Upload] = {}  # by device
        self._ask = Ask((), {})  # of the open round
        self._expected: dict[str, asks.Expected] = {}  # by class
        self._largest_uploads: dict[str, int] = {}
        self._nonce = ""
        self._announced: Outgoing | None = None
        self._traffic = Traffic()
        self._out: list[Outgoing] = []

    # --- the driver's verbs -----------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Outgoing]:
        """Say that the aggregator is up; open the first round, or the one a resume found open."""
        self._publish_status("up")
        self._carry_out(self.coordinator.begin(now_s), now_s)
        return self._take_out()

    def reconnected(self) -> list[Outgoing]:
        """The broker may have been restarted and have forgotten what it retained: say it again."""
        self._publish_status("finished" if self.finished else "up")
        if self._announced is not None:
            self._out.append(self._announced)
        return self._take_out()

    def receive(self, topic: str, payload: bytes, now_s: float) -> list[Outgoing]:
        """Handle one message from a device. What breaks the protocol is logged and dropped."""
        try:
            device = protocol.device_of(topic)
            message, body = protocol.decode(payload)
            self._traffic.up[device] = self._traffic.up.get(device, 0) + protocol.wire_bytes(topic, payload)
            if getattr(message, "device", device) != device:
                raise RemoteProtocolError(f"a message that names another device than its topic {topic!r}")
            known = device in self._assigned
            if known and not isinstance(message, Presence) and device not in self.coordinator.present:
                # Who speaks is there, even if its presence was lost on the way.
                self._carry_out(self.coordinator.joined(device, now_s), now_s)
            self._handle(device, message, body, now_s)
        except ProtocolError as error:
            self._on_note(Note("protocol error", self.coordinator.state.round, text=f"{topic}: {error.message}"))
        return self._take_out()

    def tick(self, now_s: float) -> list[Outgoing]:
        """Time has passed: answer coalesced requests, drop stalled uploads, close or repeat a round."""
        for sha256 in [s for s, demand in self._demand.items() if demand.due_s <= now_s]:
            self._publish_blob(sha256, self._demand.pop(sha256))
        for device in [d for d, u in self._uploads.items() if u.permitted and now_s - u.last_s > UPLOAD_STALL_S]:
            del self._uploads[device]
        self._permit_more(now_s)
        self._carry_out(self.coordinator.tick(now_s), now_s)
        return self._take_out()

    def wake_s(self, now_s: float) -> float:
        """When `tick` next has something to do; at most a second away."""
        times = [demand.due_s for demand in self._demand.values()]
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

    # --- what devices say -------------------------------------------------------------------------------------

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
        known = self._connections.get(device)
        same = known is not None and known.instance == presence.instance
        if known is not None and same and presence.session < known.session:
            return  # a late will of a connection that the device has replaced
        if known is not None and not same and presence.status != "up":
            return  # the will of a process that another one has replaced
        self._connections[device] = presence
        if presence.status == "up":
            if self._assign(presence):
                self._carry_out(self.coordinator.joined(device, now_s), now_s)
        else:
            if presence.status == "sleeping":
                self._uploads.pop(device, None)  # "down" may be a short cut of the link: its chunks wait, up to a stall
            self._carry_out(self.coordinator.left(device, now_s), now_s)
            self._permit_more(now_s)

    def _assign(self, presence: Presence) -> bool:
        """Tell a device which bundle is for it: the one it had before, else that of the first class that suits it."""
        device = presence.device
        one = self._assigned.get(device) or class_of(presence, self._classes.values())
        if one is None:
            reason = f"no [[bundle]] of the run file is for {stated(presence)}"
            self._on_note(Note("no bundle", self.coordinator.state.round, device, reason))
            self._send_to(device, Assignment(self._epoch, None, reason=reason[:1000]))
            return False
        if device not in self._assigned:
            self._on_assign(device, one.name)
            self._assigned[device] = one
        bundle = BlobRef(one.bundle.sha256, len(one.bundle.manifest_bytes))
        self._send_to(device, Assignment(self._epoch, bundle, dict(one.settings)))
        return True

    def _request(self, device: str, request: BlobRequest, now_s: float) -> None:
        if self._blob(request.sha256) is None:
            return  # of a round that is over; the device learns it from the announcement
        demand = self._demand.setdefault(request.sha256, _BlobDemand(now_s + COALESCE_S))
        demand.devices.add(device)
        demand.everything |= not request.missing
        count = protocol.chunk_count(len(self._blob(request.sha256) or b""), self.chunk_bytes)
        if request.missing:
            demand.indices.update(protocol.indices(list(request.missing), count))

    def _offer(self, offer: Offer, body: memoryview, now_s: float) -> None:
        self.coordinator.heard(offer.device)
        verdict = self.coordinator.judge(offer.device, offer.round, offer.nonce)
        if verdict.status != "accepted":
            self._on_note(Note(verdict.status, offer.round, offer.device, verdict.reason))
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
        if upload is None or upload.offer.upload != chunk.upload:
            return  # a duplicate of an upload that is complete, or one that stalled: the device will offer again
        upload.assembly.add(chunk.index, body)
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
            if bad := protocol.not_finite(offer.metrics):
                raise RemoteProtocolError(f"device {offer.device!r} sent metric {bad!r}, which is not finite")
        except ProtocolError as error:
            self._refuse(offer, error.message, now_s)
        else:
            known = asks.reply_metrics(self._ask, one.bundle.manifest)
            metrics = {name: value for name, value in offer.metrics.items() if name in known}
            reply = Reply(offer.device, offer.round, offer.examples, checked, metrics)
            verdict, actions = self.coordinator.replied(reply, offer.nonce, now_s)
            self._carry_out(actions, now_s)  # first what others wait for, perhaps the next round
            self._receipt(offer, verdict.status, verdict.reason)
        self._permit_more(now_s)

    def _refuse(self, offer: Offer, reason: str, now_s: float) -> None:
        self._receipt(offer, "refused", reason)
        self._carry_out(self.coordinator.failed(offer.device, offer.round, f"refused: {reason}", now_s), now_s)

    # --- uploads and blobs ------------------------------------------------------------------------------------

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

    def _publish_blob(self, sha256: str, demand: _BlobDemand) -> None:
        data = self._blob(sha256)
        if data is None:
            return
        ranges = [] if demand.everything else [(i, i + 1) for i in sorted(demand.indices)]
        topic = protocol.blob_topic(self.run, sha256)
        for index, body in protocol.chunks(data, self.chunk_bytes, ranges):
            chunk = Outgoing(topic, protocol.encode(BlobChunk(sha256, len(data), self.chunk_bytes, index), body))
            self._traffic.down += chunk.wire_bytes * len(demand.devices)
            self._out.append(chunk)

    # --- what the coordinator wants ---------------------------------------------------------------------------

    def _carry_out(self, actions: list[Action], now_s: float) -> None:
        for action in actions:
            match action:
                case Note():
                    self._on_note(action)
                case Announce():
                    self._announce(action)
                case RoundDone():
                    traffic, self._traffic = self._traffic, Traffic()
                    self._uploads.clear()
                    if not self._on_round(action, traffic):
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
        asks_most = 2 * len(action.devices) >= len(self.coordinator.present)  # else those who are asked fetch it
        inline = len(data) <= (self.inline_bytes if asks_most else small_bytes)
        payload = protocol.encode(announcement, data if inline else b"")
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
