"""What a connection subscribes to and publishes by a real broker, and why TLS was refused."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable

import pytest
from relay import Relay

from edgefl.address import Address
from edgefl.errors import BrokerError, NoBroker
from edgefl.mqtt import Connection
from edgefl.transport import Connected, Received
from edgefl_broker import RunningBroker


def until(connection: Connection, topic: str) -> list[tuple[str, bool]]:
    """(topic, whether it was retained) of what arrives, up to a message on this topic."""
    found: list[tuple[str, bool]] = []
    while not found or found[-1][0] != topic:
        event = connection.inbox.get(timeout=20)
        if isinstance(event, Received):
            found.append((event.topic, event.retained))
    return found


def test_topics_come_and_go_while_connected_and_the_others_survive_a_lost_line(
    broker: RunningBroker, relay: Relay, connect: Callable[..., Connection]
) -> None:
    listener, speaker = connect(relay.port, "listener"), connect(broker.port, "speaker")

    settled = (f"settled/{number}" for number in itertools.count())

    def told(*topics: str) -> list[str]:
        """What the listener hears when all of these are published; the last one it does."""
        done = next(settled)  # it hears this when the broker knows what it subscribed to before
        speaker.publish(done, b"x", retain=True)
        assert speaker.flush()
        listener.subscribe(done)
        until(listener, done)
        for topic in topics:
            speaker.publish(topic, b"x")
        return [topic for topic, _ in until(listener, topics[-1])]

    listener.subscribe("a", "b")
    listener.subscribe("b", "end")
    assert told("a", "b", "c", "end") == ["a", "b", "end"]
    listener.unsubscribe("a")
    listener.unsubscribe("never subscribed")
    assert told("a", "b", "end") == ["b", "end"]
    relay.cut()
    while not isinstance(listener.inbox.get(timeout=20), Connected):
        pass
    assert told("a", "b", "end") == ["b", "end"]


def test_nothing_is_retained_that_is_not_asked_to_be(broker: RunningBroker, connect: Callable[..., Connection]) -> None:
    speaker, late = connect(broker.port, "speaker"), connect(broker.port, "late")
    speaker.publish("kept/plain", b"x")
    speaker.publish("kept/retained", b"x", retain=True)
    assert speaker.flush()
    late.subscribe("kept/#")
    assert until(late, "kept/retained") == [("kept/retained", True)]
    speaker.publish("kept/end", b"x")
    assert until(late, "kept/end") == [("kept/end", False)]


# --- TLS --------------------------------------------------------------------------------------------------------------


def refused(error: ssl.SSLError, monkeypatch: pytest.MonkeyPatch) -> BrokerError:
    """What is said when the handshake ends so."""
    connection = Connection(Address("pi", 8883), "x")

    def fails(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(connection._client, "connect", fails)
    with pytest.raises(BrokerError) as caught:
        connection.connect()
    return caught.value


def test_a_certificate_of_the_future_means_that_a_clock_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pi has no clock of its own: it may be 1970 until the network tells. So the same is tried again."""
    error = ssl.SSLCertVerificationError("not yet valid")
    error.reason, error.verify_code, error.verify_message = "CERTIFICATE_VERIFY_FAILED", 9, "not yet valid"
    said = refused(error, monkeypatch)
    assert isinstance(said, NoBroker) and said.hint == "is this machine's clock right?"
    assert said.message == "no secure connection to mqtt://pi:8883: CERTIFICATE_VERIFY_FAILED (not yet valid)"


def test_any_other_certificate_that_does_not_hold_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ssl.SSLCertVerificationError("self-signed certificate")
    error.reason, error.verify_code, error.verify_message = "CERTIFICATE_VERIFY_FAILED", 18, "self-signed certificate"
    said = refused(error, monkeypatch)
    assert not isinstance(said, NoBroker) and said.hint == "check --ca, and that the port speaks TLS"


def test_who_hangs_up_in_the_handshake_may_be_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
    error.reason = "UNEXPECTED_EOF_WHILE_READING"
    said = refused(error, monkeypatch)
    assert isinstance(said, NoBroker) and said.hint == "check that the port speaks TLS"
    assert said.message == "no secure connection to mqtt://pi:8883: UNEXPECTED_EOF_WHILE_READING"
