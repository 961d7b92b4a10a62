"""The edges of the wire: what just fits, what is said when it does not, and what travels beside the payload."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest

from edgefl import protocol
from edgefl.errors import RemoteProtocolError
from edgefl.files import sha256_hex
from edgefl.method import Task
from edgefl.protocol import (
    MAX_DEVICES,
    MAX_HEADER_BYTES,
    Announcement,
    Assembly,
    BlobRef,
    NewerAnnouncement,
    Outgoing,
    Presence,
    TaskFailed,
    decode,
    devices_that_fit,
    encode,
    wire_bytes,
)

NONCE = "0" * 16


def framed(header: bytes, version: int = 1) -> bytes:
    """A frame without a body, with a right CRC."""
    crc = zlib.crc32(len(header).to_bytes(4, "little") + header)
    return protocol.PREAMBLE.pack(b"efl", version, crc, len(header)) + header


def header_bytes(frame: bytes) -> int:
    return int(protocol.PREAMBLE.unpack_from(frame)[3])


# --- frames -------------------------------------------------------------------------------------------------------


def test_a_header_of_exactly_the_limit_travels() -> None:
    least = header_bytes(encode(TaskFailed("pi-1", 0, NONCE, "")))
    frame = encode(TaskFailed("pi-1", 0, NONCE, "x" * (MAX_HEADER_BYTES - least)))
    assert header_bytes(frame) == MAX_HEADER_BYTES
    padded = b'{"type":"presence","device":"pi-1","session":1,"status":"up"}'.ljust(MAX_HEADER_BYTES)
    assert decode(framed(padded)) == (Presence("pi-1", 1, "up"), b"")


def test_another_version_says_who_is_to_be_upgraded() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(framed(b"{}", version=2))
    assert caught.value.message == "a frame of protocol version 2; this edgefl speaks 1"
    assert caught.value.hint == "upgrade the older side"


def test_a_message_has_ten_bytes_beside_its_topic_and_its_payload() -> None:
    """MQTT 5, QoS 1: type 1, length at most 4, the topic's length 2, packet id 2, properties 1."""
    assert wire_bytes("run", b"hello") == 10 + 3 + 5
    assert Outgoing("a/b", b"").wire_bytes == 10 + 3


# --- announcements of a newer aggregator ----------------------------------------------------------------------------


def announcement(**changes: Any) -> dict[str, Any]:
    blob = {"sha256": "a" * 64, "size_bytes": 0}
    about = {"epoch": 1, "round": 0, "attempt": 0, "nonce": NONCE, "duration_s": 1.0, "devices": [], "tensors": blob}
    return {"type": "announcement", "tasks": [{"program": "train"}]} | about | changes


NEWER = {"program": "train", "mood": "sunny"}


def read(**changes: Any) -> protocol.Message:
    return decode(framed(json.dumps(announcement(**changes)).encode()))[0]


@pytest.mark.parametrize("count", [1, protocol.MAX_TASKS])
def test_a_task_of_a_newer_aggregator_is_said_however_many_there_are(count: int) -> None:
    message = read(tasks=[NEWER] * count)
    assert isinstance(message, NewerAnnouncement)
    assert message.fault == "this device is older than the task: field 'mood'"
    with pytest.raises(RemoteProtocolError, match="a message that cannot be read"):
        read(tasks=[NEWER] * (protocol.MAX_TASKS + 1))


@pytest.mark.parametrize("fault", ["all is well", 5])
def test_what_is_wrong_with_a_task_is_never_taken_from_the_wire(fault: object) -> None:
    message = read(tasks=[NEWER], fault=fault)
    assert isinstance(message, NewerAnnouncement) and message.fault.endswith("field 'mood'")


# --- how many devices fit -----------------------------------------------------------------------------------------


def asking(*devices: str, tasks: int = 1, name: str = "train") -> Announcement:
    return Announcement(
        epoch=1,
        round=0,
        attempt=0,
        nonce=NONCE,
        duration_s=1.0,
        devices=list(devices),
        tasks=[Task(name)] * tasks,
        tensors=BlobRef("a" * 64, 0),
    )


def test_so_many_of_the_longest_names_fit_and_no_more() -> None:
    """Each has 36 letters, two quotes and a comma, which the last has not: 39 bytes."""
    bare = header_bytes(encode(asking()))
    assert header_bytes(encode(asking(*["d" * 36] * 3))) == bare + 3 * 39 - 1
    for room, count in ((bare + 3 * 39 + 38, 3), (bare + 3 * 39, 3), (bare + 3 * 39 - 1, 2), (bare + 38, 0), (bare, 0)):
        assert devices_that_fit(asking("a", "b", "c"), room) == count
    assert isinstance(devices_that_fit(asking(), bare + 100), int)


def test_no_room_is_no_device_and_much_room_no_more_than_a_header_has() -> None:
    assert devices_that_fit(asking(), 0) == 0
    assert devices_that_fit(asking(), 10**9) == MAX_DEVICES
    wordy = asking(tasks=100, name="p" * 3000)
    bare = header_bytes(encode(wordy))
    assert devices_that_fit(wordy, 10**9) == (MAX_HEADER_BYTES - bare) // 39 < MAX_DEVICES


# --- chunks -------------------------------------------------------------------------------------------------------


def test_a_chunk_counts_once() -> None:
    data = bytes(2500)
    building = Assembly(sha256_hex(data), len(data), 1000)
    assert building.add(1, data[1000:2000])  # before the first one
    assert not building.add(1, data[1000:2000])
    assert building.add(0, data[:1000])  # and with it the second
    assert not building.add(0, data[:1000]) and not building.add(1, data[1000:2000])
    assert building.add(2, data[2000:]) and building.complete


def test_there_is_no_empty_chunk_after_the_last() -> None:
    building = Assembly(sha256_hex(bytes(2000)), 2000, 1000)
    with pytest.raises(RemoteProtocolError) as caught:
        building.add(2, b"")
    assert caught.value.message == "chunk 2 of 0 bytes does not fit a payload of 2000 bytes in chunks of 1000"
