"""The wire: golden vectors both ways, and nothing but ProtocolError for any other bytes."""

from __future__ import annotations

import json
import math
import random
import runpy
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from chunking import chunks
from hypothesis import given
from hypothesis import strategies as st

from edgefl import protocol
from edgefl.aggregator.checks import check_reply, largest_reply_bytes, metrics_of, reply_metrics, reply_names
from edgefl.aggregator.classes import Examples
from edgefl.bundle import Bundle
from edgefl.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from edgefl.feeds import FEEDS, KEPT
from edgefl.files import sha256_hex
from edgefl.method import Ask, Task
from edgefl.protocol import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    Assembly,
    BlobChunk,
    BlobRef,
    NewerAnnouncement,
    Offer,
    TaskFailed,
    UploadChunk,
    decode,
    encode,
)

VECTORS = Path(__file__).parents[1] / "vectors"
GOLDEN: dict[str, Any] = json.loads((VECTORS / "protocol.json").read_text())
VALID = [pytest.param(v, id=v["name"]) for v in GOLDEN["valid"]]
NEWER = [pytest.param(v, id=v["name"]) for v in GOLDEN["newer"]]
INVALID = [pytest.param(v, id=v["name"]) for v in GOLDEN["invalid"]]
A = "a" * 64

# --- frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VALID)
def test_a_valid_vector_reads_and_writes_as_it_says(vector: dict[str, Any]) -> None:
    frame, body = bytes.fromhex(vector["frame"]), bytes.fromhex(vector["body"])
    message = msgspec.convert(vector["message"], protocol.Message)
    assert decode(frame) == (message, body)
    assert encode(message, body) == frame


@pytest.mark.parametrize("vector", INVALID)
def test_an_invalid_vector_is_refused_with_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        decode(bytes.fromhex(vector["frame"]))
    assert vector["error"] in refused.value.message


@pytest.mark.parametrize("vector", NEWER)
def test_a_task_that_cannot_be_read_leaves_an_announcement_that_can_be_answered(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    if vector["reason"] is None:
        with pytest.raises(RemoteProtocolError, match="a message that cannot be read"):
            decode(frame)
        return
    message, _ = decode(frame)
    assert isinstance(message, NewerAnnouncement)
    assert (message.fault, message.round, message.devices, message.tasks) == (vector["reason"], 4, ["pi-1"], [])


def test_every_feed_that_devices_know_can_be_announced() -> None:
    for feed in (*FEEDS, f"{KEPT}dreams"):
        assert msgspec.convert({"program": "train", "feed": feed}, Task).feed == feed


def test_an_announcement_says_nothing_of_its_own_faults() -> None:
    """ "fault" is a word of ours, not of the wire."""
    good = encode(protocol.Announcement(1, 0, 0, "0" * 16, 1.0, [], [Task("train")], BlobRef(A, 0)))
    header = json.loads(good[12:])
    for tasks, fault in (([{"program": "train"}], None), ([{"program": "train", "new": 1}], "field 'new'")):
        data = json.dumps(header | {"fault": "boo", "tasks": tasks}).encode()
        rest = len(data).to_bytes(4, "little") + data
        message, _ = decode(b"efl\x01" + zlib.crc32(rest).to_bytes(4, "little") + rest)
        assert isinstance(message, NewerAnnouncement) == (fault is not None)
        assert getattr(message, "fault", "").endswith(fault or "")


def test_the_vectors_are_what_their_script_makes() -> None:
    made = runpy.run_path(str(VECTORS / "make.py"))["vectors"]()
    assert json.loads(json.dumps(made)) == GOLDEN


def test_the_vectors_hold_every_message_and_this_version() -> None:
    types = {v["message"]["type"] for v in GOLDEN["valid"]}
    assert types == {kind.__struct_config__.tag for kind in protocol.Message.__args__}
    assert GOLDEN["version"] == protocol.VERSION


@pytest.mark.parametrize("vector", VALID)
def test_every_proper_prefix_is_refused(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    for stop in range(len(frame)):
        with pytest.raises(RemoteProtocolError):
            decode(frame[:stop])


@pytest.mark.parametrize("vector", VALID)
def test_flipped_bits_are_refused(vector: dict[str, Any]) -> None:
    """CRC-32 finds every burst of up to 32 bits, so each of these."""
    frame = bytes.fromhex(vector["frame"])
    rng = random.Random(vector["name"])
    for _ in range(300):
        damaged = bytearray(frame)
        damaged[rng.randrange(len(frame))] ^= rng.randrange(1, 256)
        with pytest.raises(RemoteProtocolError):
            decode(bytes(damaged))


@pytest.mark.parametrize("vector", VALID)
def test_any_change_under_a_right_crc_is_read_or_refused(vector: dict[str, Any]) -> None:
    """As a hostile peer would send it: nothing but ProtocolError escapes."""
    make_frame = runpy.run_path(str(VECTORS / "make.py"))["frame"]
    frame, body = bytes.fromhex(vector["frame"]), bytes.fromhex(vector["body"])
    header = frame[protocol.PREAMBLE.size : len(frame) - len(body)]
    rng = random.Random(vector["name"])
    refused = 0
    for _ in range(300):
        damaged = bytearray(header)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(header))] = rng.randrange(256)
        try:
            decode(make_frame(bytes(damaged), body))
        except ProtocolError:
            refused += 1
    assert refused > 100  # the others changed a value into another allowed one


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)


text = st.text('aw0/+"\\\n\u00e9\U0001f600', max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
field_names = sorted({name for kind in protocol.Message.__args__ for name in kind.__struct_fields__})
tags = sorted(kind.__struct_config__.tag for kind in protocol.Message.__args__)


@given(st.sampled_from(tags), st.dictionaries(st.sampled_from(field_names), json_values, max_size=12))
def test_arbitrary_fields_are_read_or_refused(tag: str, fields: dict[str, Any]) -> None:
    header = json.dumps({"type": tag} | fields).encode()
    crc = _crc(header)
    try:
        message, _ = decode(protocol.PREAMBLE.pack(b"efl", 1, crc, len(header)) + header)
    except RemoteProtocolError:
        return
    assert message.__struct_config__.tag == tag


def test_a_field_from_a_newer_peer_is_ignored() -> None:
    header = b'{"type":"receipt","upload":"%s","round":1,"status":"late","mood":"sunny"}' % A.encode()
    message, _ = decode(protocol.PREAMBLE.pack(b"efl", 1, _crc(header), len(header)) + header)
    assert message == protocol.Receipt(A, 1, "late")


def _crc(header: bytes) -> int:
    return zlib.crc32(len(header).to_bytes(4, "little") + header)


# --- limits -------------------------------------------------------------------------------------------------------


def test_a_frame_of_exactly_the_limit_travels_and_one_byte_more_does_not() -> None:
    chunk = UploadChunk(A, 0)
    room = MAX_FRAME_BYTES - len(encode(chunk))
    frame = encode(chunk, bytes(room))
    assert len(frame) == MAX_FRAME_BYTES == 1024 * 1024
    assert len(decode(frame)[1]) == room
    with pytest.raises(LocalProtocolError, match="UploadChunk of 1048577 bytes"):
        encode(chunk, bytes(room + 1))
    with pytest.raises(RemoteProtocolError, match="a frame of 1048577 bytes; at most 1048576"):
        decode(frame + b"\0")


def test_a_header_over_its_limit_is_refused_on_both_sides() -> None:
    long = MAX_HEADER_BYTES + 1
    with pytest.raises(LocalProtocolError, match="header"):
        encode(TaskFailed("pi-1", 0, "0" * 16, "x" * long))
    header = b'{"type":"presence"}'.ljust(long)
    with pytest.raises(RemoteProtocolError, match=f"a header of {long} bytes"):
        decode(protocol.PREAMBLE.pack(b"efl", 1, _crc(header), long) + header)


def test_a_full_round_of_ten_thousand_devices_fits() -> None:
    message = protocol.Announcement(
        epoch=protocol.MAX_EPOCH,
        round=2**53,
        attempt=2**53,
        nonce="0" * 16,
        duration_s=600.0,
        devices=[f"{i:036}" for i in range(10_000)],
        tasks=[Task("train")] * 100,
        tensors=protocol.BlobRef(A, 1),
    )
    assert decode(encode(message, bytes(protocol.INLINE_BYTES)))[0] == message


def test_a_default_chunk_is_a_64_kib_packet() -> None:
    frame = encode(BlobChunk(A, 2**31, protocol.CHUNK_BYTES, 2**21), bytes(protocol.CHUNK_BYTES))
    assert len(frame) + len(protocol.blob_topic("r" * 36, A)) < 64 * 1024


# --- topics -------------------------------------------------------------------------------------------------------


def test_topics_as_other_languages_must_spell_them() -> None:
    assert protocol.round_topic("digits") == "edgefl/1/digits/round"
    assert protocol.aggregator_topic("+") == "edgefl/1/+/aggregator"
    assert protocol.device_topic("digits", "pi-1") == "edgefl/1/digits/device/pi-1"
    assert protocol.up_topic("digits", "pi-1") == "edgefl/1/digits/up/0/pi-1"
    assert protocol.up_topic("digits", "+") == "edgefl/1/digits/up/+/+"
    assert protocol.down_topic("digits", "pi-1") == "edgefl/1/digits/down/pi-1"
    assert protocol.blob_topic("digits", "0123456789abcdef" * 4) == "edgefl/1/digits/blob/0123456789abcdef"


def test_run_and_device_are_read_back_from_a_topic() -> None:
    assert protocol.run_of(protocol.aggregator_topic("digits")) == "digits"
    assert protocol.device_of(protocol.up_topic("digits", "pi-1")) == "pi-1"
    assert protocol.device_of(protocol.device_topic("digits", "pi-1")) == "pi-1"


@pytest.mark.parametrize("topic", ["", "edgefl", "edgefl/1/x", "edgefl/2/digits/up/0/pi", "other/1/digits/up/0/pi"])
def test_a_foreign_topic_is_refused(topic: str) -> None:
    for question in (protocol.run_of, protocol.device_of):
        with pytest.raises(RemoteProtocolError, match="foreign topic"):
            question(topic)


# --- a reply at the door ------------------------------------------------------------------------------------------

EXPECTED = {"w": ("float32", (2,)), "n": ("int64", ()), "rows": ("float16", ("batch", 3))}


def good_reply() -> dict[str, Any]:
    return {"w": np.array([1, 2], "f4"), "n": np.array(5), "rows": np.ones((4, 3), "f2")}


def test_a_good_reply_passes_and_float16_is_widened() -> None:
    checked = check_reply(good_reply(), EXPECTED, "pi-1")
    assert {name: value.dtype.str for name, value in checked.items()} == {"w": "<f4", "n": "<i8", "rows": "<f4"}
    np.testing.assert_array_equal(checked["rows"], np.ones((4, 3)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"w": None}, "device 'pi-1' did not send 'w'"),
        ({"moment": np.zeros(2, "f4")}, "device 'pi-1' sent 'moment', which was not asked for"),
        ({"w": np.array([1, 2], "f8")}, "sent 'w' as float64 [2]; expected float32 [2]"),
        ({"w": np.array([1, 2], "f2")}, "sent 'w' as float16 [2]; expected float32 [2]"),
        ({"w": np.array([[1, 2]], "f4")}, "sent 'w' as float32 [1, 2]; expected float32 [2]"),
        ({"w": np.array([1, 2, 3], "f4")}, "sent 'w' as float32 [3]; expected float32 [2]"),
        ({"rows": np.ones((4, 2), "f2")}, "sent 'rows' as float16 [4, 2]; expected float16 ['batch', 3]"),
        ({"w": np.array([1, np.nan], "f4")}, "sent 'w' with a value that is not finite"),
        ({"w": np.array([-np.inf, 1], "f4")}, "sent 'w' with a value that is not finite"),
        ({"rows": np.full((1, 3), np.inf, "f2")}, "sent 'rows' with a value that is not finite"),
    ],
)
def test_a_bad_reply_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    tensors = {name: value for name, value in (good_reply() | change).items() if value is not None}
    with pytest.raises(RemoteProtocolError) as refused:
        check_reply(tensors, EXPECTED, "pi-1")
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("train.loss", -1e30, True),
        ("train.loss", math.nan, False),
        ("train.loss", -math.inf, False),
        ("train.loss", 1.1e30, False),
        ("train.examples", 60, True),
        ("train.examples", 61, False),  # more than the device states
        ("evaluate.examples", 10, True),
        ("evaluate.examples", 11, False),
        ("train.examples", -1, False),
        ("train.gradient", 1, False),  # no metric
        ("control.loss", 1, False),  # not asked for
    ],
)
def test_a_metric_that_cannot_be_is_left_out(regression: Bundle, name: str, value: float, kept: bool) -> None:
    ask = Ask((Task("evaluate", feed="test"), Task("train")), {})
    stated = Examples(60, 10)
    sent = {name: value, "evaluate.loss": 1.0}
    assert metrics_of(ask, regression.manifest, sent, stated) == (sent if kept else {"evaluate.loss": 1.0})


def test_examples_that_everybody_has_are_no_more_than_announced(regression: Bundle) -> None:
    ask = Ask((Task("evaluate", feed="announced"),), {"x": np.zeros((8, 2), np.float32)})
    for count, kept in ((8, {"evaluate.examples": 8.0}), (9, {})):
        assert metrics_of(ask, regression.manifest, {"evaluate.examples": float(count)}, Examples(0, 0)) == kept


def test_what_a_reply_must_hold_follows_from_tasks_and_manifest(regression: Bundle) -> None:
    def names(*tasks: Task) -> dict[str, Any]:
        return reply_names(Ask(tasks, {}), regression.manifest)

    assert names(Task("train")) == {}
    assert names(Task("train", send=("w",))) == {"w": ("float32", (2,))}
    assert names(Task("train", send=("w",), encoding="float16")) == {"w": ("float16", (2,))}
    # A glob reaches neither local state (moment, count) nor metrics (loss, total): exactly what a device sends.
    assert names(Task("train", send=("*",))) == {"w": ("float32", (2,)), "gradient": ("float32", (2,))}
    assert names(Task("train", send=("loss",))) == {"loss": ("float32", ())}
    both = names(Task("train", send=("w",)), Task("evaluate", send=("predicted",)))
    assert both == {"w": ("float32", (2,)), "predicted": ("float32", ("batch",))}


@given(st.dictionaries(text, st.lists(st.integers(0, 5), max_size=4), max_size=5))
def test_no_true_reply_is_larger_than_the_bound(shapes: dict[str, list[int]]) -> None:
    expected: Any = {name: ("float32", tuple(shape)) for name, shape in shapes.items()}
    tensors = {name: np.zeros(shape, "f4") for name, (_, shape) in expected.items()}
    assert len(protocol.tensors_to_bytes(tensors)) <= largest_reply_bytes(expected)


def test_a_shape_known_only_at_run_time_has_no_tighter_bound_than_the_protocols() -> None:
    assert largest_reply_bytes(EXPECTED) == protocol.MAX_BLOB_BYTES  # type: ignore[arg-type]


def test_tensors_as_bytes_and_back() -> None:
    tensors = {"b": np.array(3), "a": np.arange(6, dtype="f4").reshape(2, 3).T}
    data = protocol.tensors_to_bytes(tensors)
    assert data == protocol.tensors_to_bytes(dict(reversed(tensors.items())))
    back = protocol.bytes_to_tensors(data, "it")
    assert set(back) == {"a", "b"}
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)


@given(st.binary(max_size=100))
def test_tensors_that_are_no_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^the upload"):
        protocol.bytes_to_tensors(data, "the upload")


def test_damaged_tensors_are_read_or_refused() -> None:
    data = protocol.tensors_to_bytes({"w": np.arange(4, dtype="f4"), "n": np.array(1)})
    rng = random.Random(4)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data) - 24)] = rng.randrange(256)
        try:
            protocol.bytes_to_tensors(bytes(damaged), "it")
        except RemoteProtocolError:
            refused += 1
    assert refused > 500


# --- chunks -------------------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 10  # 2560 bytes: chunks of 1024, 1024, 512


def assembly(data: bytes = DATA, chunk_bytes: int = 1024) -> Assembly:
    return Assembly(sha256_hex(data), len(data), chunk_bytes)


@given(st.binary(max_size=5000), st.integers(1, 1500), st.randoms(use_true_random=False))
def test_chunks_in_any_order_any_number_of_times_make_the_payload(data: bytes, size: int, rng: random.Random) -> None:
    parts = chunks(data, size, [])
    assert b"".join(bytes(body) for _, body in parts) == data
    arrivals = parts + rng.choices(parts, k=len(parts))
    rng.shuffle(arrivals)
    building = assembly(data, size)
    for index, body in arrivals:
        building.add(index, body)
    assert building.complete
    assert building.missing() == []
    assert building.finish() == data


def test_what_is_missing_is_said_in_ranges_and_sent_again() -> None:
    building = assembly(chunk_bytes=256)  # ten chunks
    for index in (0, 3, 4, 9):
        building.add(index, DATA[index * 256 : (index + 1) * 256])
    assert building.missing() == [(1, 3), (5, 9)]
    again = chunks(DATA, 256, building.missing())
    assert [index for index, _ in again] == [1, 2, 5, 6, 7, 8]
    for index, body in again:
        building.add(index, body)
    assert building.finish() == DATA


def test_a_chunk_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    building = assembly()
    for index, length in ((0, 1023), (0, 1025), (2, 1024), (3, 0), (3, 512), (2**53, 1024), (0, 0)):
        with pytest.raises(RemoteProtocolError, match=f"chunk {index} of {length} bytes does not fit"):
            building.add(index, bytes(length))
    assert building.missing() == [(0, 3)]


def test_a_wrong_hash_is_found_and_then_repaired() -> None:
    building = assembly()
    parts = chunks(DATA, 1024, [])
    for index, body in parts:
        building.add(index, b"?" * len(body) if index == 1 else body)
    assert building.complete
    with pytest.raises(RemoteProtocolError, match="SHA-256 does not match"):
        building.finish()
    assert building.missing() == [(0, 3)]
    for index, body in parts:
        building.add(index, body)
    assert building.finish() == DATA


def test_an_empty_payload_is_one_empty_chunk() -> None:
    assert protocol.chunk_count(0, 1024) == 1
    assert chunks(b"", 1024, []) == [(0, b"")]
    building = assembly(b"")
    building.add(0, b"")
    assert building.finish() == b""


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1023, 1), (1024, 1), (1025, 2), (2048, 2), (2049, 3)])
def test_how_many_chunks(size: int, count: int) -> None:
    assert protocol.chunk_count(size, 1024) == count


def test_ranges_past_the_end_are_cut() -> None:
    wanted = chunks(DATA, 1024, [(2, 2**53), (7, 9), (1, 1)])
    assert [(index, len(body)) for index, body in wanted] == [(2, 512)]


def test_no_more_ranges_than_a_permit_may_hold() -> None:
    building = Assembly(A, 10_000, 1)
    for index in range(0, 10_000, 2):
        building.add(index, b"x")
    ranges = building.missing()  # 5000 single chunks
    assert len(ranges) == 4096
    encode(protocol.Permit(A, ranges))


def test_a_claimed_size_costs_no_memory_before_its_first_chunk() -> None:
    tracemalloc.start()
    try:
        waiting = [Assembly(A, 2**30, protocol.MAX_FRAME_BYTES) for _ in range(10)]
        assert tracemalloc.get_traced_memory()[1] < 2**21
        assert waiting[0].missing() == [(0, 1024)]
    finally:
        tracemalloc.stop()


def test_an_offer_is_read_back_whole() -> None:
    offer = Offer("pi-1", 3, "0" * 16, A, 5, 1024, 7, {"train.loss": 0.1})
    message, body = decode(encode(offer, memoryview(b"abcde")))
    assert message == offer
    assert bytes(body) == b"abcde"


def test_ranges_that_overlap_cost_no_more_than_the_chunks_there_are() -> None:
    assert protocol.indices([], 3) == [0, 1, 2]
    assert protocol.indices([(4, 9), (0, 2), (1, 5)], 6) == [0, 1, 2, 3, 4, 5]
    assert protocol.indices([(0, 2**50)] * 4096, 5) == [0, 1, 2, 3, 4]
    assert protocol.indices([(7, 9), (3, 2)], 5) == []


def test_rows_that_are_no_probabilities_are_refused() -> None:
    expected = {"p": ("float32", ("batch", 2))}
    good = {"p": np.array([[0.25, 0.75], [1, 0]], np.float32)}
    assert check_reply(good, expected, "pi-1", ("p",))["p"].tolist() == good["p"].tolist()
    for rows in ([[-1, 0]], [[0.5, 0.4]], [[60000, 0]], [[-1, 2]]):
        bad = {"p": np.array(rows, np.float32)}
        assert check_reply(bad, expected, "pi-1")
        with pytest.raises(RemoteProtocolError, match="'pi-1' sent 'p', whose rows are no probabilities"):
            check_reply(bad, expected, "pi-1", ("p",))


def test_examples_that_the_aggregator_counts_fix_the_shape_of_a_reply(regression: Bundle) -> None:
    def rows(task: Task) -> object:
        return reply_names(Ask((task,), {"x": np.zeros((3, 2), np.float32)}), regression.manifest)["predicted"][1][0]

    assert rows(Task("evaluate", feed="announced", send=("predicted",))) == 3
    assert rows(Task("evaluate", feed="noise", batch_size=5, seed=0, send=("predicted",))) == 5
    assert rows(Task("evaluate", send=("predicted",))) == "batch"


def test_metrics_are_those_of_the_ask(regression: Bundle) -> None:
    found = reply_metrics(Ask((Task("evaluate"),), {}), regression.manifest)
    assert found == {"evaluate.loss", "evaluate.examples"}
