"""The wire: topics, frames, messages, limits. No I/O.

Every MQTT payload is one frame, which says all it needs itself, so MQTT 3.1.1 and MQTT 5 brokers serve alike:

    offset 0   3 bytes   "efl"
           3   1 byte    VERSION
           4   4 bytes   CRC-32 of everything that follows, little endian
           8   4 bytes   length of the header, little endian
          12             header: one JSON object, its "type" names the message below
                         body: raw bytes (safetensors, or a chunk of them); empty for most messages

Topics, at most six levels, no round number in a topic name:

    edgefl/1/RUN/round              retained   Announcement                          aggregator -> devices
    edgefl/1/RUN/aggregator         retained   AggregatorStatus; its will says down  aggregator -> devices
    edgefl/1/RUN/device/DEVICE      retained   Presence; its will says down          device -> aggregator
    edgefl/1/RUN/up/SHARD/DEVICE               BlobRequest, Offer, UploadChunk, TaskFailed
    edgefl/1/RUN/down/DEVICE                   Assignment, Permit, Receipt, AggregatorStatus (finished)
    edgefl/1/RUN/blob/PREFIX                   BlobChunk

A reply travels so: the device *offers* it (with its tensors, if the announcement allows so many bytes); the aggregator
*permits* the chunks it still lacks; the device sends them; a *receipt* ends it. A lost message is repaired by offering
again: the permit names what is missing. An MQTT acknowledgement means nothing here, only a receipt does.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefl import newer
from edgefl.errors import BundleError, LocalProtocolError, RemoteProtocolError
from edgefl.files import sha256_hex
from edgefl.manifest import MAX_MANIFEST_BYTES
from edgefl.method import Task
from edgefl.tensors import Array, load_tensors, save_tensors

VERSION = 1
MAGIC = b"efl"
PREAMBLE = struct.Struct("<3sBII")  # magic, version, CRC-32, header length

MAX_HEADER_BYTES = 512 * 1024
MAX_FRAME_BYTES = 1024 * 1024
MAX_BLOB_BYTES = 2**31
CHUNK_BYTES = 64 * 1024 - 512  # with its header a 64 KiB packet, the fastest size measured (docs/design.md)
MIN_CHUNK_BYTES = 4 * 1024
MAX_DEVICES = 10_000  # of a run: an announcement names those that are asked
MAX_TASKS = 100  # of an announcement
MOST_COUNTED = 64  # classes of which a device says how many examples it has of each
MAX_EPOCH = 1_000_000
STATUS_AGAIN_S = 30.0  # how often an aggregator says again that it is up
STATUS_COUNTS_S = 120.0  # for so long after its last word an aggregator is taken to be there
# A body this small may travel with its announcement or offer, where the broker takes it: beside any header.
INLINE_BYTES = MAX_FRAME_BYTES - MAX_HEADER_BYTES - 1024

DEVICE_BYTES = 36 + 3  # of the longest name in a list, with quotes and comma

NAME = r"^[a-z0-9_-]{1,36}\Z"  # not $, which lets a newline follow

Name = Annotated[str, Meta(pattern=NAME)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Epoch = Annotated[int, Meta(ge=0, le=MAX_EPOCH)]
Stock = Annotated[int, Meta(ge=0, le=10**9)]  # examples of one device: no device has more
Size = Annotated[int, Meta(ge=0, le=MAX_BLOB_BYTES)]
ChunkBytes = Annotated[int, Meta(ge=1024, le=MAX_FRAME_BYTES)]
MOST_CHARACTERS = 1000  # of a text
Text = Annotated[str, Meta(max_length=MOST_CHARACTERS)]
Range = tuple[Count, Count]  # [start, stop) of chunk indices


class _Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """Unknown fields are ignored: a newer peer of the same VERSION may say more. But not in a task (`edgefl.newer`)."""


class BlobRef(msgspec.Struct, frozen=True):
    """Content-addressed bytes: fetched once, kept, verified."""

    sha256: Sha256
    size_bytes: Size


class ManifestRef(BlobRef, frozen=True):
    """A bundle's manifest, which names the bundle."""

    size_bytes: Annotated[int, Meta(ge=0, le=MAX_MANIFEST_BYTES)]


class Presence(_Message, frozen=True, tag="presence"):
    """A device is there, asleep or gone. `instance` names its process and `session` counts that process's
    connections, so that a late will of an old one cannot mark a newer one dead. `data` notes what was done with its
    data for the bundle, or is odd about them; `label_counts` says how many of its training examples are of class 0, 1,
    ... where it says so at all."""

    device: Name
    session: Count
    status: Literal["up", "sleeping", "down"]
    instance: Annotated[str, Meta(max_length=64)] = ""
    cores: Count = 0
    memory_mb: Count = 0
    runtime: Text = ""
    engine: Text = ""
    train_examples: Stock = 0
    test_examples: Stock = 0
    data: Text = ""
    label_counts: Annotated[list[Stock], Meta(max_length=MOST_COUNTED)] = []


class AggregatorStatus(_Message, frozen=True, tag="aggregator"):
    """`epoch` counts the aggregator's starts: messages of an older epoch are of an instance that was replaced.

    Said again every STATUS_AGAIN_S seconds, and to a device that says that it is up when the run is finished: what a
    broker has kept of a status is a hint, until somebody says it.
    """

    epoch: Epoch
    status: Literal["up", "down", "finished"]


class Assignment(_Message, frozen=True, tag="assignment"):
    """Which bundle a device is to use, the answer to its presence: sent again whenever it says that it is up.

    `settings` of programs are for the device's class and count more than a task's. Without a bundle there is none for
    this device, and `reason` says why.
    """

    epoch: Epoch
    bundle: ManifestRef | None
    settings: Annotated[dict[Annotated[str, Meta(max_length=200)], float], Meta(max_length=200)] = {}
    reason: Text = ""


class Announcement(_Message, frozen=True, tag="announcement"):
    """One round's ask. The body holds the announced tensors when they are small; else they are a blob.

    Rounds before `round` are over: a device may forget its replies to them. An announcement of a later epoch may go
    back to a round whose state was not durable then, with another nonce.
    `duration_s` is from now, no clock is shared. `before` is the nonce of the round before; "" where the aggregator has
    started since. A reply of at most `inline_bytes` travels in its offer.
    """

    epoch: Epoch
    round: Count
    attempt: Count
    nonce: Nonce
    duration_s: Annotated[float, Meta(ge=0)]
    devices: Annotated[list[Name], Meta(max_length=MAX_DEVICES)]
    tasks: Annotated[list[Task], Meta(max_length=MAX_TASKS)]
    tensors: BlobRef
    before: Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    inline_bytes: Count = CHUNK_BYTES


class NewerAnnouncement(Announcement, frozen=True, tag="announcement"):
    """An announcement with a task that this edgefl cannot read, and `fault`, why. Its `tasks` are left out.

    `decode` makes it, so that a device can answer; nobody sends it.
    """

    fault: str = ""


class BlobRequest(_Message, frozen=True, tag="blob_request"):
    """A device lacks these chunks of a blob. Who publishes chooses the chunk size: `BlobChunk` says it."""

    sha256: Sha256
    missing: Annotated[list[Range], Meta(max_length=4096)]  # empty: all of it


class BlobChunk(_Message, frozen=True, tag="blob_chunk"):
    """Part of a blob: bytes [index * chunk_bytes, ...). The body holds them."""

    sha256: Sha256
    size_bytes: Size
    chunk_bytes: ChunkBytes
    index: Count


class Offer(_Message, frozen=True, tag="offer"):
    """A reply is ready: everything of it but its tensors, which are the body when they are small.

    `steps` of the optimizer are of the tasks that were fed "train" and whose state is sent.
    """

    device: Name
    round: Count
    nonce: Nonce
    upload: Sha256  # of the tensors' bytes
    size_bytes: Size
    chunk_bytes: ChunkBytes
    examples: Count
    metrics: Annotated[dict[Annotated[str, Meta(max_length=200)], float], Meta(max_length=200)]
    steps: Count = 0


class UploadChunk(_Message, frozen=True, tag="upload_chunk"):
    """Part of an offered upload. The body holds the bytes."""

    upload: Sha256
    index: Count


class Permit(_Message, frozen=True, tag="permit"):
    """Send these chunks of your upload now."""

    upload: Sha256
    missing: Annotated[list[Range], Meta(max_length=4096)]


class Receipt(_Message, frozen=True, tag="receipt"):
    """What became of a reply. "accepted" and "duplicate": keep it until the round is durable (a later announcement
    says so). "late" and "refused": forget it."""

    upload: Sha256
    round: Count
    status: Literal["accepted", "duplicate", "late", "refused"]
    reason: Text = ""


class TaskFailed(_Message, frozen=True, tag="task_failed"):
    """A device cannot carry out a round's tasks, and why."""

    device: Name
    round: Count
    nonce: Nonce
    reason: Text


Message = (
    Presence
    | AggregatorStatus
    | Assignment
    | Announcement
    | BlobRequest
    | BlobChunk
    | Offer
    | UploadChunk
    | Permit
    | Receipt
    | TaskFailed
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


# --- frames -------------------------------------------------------------------------------------------------------


def encode(message: Message, body: bytes | memoryview = b"") -> bytes:
    """One frame. Raises LocalProtocolError when it would be larger than the limits allow."""
    header = _encoder.encode(message)
    size = PREAMBLE.size + len(header) + len(body)
    if len(header) > MAX_HEADER_BYTES or size > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"a {type(message).__name__} of {size} bytes (header {len(header)}); at most {MAX_FRAME_BYTES} "
            f"(header {MAX_HEADER_BYTES}) travel in one frame"
        )
    crc = zlib.crc32(body, zlib.crc32(header, zlib.crc32(struct.pack("<I", len(header)))))
    return b"".join((PREAMBLE.pack(MAGIC, VERSION, crc, len(header)), header, body))


def decode(frame: bytes) -> tuple[Message, memoryview]:
    """The message and the body of one frame. Raises RemoteProtocolError, and nothing else, for any other bytes.

    An announcement of which only the tasks cannot be read becomes a `NewerAnnouncement`.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"a frame of {len(frame)} bytes; at most {MAX_FRAME_BYTES}")
    if len(frame) < PREAMBLE.size:
        raise RemoteProtocolError(f"a frame of {len(frame)} bytes; at least {PREAMBLE.size}")
    magic, version, crc, header_bytes = PREAMBLE.unpack_from(frame)
    if magic != MAGIC:
        raise RemoteProtocolError(f"not an edgefl frame: it begins with {frame[:3]!r}")
    if version != VERSION:
        raise RemoteProtocolError(
            f"a frame of protocol version {version}; this edgefl speaks {VERSION}", hint="upgrade the older side"
        )
    if zlib.crc32(memoryview(frame)[8:]) != crc:
        raise RemoteProtocolError(f"a damaged frame of {len(frame)} bytes: its CRC-32 does not match")
    stop = PREAMBLE.size + header_bytes
    if header_bytes > MAX_HEADER_BYTES or stop > len(frame):
        raise RemoteProtocolError(f"a header of {header_bytes} bytes in a frame of {len(frame)}")
    header = memoryview(frame)[PREAMBLE.size : stop]
    try:
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        announced = _newer(header) if isinstance(error, msgspec.ValidationError) else None
        if announced is None:
            raise RemoteProtocolError(f"a message that cannot be read: {error}") from error
        message = announced
    return message, memoryview(frame)[stop:]


def _newer(header: memoryview) -> NewerAnnouncement | None:
    """An announcement that can be read but for its tasks; None where it is anything else."""
    try:
        fields = msgspec.json.decode(header)
        if not isinstance(fields, dict) or not isinstance(tasks := fields.get("tasks"), list) or len(tasks) > MAX_TASKS:
            return None
        announcement = msgspec.convert({**fields, "tasks": [], "fault": ""}, NewerAnnouncement)
        fault = newer.fault(tasks)
        return msgspec.structs.replace(announcement, fault=fault) if fault else None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError):
        return None


@dataclass(frozen=True)
class Outgoing:
    """One MQTT message to publish. A broker that speaks MQTT 5 keeps it for `expires_s` seconds; 0: for ever."""

    topic: str
    payload: bytes
    retain: bool = False
    expires_s: int = 0

    @property
    def wire_bytes(self) -> int:
        return wire_bytes(self.topic, self.payload) + (EXPIRY_BYTES if self.expires_s else 0)


EXPIRY_BYTES = 5  # of a packet that says when it expires


def wire_bytes(topic: str, payload: bytes) -> int:
    """Bytes of one MQTT 5 PUBLISH with QoS 1: type, length (up to 4), topic with its length, packet id, properties."""
    return 1 + 4 + 2 + len(topic) + 2 + 1 + len(payload)


# --- topics -------------------------------------------------------------------------------------------------------

ROOT = f"edgefl/{VERSION}"


def round_topic(run: str) -> str:
    return f"{ROOT}/{run}/round"


def aggregator_topic(run: str) -> str:
    """`run` may be "+", to find which runs there are."""
    return f"{ROOT}/{run}/aggregator"


def device_topic(run: str, device: str) -> str:
    return f"{ROOT}/{run}/device/{device}"


def up_topic(run: str, device: str) -> str:
    # Shard 0 of 1. The level is there so that several ingest processes can each subscribe to a part of the fleet
    # without MQTT's shared subscriptions, which scatter one upload's chunks over the workers.
    return f"{ROOT}/{run}/up/{'+' if device == '+' else '0'}/{device}"


def down_topic(run: str, device: str) -> str:
    return f"{ROOT}/{run}/down/{device}"


def blob_topic(run: str, sha256: str) -> str:
    return f"{ROOT}/{run}/blob/{sha256[:16]}"


def run_of(topic: str) -> str:
    """RUN of a topic. Raises RemoteProtocolError for a foreign topic."""
    return _level(topic, 2)


def device_of(topic: str) -> str:
    """DEVICE of a device's topic: who the broker let write there, whatever the message says."""
    return _level(topic, -1)


def _level(topic: str, index: int) -> str:
    levels = topic.split("/")
    if not topic.startswith(f"{ROOT}/") or len(levels) < 4 or not re.search(NAME, levels[index]):
        raise RemoteProtocolError(f"a message on the foreign topic {topic!r}")
    return levels[index]


def devices_that_fit(announcement: Announcement, room_bytes: int) -> int:
    """How many devices, with the longest names, an announcement with these tasks can name in so many bytes."""
    header = len(_encoder.encode(msgspec.structs.replace(announcement, devices=[])))
    return max(0, min(MAX_DEVICES, (min(room_bytes, MAX_HEADER_BYTES) - header) // DEVICE_BYTES))


# --- tensors ------------------------------------------------------------------------------------------------------


def tensors_to_bytes(tensors: Mapping[str, Array]) -> bytes:
    """Named arrays as safetensors; equal tensors give equal bytes."""
    return save_tensors(tensors)


def bytes_to_tensors(data: bytes, what: str) -> dict[str, Array]:
    """Named arrays. Raises RemoteProtocolError when the bytes are not safetensors."""
    try:
        return load_tensors(data, what)
    except BundleError as error:
        raise RemoteProtocolError(error.message) from error


# --- chunks -------------------------------------------------------------------------------------------------------


def chunk_count(size_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a payload has; an empty one has one empty chunk."""
    return max(1, -(-size_bytes // chunk_bytes))


class Assembly:
    """A payload that arrives in chunks: any order, any number of times.

    It holds what has come, and no more: a size is a claim.
    """

    def __init__(self, sha256: str, size_bytes: int, chunk_bytes: int) -> None:
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes
        self._count = chunk_count(size_bytes, chunk_bytes)
        self._forget()

    def _forget(self) -> None:
        self._data = bytearray()  # the chunks before the first that is missing
        self._first_missing = 0
        self._early: dict[int, bytes] = {}  # chunks after it

    def add(self, index: int, body: memoryview | bytes) -> bool:
        """Take one chunk; whether it was missing: a second copy changes nothing. Raises RemoteProtocolError when it
        cannot belong here."""
        start = index * self.chunk_bytes
        expected = min(self.chunk_bytes, self.size_bytes - start)
        if index >= self._count or len(body) != expected:
            raise RemoteProtocolError(
                f"chunk {index} of {len(body)} bytes does not fit a payload of {self.size_bytes} bytes "
                f"in chunks of {self.chunk_bytes}"
            )
        if index < self._first_missing or index in self._early:
            return False
        if index > self._first_missing:
            self._early[index] = bytes(body)
            return True
        self._append(body)
        while (early := self._early.pop(self._first_missing, None)) is not None:
            self._append(early)
        return True

    def _append(self, body: memoryview | bytes) -> None:
        self._data += body
        self._first_missing += 1

    @property
    def received_bytes(self) -> int:
        return len(self._data) + sum(map(len, self._early.values()))

    @property
    def complete(self) -> bool:
        return self._first_missing == self._count

    def missing(self) -> list[tuple[int, int]]:
        """Ranges [start, stop) of chunks that have not come; at most 4096 of them."""
        ranges: list[tuple[int, int]] = []
        start = self._first_missing
        for index in [*sorted(self._early), self._count]:
            if start < index:
                ranges.append((start, index))
            start = index + 1
        return ranges[:4096]

    def finish(self) -> bytes:
        """The payload. Raises RemoteProtocolError when its SHA-256 is another; then every chunk is missing again."""
        data = bytes(self._data)
        if sha256_hex(data) != self.sha256:
            self._forget()
            raise RemoteProtocolError(f"a payload of {self.size_bytes} bytes whose SHA-256 does not match")
        return data


def indices(ranges: list[tuple[int, int]], count: int) -> list[int]:
    """The chunk indices below `count` in `ranges`, once each and in order; all of them where `ranges` is empty.

    However much the ranges overlap, the work is one step per index.
    """
    found: list[int] = []
    for start, stop in sorted(ranges) or [(0, count)]:
        first = max(start, found[-1] + 1) if found else start
        found += range(first, min(stop, count))
    return found
