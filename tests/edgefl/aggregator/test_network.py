"""Aggregator and devices joined in memory: whatever the network does, the weights are those of a clean run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from descent import RATE, ROUNDS, SIZES, MakeWorld, assert_exact, fedavg, make_data, trained_once_a_round
from memory import AGGREGATOR, RUN, Broker, Node

from edgefl import protocol
from edgefl.aggregator.rounds import Announce
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.protocol import Announcement, BlobChunk, BlobRequest, Offer, UploadChunk
from edgefl.random_numbers import order_of
from edgefl_device.work.interpreter import Outcome

# --- a network that works ---------------------------------------------------------------------------------------------


def test_a_clean_network(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle)
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)
    assert world.now_s < 1  # nobody waited for a repetition
    assert {note.event for note in world.notes} == {"joined", "replied"}


def test_several_epochs_in_batches_are_numpys(make_world: MakeWorld, regression: Bundle) -> None:
    """Algorithm 1 of the paper, written out: E = 2, B = 3, so that a batch is short."""
    world = make_world(regression, method=fedavg(regression, epochs=2, batch_size=3, seed=5))
    world.run()
    data = make_data(2)
    taken = {name: 2 * math.ceil(len(own) / 3) for name, own in data.items()}
    assert len(set(taken.values())) > 1 and [record.steps for record in world.records] == [taken] * ROUNDS
    w = np.zeros(2)
    for number in range(ROUNDS):
        total = np.zeros(2)
        for name, own in data.items():
            local = w.copy()
            for epoch in range(2):
                order = order_of(len(own), seed=5 + number, device=name, epoch=epoch)
                for start in range(0, len(own), 3):
                    x, y = own.features[order[start : start + 3]], own.labels[order[start : start + 3]]
                    local -= RATE * 2 / len(x) * x.T @ (x @ local - y)
            total += len(own) * local
        w = total / 8
    np.testing.assert_allclose(world.coordinator.state.tensors["w"], w, rtol=1e-5, atol=1e-6)


def test_deltas_give_the_weights_that_values_give(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle, method=fedavg(bundle, send_as="delta"))
    world.run()
    assert_exact(world)


def test_what_is_announced_is_published_once_for_all_devices(make_world: MakeWorld, wide: Bundle) -> None:
    world = make_world(wide)
    world.run()
    chunks = Counter((c.sha256, c.index) for c in world.broker.said(BlobChunk))  # type: ignore[union-attr]
    assert set(chunks.values()) == {1}
    tensors = {a.tensors.sha256: a.tensors.size_bytes for a in world.broker.said(protocol.Announcement)}  # type: ignore[union-attr]
    assert len(tensors) == ROUNDS
    for sha256, size_bytes in tensors.items():
        assert size_bytes > protocol.CHUNK_BYTES
        assert sum(1 for blob, _ in chunks if blob == sha256) == 3


def test_small_tensors_need_no_blob_and_no_upload(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    world.run()
    files = {f.sha256 for f in regression.manifest.files()} | {regression.sha256}
    assert {c.sha256 for c in world.broker.said(BlobChunk)} <= files  # type: ignore[union-attr]
    assert world.broker.said(UploadChunk) == []
    assert len(world.broker.said(Offer)) == 3 * ROUNDS


def test_where_the_broker_takes_it_all_travels_in_two_messages(make_world: MakeWorld, wide: Bundle) -> None:
    world = make_world(wide, inline_bytes=protocol.INLINE_BYTES)
    world.run()
    assert_exact(world)
    assert world.broker.said(UploadChunk) == []
    weights = {a.tensors.sha256 for a in world.broker.said(Announcement)}
    assert not any(request.sha256 in weights for request in world.broker.said(BlobRequest))
    assert trained_once_a_round(world)


def test_what_few_of_many_are_asked_for_they_fetch(make_world: MakeWorld, wide: Bundle) -> None:
    """Everybody hears an announcement: weights for one device in three are no part of it."""
    settings = RoundSettings(fraction=0.3, min_devices=3, quorum=1.0, deadline_s=60.0)
    world = make_world(wide, inline_bytes=protocol.INLINE_BYTES, settings=settings)
    world.run()
    said = [m for m in world.broker.published if m.topic == protocol.round_topic(RUN)]
    assert len(said) == ROUNDS
    assert all(len(message.payload) < 2000 for message in said)
    assert world.broker.said(UploadChunk) == []


@pytest.mark.parametrize(
    ("devices", "allowed"), [(3, protocol.INLINE_BYTES), (300, 223696), (9000, protocol.CHUNK_BYTES)]
)
def test_replies_that_nobody_permits_are_together_no_more_than_the_budget(
    make_world: MakeWorld, regression: Bundle, devices: int, allowed: int
) -> None:
    world = make_world(regression, inline_bytes=protocol.INLINE_BYTES)
    world.run(lambda: len(world.coordinator.present) == len(SIZES) and not world.broker.pending)
    names = tuple(f"d{i}" for i in range(devices))
    ask = world.method.ask(world.method.start())
    world.aggregator._announce(Announce(0, 0, "0" * 16, ask, names, 60.0))
    _, announced = world.aggregator._take_actions()
    assert protocol.decode(announced.payload)[0].inline_bytes == allowed


def test_private_tensors_never_travel(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    seen: list[bytes] = []
    for node in world.nodes.values():

        def remember(outcome: Outcome, node: Node = node) -> Outcome:
            assert node.runtime is not None
            seen.append(node.runtime.view("moment").tobytes())
            return outcome

        node.tamper = remember
    world.run()
    wire = b"".join(message.payload for message in world.broker.published)
    assert len(seen) == 3 * ROUNDS and all(any(np.frombuffer(moment, "f4")) for moment in seen)
    assert not any(moment in wire for moment in seen)
    assert world.coordinator.state.tensors["w"].tobytes() not in wire  # the last weights are announced to nobody
    uploads = [protocol.decode(m.payload) for m in world.broker.published if "/up/" in m.topic]
    offered = [protocol.bytes_to_tensors(bytes(body), "it") for message, body in uploads if isinstance(message, Offer)]
    assert offered and all(list(tensors) == ["w"] for tensors in offered)
    assert all(tensors["w"].tobytes() in wire for tensors in offered)


# --- a network that does not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_third_of_all_messages_is_lost(make_world: MakeWorld, bundle: Bundle, seed: int) -> None:
    """A link that loses so much is cut now and then; connecting again brings back what is retained."""
    world = make_world(bundle, broker=Broker(drop=0.3, seed=seed))
    next_cut_s = [10.0 + i for i in range(4)]

    def finished() -> bool:
        for i, node in enumerate(world.nodes.values()):
            if world.now_s >= next_cut_s[i]:
                next_cut_s[i] += 17.0
                node.reconnect()
        if world.now_s >= next_cut_s[3]:
            next_cut_s[3] += 29.0
            world.broker.forget(AGGREGATOR)
            for pattern in world.aggregator.subscriptions():
                world.broker.subscribe(AGGREGATOR, pattern)
            world.carry_out(world.aggregator.reconnected())
        return all(node.done for node in world.nodes.values())

    world.run(finished)
    assert_exact(world)
    assert trained_once_a_round(world)


def test_every_message_comes_twice(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle, broker=Broker(duplicate=1.0))
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)


@pytest.mark.parametrize("seed", range(5))
def test_messages_overtake_each_other(make_world: MakeWorld, bundle: Bundle, seed: int) -> None:
    world = make_world(bundle, broker=Broker(reorder=True, seed=seed))
    world.run()
    assert_exact(world)


@pytest.mark.parametrize("seed", range(5))
def test_all_at_once(make_world: MakeWorld, bundle: Bundle, seed: int) -> None:
    """Lost, doubled, reordered, devices and the aggregator killed now and then."""
    world = make_world(bundle, broker=Broker(drop=0.1, duplicate=0.2, reorder=True, seed=seed))
    next_kill_s = [7.0]
    kills = [0]

    def finished() -> bool:
        if world.now_s >= next_kill_s[0]:
            next_kill_s[0] += 11.0
            kills[0] += 1
            victims: list[Callable[[], None]] = [node.start for node in world.nodes.values()]
            [*victims, world.restart_aggregator][kills[0] % 4]()
        return all(node.done for node in world.nodes.values())

    world.run(finished)
    assert_exact(world)


def test_a_dead_aggregators_words_are_not_kept_for_ever(make_world: MakeWorld, regression: Bundle) -> None:
    """Its "up" for two minutes, said again every half; an announcement until two minutes after the deadline."""
    world = make_world(regression)
    world.run()
    kept = {message.topic: message for message in world.broker.published if message.retain}
    said = [message for message in world.broker.published if message.topic == protocol.round_topic(RUN)]
    assert {message.expires_s for message in said} == {60 + 120}
    statuses = [message for message in world.broker.published if message.topic == protocol.aggregator_topic(RUN)]
    assert [message.expires_s for message in statuses] == [120, 0]  # up, finished: who comes later is to find that
    assert kept[protocol.device_topic(RUN, "pi-1")].expires_s == 0
