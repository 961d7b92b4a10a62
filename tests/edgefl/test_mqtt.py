"""One connection against a real broker, over a line that can be cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from relay import Relay

import edgefl_broker
from edgefl.errors import BrokerError, ConfigError
from edgefl.mqtt import QUICK_LOSSES, Address, Connection, QuickLosses
from edgefl.protocol import CHUNK_BYTES, MIN_CHUNK_BYTES
from edgefl.transport import Broken, Connected, Disconnected, Event, Received
from edgefl_broker import RunningBroker


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with edgefl_broker.start() as running:
        yield running


@pytest.fixture
def relay(broker: RunningBroker) -> Iterator[Relay]:
    relay = Relay(broker.port)
    yield relay
    relay.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Connection]]:
    """Make a connection to a port of this machine; all are closed with the test."""
    opened: list[Connection] = []

    def connect(port: int, name: str, *topics: str) -> Connection:
        connection = Connection(Address("127.0.0.1", port), name)
        connection.subscribe(*topics)
        opened.append(connection)
        connection.connect()
        return connection

    yield connect
    for connection in opened:
        connection.close(timeout_s=1.0)


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


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://127.0.0.1", Address("127.0.0.1", 1883)),
        ("mqtts://u:p%40ss@broker.example:9", Address("broker.example", 9, True, "u", "p@ss")),
        ("mqtt://h?protocol=3.1.1", Address("h", 1883, mqtt5=False)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert Address.parse(url) == address
    assert "p@ss" not in str(address) and "p%40ss" not in str(address)


@pytest.mark.parametrize("url", ["", "h:1", "http://h", "mqtt://", "mqtt://h:99999", "mqtt://h?protocol=4"])
def test_addresses_that_cannot_be_read(url: str) -> None:
    with pytest.raises(ConfigError, match="broker address"):
        Address.parse(url)


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


def test_a_broker_that_hangs_up_again_and_again_does_not_want_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts every connection and closes it at once; between two of them we wait a hundredth of the usual time."""
    import socket
    import threading

    connack, uniform = b"\x20\x03\x00\x00\x00", random.uniform
    monkeypatch.setattr(random, "uniform", lambda least, most: uniform(least, most) / 100)

    def accept(server: socket.socket) -> None:
        for _ in range(QUICK_LOSSES):
            with server.accept()[0] as client:
                client.recv(1000)
                client.sendall(connack)

    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=accept, args=(server,))
        accepting.start()
        connection = Connection(Address("127.0.0.1", server.getsockname()[1]), "x")
        connection.connect()
        broken = wait_for(connection, Broken)
        accepting.join()
    assert isinstance(broken, Broken)
    assert broken.error.message.endswith("keeps closing the connection without a reason")
    connection.close(timeout_s=0)


def test_losses_count_only_in_a_row_and_right_after_a_connection() -> None:
    losses = QuickLosses()

    def lost(after_s: float, now_s: float = 100.0) -> bool:
        losses.made(now_s)
        return losses.lost(now_s + after_s)

    assert [lost(1.0) for _ in range(5)] == [False, False, False, False, True]
    assert not lost(2.0)  # one that lasted begins the count anew
    assert [lost(1.9) for _ in range(5)] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("limit", "size"), [(None, 65024), (10_000, 8976), (66_048, 65024), (66_047, 65023), (1 << 20, 65024), (5120, 4096)]
)
def test_a_part_is_as_large_as_it_may_be(limit: int | None, size: int) -> None:
    """1024 bytes of a packet are for its topic, its properties and our header."""
    connection = Connection(Address("127.0.0.1", 1), "x")
    connection.max_packet_bytes = limit
    assert connection.part_bytes(CHUNK_BYTES, MIN_CHUNK_BYTES) == size


def test_a_broker_whose_packets_are_too_small_is_refused() -> None:
    connection = Connection(Address("127.0.0.1", 1), "x")
    connection.max_packet_bytes = 5119
    with pytest.raises(BrokerError, match="takes packets of at most 5119 bytes; edgefl needs 5120") as refused:
        connection.part_bytes(CHUNK_BYTES, MIN_CHUNK_BYTES)
    assert refused.value.hint == "raise the broker's packet limit (mosquitto: max_packet_size)"
    connection.publish("t", b"x" * (5119 - 65))
    with pytest.raises(BrokerError, match="a message on t has 5055"):
        connection.publish("t", b"x" * (5119 - 64))
