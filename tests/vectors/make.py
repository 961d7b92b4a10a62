"""Write protocol.json: frames of the wire protocol for every language to decode, and to encode again.

    python tests/vectors/make.py

    valid    frame (hex) <-> message (JSON) and body (hex). A field that is missing in the message has its default.
             JSON may order and space a header differently; then the bytes differ, and only the meaning must agree.
    invalid  frame (hex) that must be refused; `error` is part of what edgefl says about it
    newer    frame (hex) of an announcement whose tasks a device cannot read, and `reason`, what it then answers in its
             TaskFailed; where `reason` is null the frame must be refused as a whole

A change of these bytes is a change of the protocol: from the first release on, raise VERSION in edgefl/protocol.py.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgefl import protocol
from edgefl.method import Keep, Task
from edgefl.protocol import (
    AggregatorStatus,
    Announcement,
    Assignment,
    BlobChunk,
    BlobRef,
    BlobRequest,
    Message,
    Offer,
    Permit,
    Presence,
    Receipt,
    TaskFailed,
    UploadChunk,
)

PATH = Path(__file__).parent / "protocol.json"

A, B = "a" * 64, "0123456789abcdef" * 4
NONCE = "00ff00ff00ff00ff"
BUNDLE = BlobRef(B, 4321)
W = protocol.tensors_to_bytes({"w": np.array([1, -2], np.float32)})

VALID: dict[str, tuple[Message, bytes]] = {
    "presence": (Presence("pi-1", 3, "up", "c0ffee", 4, 8192, "onnxruntime 1.31.1", "portable", 600, 100), b""),
    "presence, least": (Presence("a", 0, "down"), b""),
    "presence, longest name": (Presence("x" * 36, 2**53, "sleeping"), b""),
    "aggregator up": (AggregatorStatus(1, "up"), b""),
    "aggregator finished": (AggregatorStatus(7, "finished"), b""),
    "assignment": (Assignment(2, BUNDLE, {"max_steps": 4.0}), b""),
    "assignment, no bundle": (Assignment(2, None, reason="no [[bundle]] of the run file is for memory_mb 64"), b""),
    "announcement, tensors inside": (
        Announcement(
            epoch=2,
            round=9,
            attempt=1,
            nonce=NONCE,
            duration_s=600.0,
            devices=["pi-1", "pi-2"],
            tasks=[
                Task("evaluate", feed="test", load=("*",), batch_size=256),
                Task(
                    program="train",
                    load=("*",),
                    reset=("momentum.*",),
                    epochs=5,
                    steps=3,
                    batch_size=10,
                    seed=42,
                    settings={"learning_rate": 0.05},
                    send=("w",),
                    send_as="delta",
                    encoding="float16",
                ),
                Task("distill", feed="kept:dreams", keep=Keep("dreams", 256, add=True)),
                Task("dream", feed="noise", seed=3, keep=Keep("first", 64)),
            ],
            tensors=BlobRef(A, len(W)),
            before=NONCE,
            inline_bytes=2**19,
        ),
        W,
    ),
    "announcement, tensors elsewhere": (
        Announcement(1, 0, 0, NONCE, 0.5, [], [], BlobRef(A, 2**31)),
        b"",
    ),
    "blob request, everything": (BlobRequest(A, []), b""),
    "blob request, ranges": (BlobRequest(A, [(0, 1), (5, 9)]), b""),
    "blob chunk": (BlobChunk(A, 2051, 1024, 2), b"\x00\x01\xff"),
    "offer, tensors inside": (
        Offer("pi-1", 9, NONCE, A, len(W), 65024, 600, {"train.loss": 0.25, "train.examples": 600.0}),
        W,
    ),
    "offer, steps": (Offer("pi-1", 9, NONCE, A, len(W), 65024, 600, {}, 300), W),
    "offer, tensors later": (Offer("pi-1", 0, NONCE, A, 2**31, 4096, 0, {}), b""),
    "upload chunk": (UploadChunk(A, 2**53), bytes(range(256))),
    "permit": (Permit(A, [(0, 160)]), b""),
    "receipt, accepted": (Receipt(A, 9, "accepted"), b""),
    "receipt, refused": (Receipt(A, 9, "refused", "device 'pi-1' sent 'w' as float64 [2]"), b""),
    "task failed": (TaskFailed("pi-1", 9, NONCE, "kein Platz auf dem Ger\u00e4t \u2014 0 B"), b""),
}


def frame(header: bytes, body: bytes = b"", *, magic: bytes = b"efl", version: int = 1, length: int = -1) -> bytes:
    """A frame with a right CRC, whatever is in it."""
    rest = struct.pack("<I", len(header) if length < 0 else length) + header + body
    return magic + bytes([version]) + struct.pack("<I", zlib.crc32(rest)) + rest


def presence(**changed: Any) -> bytes:
    """A presence with some fields changed; None leaves one out."""
    fields = {"type": "presence", "device": "pi-1", "session": 1, "status": "up"} | changed
    return frame(json.dumps({k: v for k, v in fields.items() if v is not None}).encode())


GOOD = protocol.encode(*VALID["presence"])


def offer(
    size_bytes: int = 10, chunk_bytes: int = 4096, examples: int = 1, metrics: str = "{}", steps: int = 0
) -> bytes:
    """An offer; `metrics` is written as it is, so that it can hold what JSON has no word for."""
    about = f'"type":"offer","device":"pi-1","round":0,"nonce":"{NONCE}","upload":"{A}"'
    sizes = f'"size_bytes":{size_bytes},"chunk_bytes":{chunk_bytes},"examples":{examples}'
    more = f',"steps":{steps}' if steps else ""
    return frame(f'{{{about},{sizes},"metrics":{metrics}{more}}}'.encode())


INVALID: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "a frame of 0 bytes; at least 12"),
    "eleven bytes": (GOOD[:11], "a frame of 11 bytes; at least 12"),
    "foreign": (b"GET / HTTP/1.1\r\n\r\n", "not an edgefl frame: it begins with b'GET'"),
    "newer version": (frame(b"{}", version=2), "a frame of protocol version 2; this edgefl speaks 1"),
    "older version": (frame(b"{}", version=0), "a frame of protocol version 0; this edgefl speaks 1"),
    "cut": (GOOD[:-1], "its CRC-32 does not match"),
    "longer": (GOOD + b"\x00", "its CRC-32 does not match"),
    "one bit changed": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "its CRC-32 does not match"),
    "header past the end": (frame(b"{}", length=3), "a header of 3 bytes in a frame of 14"),
    "largest header length": (frame(b"{}", length=2**32 - 1), "a header of 4294967295 bytes"),
    "no header": (frame(b""), "a message that cannot be read"),
    "no JSON": (frame(b"\xff\xfe"), "a message that cannot be read"),
    "text that is not UTF-8": (
        frame(b'{"type":"presence","device":"pi-1","session":1,"status":"up","runtime":"\xff"}'),
        "a message that cannot be read",
    ),
    "no object": (frame(b"[]"), "Expected `object`"),
    "no type": (frame(b"{}"), "missing required field `type`"),
    "unknown type": (frame(b'{"type":"shutdown"}'), "Invalid value 'shutdown'"),
    "very deep": (frame(b'{"type":"presence","more":' + b"[" * 4000 + b"]" * 4000 + b"}"), "a message that cannot"),
    "missing field": (presence(session=None), "missing required field `session`"),
    "negative count": (presence(session=-1), "`int` >= 0 - at `$.session`"),
    "count past 2^53": (presence(session=2**53 + 1), "at `$.session`"),
    "fraction for a count": (presence(session=1.5), "at `$.session`"),
    "text for a number": (presence(session="1"), "Expected `int`, got `str` - at `$.session`"),
    "unknown status": (presence(status="dead"), "Invalid enum value 'dead' - at `$.status`"),
    "empty name": (presence(device=""), "at `$.device`"),
    "name with a slash": (presence(device="a/b"), "at `$.device`"),
    "name with a wildcard": (presence(device="+"), "at `$.device`"),
    "name in capitals": (presence(device="Pi"), "at `$.device`"),
    "name of 37": (presence(device="x" * 37), "at `$.device`"),
    "name with a newline after it": (presence(device="pi-1\n"), "at `$.device`"),
    "name with a letter of another alphabet": (presence(device="p\u0456"), "at `$.device`"),
    "short hash": (frame(b'{"type":"blob_request","sha256":"ab","missing":[]}'), "at `$.sha256`"),
    "hash in capitals": (frame(b'{"type":"blob_request","sha256":"%s","missing":[]}' % (b"A" * 64)), "at `$.sha256`"),
    "half a range": (frame(b'{"type":"permit","upload":"%s","missing":[[1]]}' % A.encode()), "at `$.missing[0]`"),
    "4097 ranges": (
        frame(b'{"type":"permit","upload":"%s","missing":[%s]}' % (A.encode(), b",".join([b"[0,1]"] * 4097))),
        "at `$.missing`",
    ),
    "claims more than 2 GiB": (offer(size_bytes=2**31 + 1), "at `$.size_bytes`"),
    "chunks of one byte": (offer(chunk_bytes=1), "at `$.chunk_bytes`"),
    "negative examples": (offer(examples=-1), "at `$.examples`"),
    "negative steps": (offer(steps=-1), "at `$.steps`"),
    "steps past 2^53": (offer(steps=2**53 + 1), "at `$.steps`"),
    "NaN": (offer(metrics='{"loss":NaN}'), "cannot be read"),
    "infinity": (offer(metrics='{"loss":1e999}'), "out of range"),
    "null, which some languages write for NaN": (offer(metrics='{"loss":null}'), "Expected `float`, got `null`"),
}


def announced(*tasks: object, **changed: object) -> bytes:
    """An announcement with these tasks, as JSON would have them."""
    message = Announcement(1, 4, 0, NONCE, 60.0, ["pi-1"], [], BlobRef(A, 8))
    fields = msgspec.json.decode(msgspec.json.encode(message)) | {"tasks": list(tasks)} | changed
    return frame(json.dumps(fields).encode())


TRAIN = {"program": "train", "send": ["*"]}
NEWER: dict[str, tuple[bytes, str | None]] = {
    "a field": (announced(TRAIN, TRAIN | {"patience": 3}), "this device is older than the task: field 'patience'"),
    "a field of keep": (
        announced(TRAIN | {"keep": {"buffer": "b", "capacity": 4, "weigh": True}}),
        "this device is older than the task: field 'keep.weigh'",
    ),
    "an encoding": (
        announced(TRAIN | {"encoding": "int8"}),
        "this device is older than the task: field 'encoding' is 'int8'",
    ),
    "a way to send": (
        announced(TRAIN | {"send_as": "sign"}),
        "this device is older than the task: field 'send_as' is 'sign'",
    ),
    "a feed": (
        announced(TRAIN | {"feed": "stream"}),
        "this device is older than the task: field 'feed' is 'stream'",
    ),
    "in the first of two tasks": (
        announced(TRAIN | {"feed": "stream"}, {"a": 1}),
        "this device is older than the task: field 'feed' is 'stream'",
    ),
    "a long name that does things to a terminal": (
        announced(TRAIN | {"\x1b[2J" + "x" * 5000: 0}),
        "this device is older than the task: field '\\x1b[2J" + "x" * 92 + "\u2026'",
    ),
    "a seed of another kind": (
        announced(TRAIN, TRAIN | {"seed": "abc"}),
        "this device cannot read task 2: Expected `int | null`, got `str` - at `$.seed`",
    ),
    "no task": (announced(7), "this device cannot read task 1: Expected `object`, got `int`"),
    "a field, and another round": (announced(TRAIN | {"patience": 3}, round=-1), None),
    "101 tasks": (announced(*[TRAIN] * 100, TRAIN | {"patience": 3}), None),
    "no list": (announced(tasks={"program": "train"}), None),
}


def vectors() -> dict[str, Any]:
    """What protocol.json holds."""
    return {
        "version": protocol.VERSION,
        "valid": [
            {
                "name": name,
                "message": msgspec.json.decode(msgspec.json.encode(message)),
                "body": body.hex(),
                "frame": protocol.encode(message, body).hex(),
            }
            for name, (message, body) in VALID.items()
        ],
        "invalid": [{"name": name, "frame": data.hex(), "error": error} for name, (data, error) in INVALID.items()],
        "newer": [{"name": name, "frame": data.hex(), "reason": reason} for name, (data, reason) in NEWER.items()],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n")
