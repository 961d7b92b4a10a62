"""A frame makes no gigabytes: memory grows with the bytes that came, and nobody is answered without an end."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import RUN, World
from toy import write_regression

from edgefl import protocol
from edgefl.aggregator.limits import Limits
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.manifest import MAX_MANIFEST_BYTES
from edgefl.method import Ask, Task
from edgefl.methods.fedavg import FedAvg
from edgefl.methods.scaffold import Scaffold
from edgefl.protocol import (
    Announcement,
    Assembly,
    Assignment,
    BlobChunk,
    BlobRef,
    BlobRequest,
    ManifestRef,
    Offer,
    Outgoing,
    Permit,
    Presence,
    UploadChunk,
)
from edgefl.runs.prepare import check_names, round_of
from edgefl.runs.sections import RunFile
from edgefl_device.data.dataset import Dataset
from edgefl_device.wire.session import Session

A = "a" * 64
UP = protocol.up_topic(RUN, "pi-1")
WIDE = 400_000  # weights of 1.6 MB: 25 chunks


@contextmanager
def at_most(limit_bytes: int) -> Iterator[None]:
    """The block's memory, at its peak, is no more than that."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= limit_bytes, f"{peak / 2**20:.1f} MiB"


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_regression(tmp_path_factory.mktemp("bundles") / "very-wide.bundle", WIDE)


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Any]:
    made: list[World] = []

    def make(bundle: Bundle, devices: int = 2, **settings: Any) -> World:
        width = bundle.manifest.data.feature.shape[0]
        data = Dataset(np.zeros((2, width), np.float32), np.ones(2, np.float32))
        method = FedAvg(bundle.shared_weights(), rounds=2, batch_size=0, learning_rate=0.25)
        names = {f"pi-{i + 1}": data for i in range(devices)}
        chosen = {"min_devices": devices, "quorum": 1.0, "deadline_s": 60.0} | settings
        made.append(World(tmp_path / str(len(made)), bundle, method, names, settings=RoundSettings(**chosen)))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


# --- sizes that are only claimed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1024, protocol.MAX_FRAME_BYTES])
@pytest.mark.parametrize("index", [0, 5])
def test_a_claimed_size_costs_nothing(chunk_bytes: int, index: int) -> None:
    body = bytes(chunk_bytes)
    with at_most(chunk_bytes + 2**17):
        assembly = Assembly(A, protocol.MAX_BLOB_BYTES, chunk_bytes)
        assembly.add(index, body)
        assert not assembly.complete
        assembly.missing()


def test_a_manifest_of_two_gigabytes_is_no_manifest(tmp_path: Path) -> None:
    session = Session(RUN, "pi-1", tmp_path)
    down = protocol.down_topic(RUN, "pi-1")
    frame = protocol.encode(Assignment(1, ManifestRef(A, MAX_MANIFEST_BYTES + 1)))
    said: list[str] = []
    session._log = said.append
    assert session.receive(down, frame, 0.0) == []
    assert len(said) == 1 and f"Expected `int` <= {MAX_MANIFEST_BYTES}" in said[0]


def test_one_chunk_of_a_large_manifest_costs_a_device_one_chunk(tmp_path: Path) -> None:
    session = Session(RUN, "pi-1", tmp_path)
    frame = protocol.encode(Assignment(1, ManifestRef(A, MAX_MANIFEST_BYTES)))
    assert session.receive(protocol.down_topic(RUN, "pi-1"), frame, 0.0)
    blob = protocol.blob_topic(RUN, A)
    chunk = protocol.encode(BlobChunk(A, MAX_MANIFEST_BYTES, 1024, 7), bytes(1024))
    with at_most(2**17):
        session.receive(blob, chunk, 0.0)
    said: list[str] = []
    session._log = said.append
    larger = protocol.encode(BlobChunk(A, protocol.MAX_BLOB_BYTES, 1024, 7), bytes(1024))
    session.receive(blob, larger, 0.0)
    assert said == [
        f"dropped a message on {blob}: a blob of {protocol.MAX_BLOB_BYTES} bytes; announced were {MAX_MANIFEST_BYTES}"
    ]


def test_chunks_that_nobody_permitted_are_not_kept(make_world: Any, wide: Bundle) -> None:
    """Two hundred devices offer, wait for their permits, and one chunk of each comes all the same."""
    world = make_world(wide, devices=2, max_devices=300, min_devices=202)
    names = [f"pi-{i}" for i in range(3, 203)]
    for name in names:
        world.receive(protocol.device_topic(RUN, name), protocol.encode(Presence(name, 1, "up", name)), 0.0)
    world.run(lambda: bool(world.broker.said(Announcement)))
    (announcement,) = world.broker.said(Announcement)
    size = wide.manifest.tensor("w").size_bytes + 100
    chunk_bytes = protocol.MAX_FRAME_BYTES // 2
    frame = protocol.encode(UploadChunk(A, 0), bytes(chunk_bytes))
    permitted = 0
    with at_most(protocol.MAX_FRAME_BYTES * 8):
        for name in names:
            up = protocol.up_topic(RUN, name)
            offer = Offer(name, 0, announcement.nonce, A, size, chunk_bytes, 1, {})
            answers = world.receive(up, protocol.encode(offer), 0.0)
            sent = any(isinstance(protocol.decode(m.payload)[0], Permit) for m in answers)
            permitted += sent
            if not sent:
                world.receive(up, frame, 0.0)
    assert permitted == 64 * 2**20 // size
    held = [len(u.assembly._data) + len(u.assembly._early) for u in world.aggregator._uploads._of.values()]
    assert len(held) == 200 and not any(held)


def test_uploads_that_never_end_hold_nobody_up_for_longer_than_an_attempt(
    make_world: Any, wide: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one upload at a time; a device sends the next chunk of its own every 25 s, and copies of it."""
    monkeypatch.setattr("edgefl.aggregator.uploads.UPLOAD_BUDGET_BYTES", 2 * 10**6)
    world = make_world(wide, devices=3, quorum=0.6, deadline_s=60.0)
    world.run(lambda: bool(world.broker.said(Announcement)))
    (announcement,) = world.broker.said(Announcement)
    up, size = protocol.up_topic(RUN, "pi-1"), wide.manifest.tensor("w").size_bytes + 100
    world.broker.forget(world.nodes.pop("pi-1").client)
    offer = protocol.encode(Offer("pi-1", 0, announcement.nonce, A, size, 64 * 1024, 1, {}))
    world.carry_out(world.aggregator.receive(up, offer, world.now_s))
    assert world.aggregator._uploads._of["pi-1"].permitted

    def done() -> bool:
        chunk = protocol.encode(UploadChunk(A, int(world.now_s // 25)), bytes(64 * 1024))
        world.carry_out(world.aggregator.receive(up, chunk, world.now_s))
        return len(world.rounds) == 1

    world.run(done)
    assert world.rounds == [(0, ("pi-2", "pi-3"))]
    assert 120 < world.now_s < 121  # the second deadline: the others were let pass at the first


def test_copies_of_a_chunk_keep_no_upload_alive(make_world: Any, wide: Bundle) -> None:
    world = make_world(wide, devices=2)
    world.run(lambda: bool(world.broker.said(Announcement)))
    (announcement,) = world.broker.said(Announcement)
    size = wide.manifest.tensor("w").size_bytes + 100
    world.receive(UP, protocol.encode(Offer("pi-1", 0, announcement.nonce, A, size, 65536, 1, {})), 0.0)
    chunk = protocol.encode(UploadChunk(A, 0), bytes(65536))
    for second in range(31):
        world.receive(UP, chunk, float(second))
        world.tick(float(second))
    assert "pi-1" in world.aggregator._uploads
    world.receive(UP, chunk, 31.0)
    world.tick(31.0)
    assert "pi-1" not in world.aggregator._uploads


# --- requests without an end --------------------------------------------------------------------------------------


def chunks_of(messages: list[Outgoing], sha256: str) -> list[int]:
    found = [protocol.decode(m.payload)[0] for m in messages]
    return [m.index for m in found if isinstance(m, BlobChunk) and m.sha256 == sha256]


def joined(world: World) -> tuple[str, bytes]:
    """Everybody has joined; a blob of the bundle in many chunks, as a request for all of it."""
    world.run(lambda: len(world.rounds) == 1 and not world.broker.pending)
    sha256 = world.classes[0].bundle.manifest.weights.sha256
    return sha256, protocol.encode(BlobRequest(sha256, []))


def test_a_thousand_requests_are_a_handful_of_publications(make_world: Any, wide: Bundle) -> None:
    world = make_world(wide)
    sha256, request = joined(world)
    said, now_s = 0, world.now_s
    for _ in range(1000):  # in ten seconds
        now_s += 0.01
        said += len(chunks_of(world.receive(UP, request, now_s), sha256))
        said += len(chunks_of(world.tick(now_s), sha256))
    # The burst of 32 MiB, and 2 MiB a second.
    assert said * protocol.CHUNK_BYTES <= (32 + 20 + 2) * 2**20
    assert world.events("too many requests") == [("pi-1", "what is too much is passed over")]
    world.run()
    assert world.coordinator.finished  # and the run goes on


def test_one_publication_of_a_blob_is_under_way_at_a_time(make_world: Any, wide: Bundle) -> None:
    """Who asks while chunks go out gets those that are still to come with the others, and the rest once more."""
    world = make_world(wide)
    sha256, request = joined(world)
    count = protocol.chunk_count(wide.manifest.weights.size_bytes, protocol.CHUNK_BYTES)
    world.aggregator._publications._waiting.clear()  # of the round that is open
    room = 10 * protocol.CHUNK_BYTES
    world.aggregator._room = lambda: room
    now_s = world.now_s + 1
    world.receive(UP, request, now_s)
    first = chunks_of(world.tick(now_s + 0.01), sha256)
    assert first == list(range(10))
    room = 0
    assert chunks_of(world.tick(now_s + 0.02), sha256) == []
    assert world.aggregator.wake_s(now_s + 0.02) > now_s + 0.02  # nobody turns in circles
    world.receive(protocol.up_topic(RUN, "pi-2"), request, now_s + 0.02)
    room = protocol.MAX_BLOB_BYTES
    assert chunks_of(world.tick(now_s + 0.03), sha256) == list(range(count))
    assert chunks_of(world.tick(now_s + 1), sha256) == []


def test_the_room_is_shared_by_all_that_goes_out(make_world: Any, wide: Bundle) -> None:
    world = make_world(wide)
    _, request = joined(world)
    world.aggregator._publications._blobs["b" * 64] = bytes(10**6)
    world.aggregator._room = lambda: 12 * protocol.CHUNK_BYTES
    now_s = world.now_s + 1
    world.receive(UP, request, now_s)
    world.receive(UP, protocol.encode(BlobRequest("b" * 64, [])), now_s)
    said = [m for m in world.tick(now_s + 0.01) if "/blob/" in m.topic]
    assert len(said) == 12


def test_a_device_that_keeps_restating_is_written_down_once_a_round(make_world: Any, regression: Bundle) -> None:
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1)
    lines = (world.store.path / "devices.jsonl").read_text().count("\n")
    for number in range(15):
        frame = protocol.encode(Presence("pi-1", 2 + number, "up", "pi-1, life 1", train_examples=100 + number))
        world.receive(protocol.device_topic(RUN, "pi-1"), frame, world.now_s)
    assert (world.store.path / "devices.jsonl").read_text().count("\n") == lines + 1
    assert world.coordinator.stated["pi-1"] == 100


def test_what_a_device_lost_on_its_link_it_gets_again(make_world: Any, wide: Bundle) -> None:
    world = make_world(wide)
    sha256, _ = joined(world)
    lost = protocol.encode(BlobRequest(sha256, [(3, 5), (9, 10)]))
    now_s = world.now_s + 1
    world.receive(UP, lost, now_s)
    assert chunks_of(world.tick(now_s + 0.01), sha256) == [3, 4, 9]


def test_a_bucket_fills_as_time_passes() -> None:
    limits = Limits(10.0, 20.0)
    assert [limits.allows("pi-1", 5.0) for _ in range(21)] == [True] * 20 + [False]
    assert limits.allows("pi-2", 5.0)  # everybody has one
    assert [limits.allows("pi-1", 5.125) for _ in range(2)] == [True, False]
    assert not limits.allows("pi-1", 5.25, cost=2)  # and takes nothing
    assert limits.allows("pi-1", 5.25)
    assert [limits.allows("pi-1", 500.0) for _ in range(21)] == [True] * 20 + [False]
    limits.refill()
    assert limits.allows("pi-1", 500.0)


# --- many names ---------------------------------------------------------------------------------------------------


def test_made_up_names_are_turned_away_when_the_run_is_full(make_world: Any, regression: Bundle) -> None:
    world = make_world(regression, devices=2, max_devices=2)
    world.run(lambda: world.coordinator.present == {"pi-1", "pi-2"})
    answers: list[Outgoing] = []
    for i in range(3000):
        name = f"made-up-{i}"
        frame = protocol.encode(Presence(name, 1, "up", name))
        answers += world.receive(protocol.device_topic(RUN, name), frame, world.now_s)
    said = [protocol.decode(m.payload)[0] for m in answers]
    why = "the run has 2 devices, as many as it takes ([round] max_devices)"
    assert said == [Assignment(1, None, reason=why)] * 20
    assert world.events("run is full") == [(f"made-up-{i}", why) for i in range(20)]
    assert world.events("too many requests") == [
        ("", "devices without a place in the run: what is too much is passed over")
    ]
    assert set(world.store.classes()) == {"pi-1", "pi-2"}
    world.run()
    assert world.coordinator.finished


def test_a_run_takes_no_more_devices_than_an_announcement_can_name(make_world: Any, regression: Bundle) -> None:
    """A broker that takes packets of 1,500 bytes: 2 devices and their tasks fit, 40 do not."""
    world = make_world(regression, devices=2)
    world.aggregator.frame_bytes = 1500
    world.run(lambda: bool(world.broker.said(Announcement)))
    most = protocol.devices_that_fit(world.broker.said(Announcement)[0], 1500 - protocol.PREAMBLE.size)
    assert 10 < most < 40
    for i in range(40):
        name = f"{i:036}"
        frame = protocol.encode(Presence(name, 1, "up", name))
        world.receive(protocol.device_topic(RUN, name), frame, world.now_s)
    assert len(world.store.classes()) == most
    everybody = [f"{i:036}" for i in range(most)]
    full = Announcement(**{f: getattr(world.broker.said(Announcement)[0], f) for f in Announcement.__struct_fields__})
    full = Announcement(**{**{f: getattr(full, f) for f in full.__struct_fields__}, "devices": everybody})
    assert 1500 - protocol.DEVICE_BYTES <= len(protocol.encode(full)) <= 1500


def test_a_run_whose_devices_cannot_all_be_named_is_refused_before_it_begins() -> None:
    tasks = tuple(Task("train", send=tuple(f"layer-{i:04}.weight" for i in range(2000))) for _ in range(10))
    with pytest.raises(ConfigError) as refused:
        check_names(Ask(tasks, {}), RoundSettings(max_devices=10_000))
    assert str(refused.value).startswith("[round] max_devices is 10000; an announcement of this method can name ")
    most = int(str(refused.value).split()[-2])
    assert refused.value.hint == f"set max_devices = {most} in [round]"
    check_names(Ask(tasks, {}), RoundSettings(max_devices=most))


def test_a_run_takes_no_more_devices_than_its_method_knows() -> None:
    scaffold = Scaffold({}, devices=8)
    run = RunFile("x", bundle="y", round=RoundSettings(min_devices=3))
    assert round_of(run, scaffold).max_devices == 8
    assert round_of(run, FedAvg({})).max_devices == 1000
    with pytest.raises(ConfigError, match="min_devices is 3, but the method is for 2 devices"):
        round_of(run, Scaffold({}, devices=2))


def test_ten_thousand_names_fit_a_frame() -> None:
    announcement = Announcement(1, 0, 0, "0" * 16, 600.0, [], [], BlobRef(A, 1))
    assert protocol.devices_that_fit(announcement, protocol.MAX_FRAME_BYTES) == protocol.MAX_DEVICES
