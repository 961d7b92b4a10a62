"""One connection against a real broker, over a line that can be cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from relay import Relay
from scripted_broker import ACCEPTED, scripted

from edgefl import patience
from edgefl.address import Address
from edgefl.errors import BrokerError
from edgefl.mqtt import Connection
from edgefl.patience import Pauses
from edgefl.protocol import CHUNK_BYTES, MIN_CHUNK_BYTES
from edgefl.transport import Connected, Disconnected, Event, Received
from edgefl_broker import RunningBroker


def wait_for(connection: Connection, kind: type[Event]) -> Event:
    while True:
        event = connection.inbox.get(timeout=20)
        if isinstance(event, kind):
            return event


def test_messages_keep_their_order_across_a_lost_connection(
    broker: RunningBroker, relay: Relay, connect: Callable[..., Connection]
) -> None:
    """Two messages are not acknowledged before the line is cut, the third is published while it is down. Were the two
    sent again after the third, or the first after the second, the broker would retain an announcement of the past."""
    listener = connect(broker.port, "listener", "round")
    wait_for(listener, Connected)
    sender = connect(relay.port, "sender")
    wait_for(sender, Connected)
    relay.hold()
    for payload in (b"first", b"second"):
        sender.publish("round", payload, retain=True)
        assert wait_for(listener, Received) == Received("round", payload, False)
    relay.cut()
    wait_for(sender, Disconnected)
    sender.publish("round", b"third", retain=True)
    assert wait_for(sender, Connected) == Connected(first=False)
    assert sender.flush(20)
    again = [wait_for(listener, Received) for _ in range(3)]
    assert [event.payload for event in again if isinstance(event, Received)] == [b"first", b"second", b"third"]
    late = connect(broker.port, "late", "round")
    assert wait_for(late, Received) == Received("round", b"third", True)


def test_ten_thousand_messages_arrive_once_each_and_in_order(
    broker: RunningBroker, connect: Callable[..., Connection]
) -> None:
    listener = connect(broker.port, "listener", "numbers")
    wait_for(listener, Connected)
    sender = connect(broker.port, "sender")
    for number in range(10_000):
        sender.publish("numbers", str(number).encode())
    got = [wait_for(listener, Received) for _ in range(10_000)]
    assert [int(event.payload) for event in got if isinstance(event, Received)] == list(range(10_000))
    assert sender.flush(20)


def test_subscriptions_survive_a_reconnect(relay: Relay, connect: Callable[..., Connection]) -> None:
    connection = connect(relay.port, "one", "mine")
    wait_for(connection, Connected)
    relay.cut()
    assert wait_for(connection, Connected) == Connected(first=False)
    connection.publish("mine", b"hello")
    assert wait_for(connection, Received) == Received("mine", b"hello", False)


def test_a_service_that_is_no_broker_is_said_at_once() -> None:
    """It accepts and hangs up."""
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=lambda: server.accept()[0].close())
        answering.start()
        connection = Connection(Address("127.0.0.1", server.getsockname()[1]), "x")
        with pytest.raises(BrokerError, match="closes the connection"):
            connection.connect()
        answering.join()


def test_a_broker_that_hangs_up_again_and_again_is_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes seven connections as soon as they stand, and we wait twice as long before each; the eighth stays. After
    five losses in a row we say what may be wrong."""
    pauses, next_s = [], Pauses.next_s
    monkeypatch.setattr(random, "uniform", lambda least, most: 1.0)
    monkeypatch.setattr(Pauses, "next_s", lambda self: pauses.append(next_s(self)) or pauses[-1] / 1000)
    with scripted(*[ACCEPTED] * 8) as broker:
        connection = Connection(broker.address, "x")
        connection.connect()
        losses = [wait_for(connection, Disconnected) for _ in range(7)]
        while not connection._client.is_connected():
            wait_for(connection, Connected)
        connection.close(timeout_s=0)
    # The first of them is never needed: it would be that of a connection that had lasted.
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    unsaid = "Unspecified error"
    assert losses[:4] == [Disconnected(unsaid)] * 4
    why = f"{unsaid}, again and again: is its packet limit too small, or does another client use our name?"
    assert losses[4:] == [Disconnected(why)] * 3


# --- how large a packet may be ------------------------------------------------------------------------------------


def test_a_limit_that_nobody_announces_is_found_and_remembered(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line takes packets of 100,000 bytes, and hangs up on any other. Half a megabyte is tried twice, its half and
    quarter too; an eighth passes. What was too large is left out: whoever said it says it again in smaller parts."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.001)
    relay, largest = Relay(broker.port, most_bytes=100_000), 512_000
    address = Address("127.0.0.1", relay.port, mqtt5=False)  # with 5 the broker would announce its own
    connection = Connection(address, "x", folder=tmp_path)
    connection.connect()
    sizes: list[int] = []
    while not sizes or sizes[-1] > 100_000:
        wait_for(connection, Connected)
        size = connection.part_bytes(largest, 4096)
        if not sizes or size < sizes[-1]:  # else it is the second attempt, and the first message is sent again
            sizes.append(size)
            connection.publish("t", bytes(size))
    assert connection.flush(20)
    connection.close()
    relay.close()
    assert len(sizes) == 4 and len(relay.refused) == 6
    assert all(size // 2 - 1024 < smaller < size // 2 for size, smaller in pairwise(sizes))
    assert Connection(address, "x", folder=tmp_path).part_bytes(largest, 4096) == sizes[-1]
    assert Connection(address, "x", folder=tmp_path / "other").part_bytes(largest, 4096) == largest


def test_what_does_not_pass_is_left_out_though_its_limit_is_known_before_the_next_connection(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever published it asks for the limit between the loss that showed it and the connection after that."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.2)
    relay = Relay(broker.port, most_bytes=100_000)
    connection = Connection(Address("127.0.0.1", relay.port, mqtt5=False), "x")
    connection.connect()
    connection.publish("t", bytes(150_000))
    for _ in range(2):
        wait_for(connection, Disconnected)
    assert connection.part_bytes(512_000, 4096) < 100_000
    assert connection.flush(20)
    connection.close()
    relay.close()
    assert len(relay.refused) == 2


def test_a_limit_that_a_person_states() -> None:
    address = Address.parse("mqtt://h?packet=131072&protocol=3.1.1")
    assert Connection(address, "x").part_bytes(512_000, 4096) == 131_072 - 1024


@pytest.mark.parametrize(
    ("limit", "size"), [(None, 65024), (10_000, 8976), (66_048, 65024), (66_047, 65023), (1 << 20, 65024), (5120, 4096)]
)
def test_a_part_is_as_large_as_it_may_be(limit: int | None, size: int) -> None:
    """1024 bytes of a packet are for its topic, its properties and our header."""
    connection = Connection(Address("127.0.0.1", 1), "x")
    connection._limit.announced(limit)
    assert connection.part_bytes(CHUNK_BYTES, MIN_CHUNK_BYTES) == size


def test_a_broker_whose_packets_are_too_small_is_refused() -> None:
    connection = Connection(Address("127.0.0.1", 1), "x")
    connection._limit.announced(5119)
    with pytest.raises(BrokerError, match="takes packets of at most 5119 bytes; edgefl needs 5120") as refused:
        connection.part_bytes(CHUNK_BYTES, MIN_CHUNK_BYTES)
    assert refused.value.hint == "raise the broker's packet limit (mosquitto: max_packet_size)"
    connection.publish("t", b"x" * (5119 - 65))
    with pytest.raises(BrokerError, match="a message on t has 5055"):
        connection.publish("t", b"x" * (5119 - 64))


def test_what_expires_is_not_kept_for_ever(broker: RunningBroker, connect: Callable[..., Connection]) -> None:
    """A broker says how long it will still keep a message: whoever comes later finds no more than that."""
    speaker = connect(broker.port, "speaker")
    speaker.publish("kept", b"for an hour", retain=True, expires_s=3600)
    speaker.publish("kept/too", b"for ever", retain=True)
    assert speaker.flush()
    found: dict[str, int] = {}
    listener = Connection(Address("127.0.0.1", broker.port), "listener")
    listener.subscribe("#")
    listener._client.on_message = lambda client, userdata, message: listener.inbox.put(
        Received(message.topic, str(getattr(message.properties, "MessageExpiryInterval", 0)).encode(), message.retain)
    )
    listener.connect()
    while len(found) < 2:
        event = wait_for(listener, Received)
        assert isinstance(event, Received)
        found[event.topic] = int(event.payload)
    listener.close(timeout_s=1.0)
    assert 3500 < found["kept"] <= 3600 and found["kept/too"] == 0
