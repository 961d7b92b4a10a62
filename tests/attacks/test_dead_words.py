"""Words of a dead run, and words that anybody may say once: what a broker has kept is a hint, and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import RUN, World

import edgefl_broker
from edgefl import protocol
from edgefl.address import Address
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.methods.fedavg import FedAvg
from edgefl.mqtt import Connection
from edgefl.protocol import AggregatorStatus, Announcement, Assignment, BlobRef, Outgoing, Presence
from edgefl.transport import Received
from edgefl_device import find
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.find import find_run
from edgefl_device.options import Options
from edgefl_device.wire import life
from edgefl_device.wire.session import FINISHED_S, Session

ROUNDS = 3
STATUS = protocol.aggregator_topic(RUN)


@pytest.fixture
def make_world(tmp_path: Path, regression: Bundle) -> Iterator[Any]:
    made: list[World] = []

    def make() -> World:
        data = Dataset(np.eye(2, dtype=np.float32), np.ones(2, np.float32))
        method = FedAvg(regression.shared_weights(), rounds=ROUNDS, batch_size=0, learning_rate=0.25)
        settings = RoundSettings(min_devices=2, quorum=1.0, deadline_s=600.0)
        made.append(World(tmp_path, regression, method, {"pi-1": data, "pi-2": data}, settings=settings))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


def say(world: World, message: Any, topic: str = STATUS, *, retain: bool = True) -> None:
    """Somebody on the broker says this."""
    world.broker.publish(Outgoing(topic, protocol.encode(message), retain=retain))


def assert_whole(world: World) -> None:
    assert [number for number, _ in world.rounds] == list(range(ROUNDS))
    assert world.coordinator.finished


# --- "finished" ---------------------------------------------------------------------------------------------------


def test_a_finish_that_the_broker_has_kept_ends_nobody(make_world: Any) -> None:
    """It is there before the devices; their aggregator comes later."""
    world = make_world()
    world.broker.pending.clear()
    for node in world.nodes.values():
        world.broker.forget(node.client)
    say(world, AggregatorStatus(1, "finished"))
    aggregator, world.aggregator.receive = world.aggregator.receive, lambda *_: []
    for node in world.nodes.values():
        node.start()
    world.run(lambda: world.now_s > 300)
    assert not any(node.done for node in world.nodes.values())
    assert all(any("waiting until somebody says so" in line for line in node.log) for node in world.nodes.values())
    world.aggregator.receive = aggregator
    world.run()
    assert_whole(world)


@pytest.mark.parametrize("epoch", [0, 1, protocol.MAX_EPOCH])
def test_a_lie_that_the_run_is_finished_ends_nobody(make_world: Any, epoch: int) -> None:
    """Everybody hears it, asks, and is answered by the aggregator, which is at work."""
    world = make_world()
    world.run(lambda: len(world.rounds) == 1)
    since_s = world.now_s
    # What pi-2 offers is lost for a while, so that the round lasts.
    world.broker.lost = lambda client, topic: topic.endswith("up/0/pi-2") and world.now_s < since_s + 2 * FINISHED_S
    say(world, AggregatorStatus(epoch, "finished"))
    world.run(lambda: world.coordinator.finished)
    assert world.now_s > since_s + 2 * FINISHED_S
    assert not any(node.done for node in world.nodes.values())
    assert_whole(world)
    world.run()


def test_a_finish_counts_when_the_aggregator_says_nothing_else(make_world: Any) -> None:
    """It left before it heard the question."""
    world = make_world()
    world.broker.lost = lambda client, topic: world.coordinator.finished and topic.startswith("edgefl/1/toy/down/")
    world.run()
    assert_whole(world)
    assert FINISHED_S <= world.now_s < FINISHED_S + 5


# --- epochs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["status", "announcement"])
def test_an_epoch_that_nobody_renews_deafens_nobody_for_long(make_world: Any, message: str) -> None:
    world = make_world()
    world.run(lambda: len(world.rounds) == 1)
    epoch = protocol.MAX_EPOCH
    if message == "status":
        say(world, AggregatorStatus(epoch, "up"))
    else:
        lie = Announcement(epoch, 2**53, 0, "0" * 16, 600.0, [], [], BlobRef("a" * 64, 1))
        say(world, lie, protocol.round_topic(RUN))
    world.run()
    assert_whole(world)
    assert world.now_s < protocol.STATUS_COUNTS_S + 2 * protocol.STATUS_AGAIN_S


def test_an_epoch_is_bounded(tmp_path: Path) -> None:
    said: list[str] = []
    session = Session(RUN, "pi-1", tmp_path, log=said.append)
    frame = protocol.encode(AggregatorStatus(2**53, "up"))
    assert session.receive(STATUS, frame, 0.0) == []
    assert len(said) == 1 and "Expected `int` <= 1000000" in said[0]


def test_an_older_epoch_is_not_taken_after_a_restart(make_world: Any) -> None:
    """The device was away while the aggregator was replaced; the old one still speaks."""
    world = make_world()
    world.run(lambda: bool(world.broker.said(Announcement)))
    old = next(m for m in world.broker.published if m.topic == protocol.round_topic(RUN))
    up = Outgoing(STATUS, protocol.encode(AggregatorStatus(1, "up")))
    world.restart_aggregator()
    world.run(lambda: len(world.rounds) == 1)
    device = world.nodes["pi-1"]
    device.start()
    world.broker.forget(device.client)
    device.session.connected(world.now_s, again=False)
    for message in (up, old):
        assert device.session.receive(message.topic, message.payload, world.now_s) == []
    assert device.session._announcement is None and device.session._epochs.current == 2
    device.start()
    world.run()
    assert_whole(world)


# --- a device and its own earlier words ---------------------------------------------------------------------------


def test_a_device_knows_what_it_said_in_all_its_lives(tmp_path: Path) -> None:
    """It died twice, and a broker that keeps things on disk comes back with what it said first of all."""
    lives = [Session(RUN, "pi-3", tmp_path) for _ in range(3)]
    topic = protocol.device_topic(RUN, "pi-3")
    first = protocol.encode(Presence("pi-3", 1, "up", lives[0].instance))
    now = lives[2]
    assert lives[0].instance < lives[1].instance < now.instance
    now.connected(0.0, again=False)
    assert now.receive(topic, first, 0.0, retained=True) == []
    now.connected(1.0, again=True)
    assert now.receive(topic, first, 1.0, retained=True) == []
    assert now.receive(topic, first, 1.0) == []


def test_what_was_found_of_another_life_is_no_conflict_later(tmp_path: Path) -> None:
    """Its state folder was lost, so that it has a new identity; the broker forgets, and has an old snapshot."""
    session = Session(RUN, "pi-3", tmp_path, instance="b")
    topic = protocol.device_topic(RUN, "pi-3")
    old = protocol.encode(Presence("pi-3", 4, "up", "c"))
    session.connected(0.0, again=False)
    assert session.receive(topic, old, 0.0, retained=True) == []
    session.connected(1.0, again=True)
    assert session.receive(topic, old, 1.0, retained=True) == []
    newer = protocol.encode(Presence("pi-3", 5, "up", "c"))  # it has connected again: it lives
    assert len(session.receive(topic, newer, 2.0, retained=True)) == 1


def test_a_damaged_life_is_a_new_identity(tmp_path: Path) -> None:
    before = life.begin(tmp_path)
    for damage in (b"", b"{", b'{"identity": 3, "number": 1}', b"\xff", b"[" * 100_000):
        (tmp_path / life.FILE).write_bytes(damage)
        assert life.begin(tmp_path)[:16] != before[:16]
    assert life.begin(tmp_path)[16:] == "-0000000002"


# --- which run is up ----------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path: Path) -> Iterator[Options]:
    with edgefl_broker.start() as broker:
        data = Splits(Dataset(np.eye(2, dtype=np.float32), np.ones(2, np.float32)), None)
        yield Options(Address.parse(broker.url), "pi-1", data, tmp_path / "state")


@pytest.fixture
def speaker(options: Options) -> Iterator[Connection]:
    connection = Connection(options.broker, "speaker")
    connection.connect()
    yield connection
    connection.close()


def up(speaker: Connection, run: str) -> None:
    speaker.publish(protocol.aggregator_topic(run), protocol.encode(AggregatorStatus(1, "up")), retain=True)
    assert speaker.flush()


def test_of_two_runs_the_one_that_says_so_is_up(
    options: Options, speaker: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "ANSWER_S", 0.2)
    monkeypatch.setattr(find, "WAKE_S", 0.1)
    up(speaker, "dead")
    assert find_run(options, lambda line: None) == "dead"  # the only one that there may be
    up(speaker, "alive")
    told = threading.Event()

    def renew() -> None:
        assert told.wait(20)
        up(speaker, "alive")

    renewing = threading.Thread(target=renew)
    renewing.start()
    lines: list[str] = []
    assert find_run(options, lambda line: (lines.append(line), told.set())) == "alive"  # type: ignore[func-returns-value]
    renewing.join()
    assert lines == ["waiting until one of alive, dead says that it is up, or choose with --run"]


def test_of_two_runs_the_one_that_answers_is_up(options: Options, speaker: Connection) -> None:
    """Nobody waits for the half minute in which a living aggregator renews its word: it answers a presence at once.
    The dead run's device sleeps afterwards."""
    up(speaker, "dead")
    up(speaker, "alive")
    speaker.subscribe(protocol.device_topic("alive", "pi-1"), protocol.device_topic("dead", "pi-1"))
    heard: list[tuple[str, str]] = []

    def answer() -> None:
        while len(heard) < 4:
            event = speaker.inbox.get(timeout=20)
            if isinstance(event, Received):
                presence, _ = protocol.decode(event.payload)
                assert isinstance(presence, Presence)
                heard.append((protocol.run_of(event.topic), presence.status))
                if heard[-1] == ("alive", "up"):
                    assignment = protocol.encode(Assignment(1, None, reason="wait"))
                    speaker.publish(protocol.down_topic("alive", "pi-1"), assignment)

    answering = threading.Thread(target=answer)
    answering.start()
    lines: list[str] = []
    assert find_run(options, lines.append) == "alive"
    answering.join()
    assert sorted(heard) == [("alive", "sleeping"), ("alive", "up"), ("dead", "sleeping"), ("dead", "up")]
    assert lines == []


def test_two_runs_that_are_both_up_are_named(options: Options, speaker: Connection) -> None:
    """They come while the device waits."""
    lines: list[str] = []

    def come(line: str) -> None:
        lines.append(line)
        up(speaker, "a")
        up(speaker, "b")

    with pytest.raises(ConfigError, match="2 runs are up: a, b") as refused:
        find_run(options, come)
    assert refused.value.hint == "choose with --run"
    assert lines == [f"connected to {options.broker}; waiting for an aggregator"]
