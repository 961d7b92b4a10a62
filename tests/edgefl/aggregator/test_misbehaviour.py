"""Replies and frames that are wrong: refused by name, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from descent import ROUNDS, SIZES, MakeWorld, assert_exact, gradient_descent, make_data, trained_once_a_round
from memory import RUN, with_tensors

from edgefl import protocol
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.protocol import AggregatorStatus, BlobChunk, Offer, Presence, Receipt, UploadChunk
from edgefl_device.work.interpreter import Outcome

BAD: dict[str, tuple[Callable[[Outcome], Outcome], str]] = {
    "NaN": (
        lambda o: with_tensors(o, w=o.tensors["w"] * np.float32(np.nan)),
        "sent 'w' with a value that is not finite",
    ),
    "wrong shape": (
        lambda o: with_tensors(o, w=o.tensors["w"][:-1]),
        "sent 'w' as float32",
    ),
    "wrong dtype": (
        lambda o: with_tensors(o, w=o.tensors["w"].astype("f2")),
        "sent 'w' as float16",
    ),
    "a tensor too many": (
        lambda o: with_tensors(o, b=np.zeros(1, "f4")),
        "sent 'b', which was not asked for",
    ),
    "no tensor": (
        lambda o: replace(o, tensors={}),
        "did not send 'w'",
    ),
    "too large": (
        lambda o: with_tensors(o, w=np.zeros(1_000_000, "f4")),
        "an upload of 40000",
    ),
    "no examples": (
        lambda o: replace(o, examples=0, steps=0),
        "weight rule 'examples' gives 0.0; expected above 0",
    ),
    "too many steps": (
        lambda o: replace(o, steps=o.steps + 1),
        "2 steps of the optimizer; with 2 examples the tasks have at most 1",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_refused_by_name_and_the_round_goes_on(make_world: MakeWorld, bundle: Bundle, kind: str) -> None:
    change, says = BAD[kind]
    # Two of three are a quorum, so rounds need not wait for the bad one.
    world = make_world(bundle, settings=RoundSettings(min_devices=3, quorum=0.5, deadline_s=60.0))
    world.nodes["pi-3"].tamper = change
    world.run()
    assert all(devices == ("pi-1", "pi-2") for _, devices in world.rounds) and len(world.rounds) == ROUNDS
    failures = world.events("failed")
    assert len(failures) == 2  # of three rounds: who has failed in two in a row is not asked in the third
    assert all(device == "pi-3" and says in text for device, text in failures)
    refused = [r for r in world.broker.said(Receipt) if r.status == "refused"]  # type: ignore[union-attr]
    assert refused and all(says in r.reason for r in refused)  # type: ignore[union-attr]
    # Without pi-3 it is gradient descent on the six examples of the others: n_k / 6, not n_k / 8.
    data = make_data(bundle.manifest.tensor("w").shape[0])
    expected = gradient_descent({name: data[name] for name in ("pi-1", "pi-2")})
    np.testing.assert_allclose(world.coordinator.state.tensors["w"], expected, rtol=1e-6, atol=1e-7)
    assert world.now_s < 60  # no deadline was needed


def test_a_claimed_size_is_checked_before_anything_is_kept(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    world.run(lambda: world.coordinator.deadline_s is not None)
    announcement = world.broker.said(protocol.Announcement)[0]
    offer = Offer("pi-1", 0, announcement.nonce, "a" * 64, 2**31, 2**20, 5, {})  # type: ignore[union-attr]
    (answer,) = world.receive(protocol.up_topic(RUN, "pi-1"), protocol.encode(offer), world.now_s)
    receipt, _ = protocol.decode(answer.payload)
    assert isinstance(receipt, Receipt)
    assert receipt.status == "refused"
    assert "an upload of 2147483648 bytes; the asked tensors have at most" in receipt.reason


def test_noise_is_noted_and_changes_nothing(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    world.run(lambda: world.coordinator.present == set(SIZES))
    up = protocol.up_topic(RUN, "pi-1")
    somebody = Presence("pi-2", 9, "down")
    for topic, payload in [
        (up, b"hello aggregator"),
        (up, b"efl\x02" + bytes(20)),
        (up, protocol.encode(somebody)),  # names another device than its topic
        (up, protocol.encode(AggregatorStatus(99, "finished"))),
        (up, protocol.encode(UploadChunk("a" * 64, 0), b"x")),
        ("edgefl/9/toy/up/0/pi-1", protocol.encode(somebody)),
    ]:
        assert world.receive(topic, payload, 0.0) == []
    says = [text for _, text in world.events("protocol error")]
    assert [text.split(": ", 1)[1][:30] for text in says] == [
        "not an edgefl frame: it begins",
        "a frame of protocol version 2;",
        "a message that names another d",
        "device 'pi-1' sent a Aggregato",
        "a message on the foreign topic",
    ]
    for node in world.nodes.values():
        assert node.session.receive(protocol.round_topic(RUN), b"hello", 0.0) == []
    world.run()
    assert_exact(world)


def test_an_announcement_that_was_overtaken_is_ignored(make_world: MakeWorld, regression: Bundle) -> None:
    """Round 0 is said again when round 1 is open: the device goes on with round 1, and offers its reply to it."""
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1 and not world.broker.pending)
    first, second = [m for m in world.broker.published if m.topic == protocol.round_topic(RUN)]
    for node in world.nodes.values():
        assert node.busy
        assert node.session.receive(first.topic, first.payload, world.now_s) == []
        assert node.session.receive(second.topic, second.payload, world.now_s) == []  # nor is twice more than once
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)


def test_requests_that_come_together_are_answered_by_one_publication(make_world: MakeWorld, wide: Bundle) -> None:
    world = make_world(wide)
    world.run(lambda: world.coordinator.present == set(SIZES))
    world.restart_aggregator()
    assert not world.coordinator.present
    now_s = world.now_s
    program = wide.manifest.program("train").file
    request = protocol.encode(protocol.BlobRequest(program.sha256, []))
    for name in SIZES:
        sent = world.receive(protocol.up_topic(RUN, name), request, now_s)
        assert not [message for message in sent if "/blob/" in message.topic]
    # Who speaks is there, even if its presence was lost on the way.
    assert world.coordinator.present == set(SIZES)
    assert world.tick(now_s + 0.001) == []
    assert world.aggregator.wake_s(now_s + 0.001) == now_s + 0.005
    (answer,) = world.tick(now_s + 0.006)
    message, body = protocol.decode(answer.payload)
    assert answer.topic == protocol.blob_topic(RUN, program.sha256)
    assert message == BlobChunk(program.sha256, program.size_bytes, protocol.CHUNK_BYTES, 0)
    assert bytes(body) == wide.bytes_of(program)
    assert world.tick(1.012) == []


def test_an_announcement_of_an_older_aggregator_is_ignored(make_world: MakeWorld, regression: Bundle) -> None:
    """Epoch 1 was replaced by epoch 2; what it still says comes late."""
    world = make_world(regression)
    world.run(lambda: bool(world.broker.said(protocol.Announcement)))
    old = [m for m in world.broker.published if m.topic == protocol.round_topic(RUN)]
    world.restart_aggregator()
    world.run(lambda: len(world.rounds) == 2)
    for node in world.nodes.values():
        jobs = len(node.jobs)
        assert node.session.receive(old[0].topic, old[0].payload, world.now_s) == []
        assert len(node.jobs) == jobs
    world.run()
    assert_exact(world)
