"""One connection against a real broker, over a line that can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from relay import Relay

import edgefl_broker
from edgefl.errors import BrokerError, ConfigError
from edgefl.mqtt import Address, Connected, Connection, Disconnected, Event, Received
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
    """The first message is not acknowledged before the line is cut, the second is published while it is down. Were the
    first sent again after the second, the broker would retain an announcement of the past."""
    listener = connect(broker.port, "listener", "round")
    wait_for(listener, Connected)
    sender = connect(relay.port, "sender")
    wait_for(sender, Connected)
    relay.hold()
    sender.publish("round", b"first", retain=True)
    assert wait_for(listener, Received) == Received("round", b"first", False)
    relay.cut()
    wait_for(sender, Disconnected)
    sender.publish("round", b"second", retain=True)
    assert wait_for(sender, Connected) == Connected(first=False)
    assert sender.flush(20)
    late = connect(broker.port, "late", "round")
    assert wait_for(late, Received) == Received("round", b"second", True)


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
