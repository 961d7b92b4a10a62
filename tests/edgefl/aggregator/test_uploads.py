"""Uploads, by hand: who may send when, and what makes room. A budget of 64 MiB; each upload is one of 30 MiB."""

from __future__ import annotations

import hashlib

import pytest

from edgefl.aggregator.uploads import UPLOAD_BUDGET_BYTES, UPLOAD_STALL_S, Uploads
from edgefl.protocol import Offer, Permit, UploadChunk

MIB = 2**20
A = "a" * 64
CHUNK = bytes(1024)


def offer(device: str, size_bytes: int = 30 * MIB, upload: str = A) -> Offer:
    return Offer(device, 0, "0" * 16, upload, size_bytes, 1024, 1, {})


def waiting(*devices: str, size_bytes: int = 30 * MIB) -> Uploads:
    uploads = Uploads()
    for device in devices:
        uploads.offered(offer(device, size_bytes), 0.0)
    return uploads


def permitted(uploads: Uploads, now_s: float = 0.0) -> list[str]:
    return [device for device, _ in uploads.permits(now_s)]


def test_no_more_is_on_its_way_than_the_budget() -> None:
    assert UPLOAD_BUDGET_BYTES == 64 * MIB
    uploads = waiting("a", "b", "c", "d")
    assert permitted(uploads) == ["a", "b"]  # 60 MiB
    assert permitted(uploads) == []
    uploads.drop("a")
    assert permitted(uploads) == ["c"]


def test_the_budget_is_spent_to_its_last_byte_and_not_over_it() -> None:
    assert permitted(waiting("a", "b", size_bytes=32 * MIB)) == ["a", "b"]
    assert permitted(waiting("a", "b", size_bytes=32 * MIB + 1)) == ["a"]


def test_one_may_always_begin_however_large() -> None:
    uploads = waiting("a", "b", size_bytes=100 * MIB)
    assert permitted(uploads) == ["a"]
    uploads.drop("a")
    assert permitted(uploads) == ["b"]


def test_nobody_is_overtaken_by_a_smaller_one() -> None:
    uploads = waiting("a", "b")
    uploads.offered(offer("c", 30 * MIB), 0.0)
    uploads.offered(offer("d", 1024), 0.0)
    assert permitted(uploads) == ["a", "b"]  # c waits, and d behind it


def test_an_upload_that_stalls_makes_room_and_a_chunk_keeps_it() -> None:
    uploads = waiting("a", "b", "c")
    permitted(uploads)
    assert uploads.take("b", UploadChunk(A, 0), memoryview(CHUNK), 20.0) is None
    uploads.drop_stalled(UPLOAD_STALL_S)
    assert "a" in uploads  # to the second
    uploads.drop_stalled(UPLOAD_STALL_S + 0.1)
    assert "a" not in uploads and "b" in uploads
    assert permitted(uploads, 31.0) == ["c"]
    uploads.drop_stalled(51.0)
    assert "b" not in uploads and "c" in uploads


def test_who_waits_does_not_stall() -> None:
    uploads = waiting("a", "b", "c")
    permitted(uploads)
    uploads.drop_stalled(1000.0)
    assert "c" in uploads


def test_who_is_slow_goes_behind_who_waits_and_keeps_what_has_come() -> None:
    uploads = waiting("a", "b", "c", size_bytes=40 * MIB)
    assert permitted(uploads) == ["a"]
    uploads.take("a", UploadChunk(A, 0), memoryview(CHUNK), 1.0)
    uploads.let_others_pass()
    assert not uploads.awaits("a", UploadChunk(A, 1))
    assert permitted(uploads) == ["b"]
    uploads.drop("b"), uploads.drop("c")
    ((device, permit),) = uploads.permits(2.0)
    assert (device, permit) == ("a", Permit(A, [(1, 40 * 1024)]))  # all but the first chunk


@pytest.mark.parametrize(
    ("device", "upload"), [("b", A), ("c", A), ("a", "b" * 64)], ids=["not permitted", "unknown", "another upload"]
)
def test_a_chunk_that_nobody_awaits_is_passed_over(device: str, upload: str) -> None:
    uploads = waiting("a", "b", size_bytes=60 * MIB)
    permitted(uploads)
    assert uploads.take(device, UploadChunk(upload, 0), memoryview(CHUNK), 1.0) is None
    assert uploads.permits(1.0) == []
    uploads.drop("a")
    assert uploads.permits(1.0) == [("b", Permit(A, [(0, 60 * 1024)]))]  # nothing of it has come


def test_the_last_chunk_completes_an_upload() -> None:
    data = bytes(range(256)) * 8  # two chunks
    sha256 = hashlib.sha256(data).hexdigest()
    uploads = Uploads()
    uploads.offered(offer("a", len(data), sha256), 0.0)
    permitted(uploads)
    for index, complete in ((1, False), (1, False), (0, True)):
        body = memoryview(data)[1024 * index : 1024 * (index + 1)]
        upload = uploads.take("a", UploadChunk(sha256, index), body, 1.0)
        assert (upload is not None) == complete
    assert upload is not None and upload.assembly.finish() == data


def test_another_offer_begins_anew() -> None:
    uploads = waiting("a")
    permitted(uploads)
    assert uploads.offered(offer("a"), 1.0).permitted  # the same again
    assert not uploads.offered(offer("a", upload="b" * 64), 1.0).permitted
