"""What a connection makes of a broker's answers, byte for byte: refusals, limits, goodbyes, and addresses."""

from __future__ import annotations

import gc
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_broker import ACCEPTED, Scripted, goodbye, refusal, scripted

from edgefl import mqtt
from edgefl.address import Address, Tls
from edgefl.errors import BrokerError, ConfigError, NameTaken, NoBroker
from edgefl.mqtt import Connection
from edgefl.transport import Broken, Connected, Disconnected, Event

PASSWORDS = "check user and password in the address (mqtt://user:password@host), or the certificate"
OLDER = "a broker without MQTT 5: add ?protocol=3.1.1 to the address"
ACCESS = "check its access list, and that our name is the one of our certificate"
FULL = "the broker is full or busy: raise its limits (mosquitto: max_connections, max_queued_bytes)"
RETAIN = "edgefl needs retained messages: let the broker keep them (mosquitto: retain_available true)"
QOS = "edgefl needs messages with QoS 1: let the broker take them (mosquitto: max_qos 2)"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two connections we wait a hundredth of the usual time."""
    uniform = random.uniform
    monkeypatch.setattr(random, "uniform", lambda least, most: uniform(least, most) / 100)


@contextmanager
def connected(broker: Scripted) -> Iterator[Connection]:
    connection = Connection(broker.address, "pi-1")
    connection.connect()
    assert connection.inbox.get(timeout=20) == Connected(first=True)
    yield connection
    connection.close(timeout_s=0)


def refused(call: Callable[[], object], kind: type[BrokerError | ConfigError] = BrokerError) -> tuple[str, str | None]:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.message, caught.value.hint


def broken(event: Event) -> tuple[str, str | None]:
    assert isinstance(event, Broken)
    return event.error.message, event.error.hint


# --- the first answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "says", "hint"),
    [
        (134, "Bad user name or password", PASSWORDS),
        (135, "Not authorized", PASSWORDS),
        (140, "Bad authentication method", PASSWORDS),
        (132, "Unsupported protocol version", OLDER),
        (151, "Quota exceeded", FULL),
        (154, "Retain not supported", RETAIN),
        (155, "QoS not supported", QOS),
    ],
)
def test_a_refusal_is_said_with_what_may_help(reason: int, says: str, hint: str) -> None:
    with scripted(refusal(reason), hang_up=True) as broker:
        connection = Connection(broker.address, "pi-1")
        assert refused(connection.connect) == (f"the broker at {broker.address} refuses us: {says}", hint)


@pytest.mark.parametrize(
    ("property", "says", "hint"),
    [(b"\x25\x00", "it keeps no messages", RETAIN), (b"\x24\x00", "it takes messages with QoS 0 only", QOS)],
)
def test_a_broker_that_lacks_what_we_need_is_refused_though_it_accepts_us(
    property: bytes, says: str, hint: str
) -> None:
    with scripted(b"\x20\x05\x00\x00\x02" + property) as broker:
        connection = Connection(broker.address, "pi-1")
        assert refused(connection.connect) == (f"the broker at {broker.address} cannot carry edgefl: {says}", hint)


@pytest.mark.parametrize("reason", [128, 131, 136, 137, 151, 159])
def test_who_is_refused_for_now_may_ask_again(reason: int) -> None:
    with scripted(refusal(reason), b"", ACCEPTED) as broker:
        connection = Connection(broker.address, "pi-1")
        for _ in range(2):  # the second time the broker hangs up without a word
            with pytest.raises(NoBroker):
                connection.connect()
        connection.connect()
        connection.close(timeout_s=0)


@pytest.mark.parametrize("reason", [132, 134, 135, 154])
def test_who_is_refused_for_good_need_not(reason: int) -> None:
    with scripted(refusal(reason), hang_up=True) as broker:
        with pytest.raises(BrokerError) as caught:
            Connection(broker.address, "pi-1").connect()
        assert not isinstance(caught.value, NoBroker)


def test_nobody_at_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
    message, hint = refused(Connection(address, "pi-1").connect)
    assert message == f"no broker answers at {address} (Connection refused)"
    assert hint == "start one with `edgefl broker`, or check the address"


def test_a_host_that_is_no_name() -> None:
    message, _ = refused(Connection(Address("a" * 70 + ".b", 1), "pi-1").connect)
    assert message.startswith("no broker can be at mqtt://aaa") and "None" not in message


def test_a_service_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_S", 0.1)
    with scripted(b"") as broker:
        connection = Connection(broker.address, "pi-1")
        message, hint = refused(connection.connect)
    assert message == f"{broker.address} accepts connections but does not answer as an MQTT broker"
    assert hint == "is it another service, or a TLS port? A broker without MQTT 5: add ?protocol=3.1.1"


def test_a_port_that_speaks_no_tls() -> None:
    with scripted(b"HTTP/1.1 400 no\r\n\r\n", hang_up=True) as broker:
        secure = Address("127.0.0.1", broker.address.port, tls=True)
        message, hint = refused(Connection(secure, "pi-1").connect)
    assert message.startswith(f"no secure connection to mqtts://127.0.0.1:{secure.port}: ") and "None" not in message
    assert hint == "check --ca, and that the port speaks TLS"
    gc.collect()  # nothing is left to close


def test_what_a_device_says_of_itself_when_it_connects() -> None:
    """The flags: user name 128, password 64, will retained 32, its QoS 8, will 4, clean start 2; keep-alive 30 s."""
    with scripted(ACCEPTED) as broker:
        address = Address("127.0.0.1", broker.address.port, username="ada", password="pass")
        connection = Connection(address, "pi-1", will=lambda: ("gone", b"down"))
        connection.connect()
        connection.close(timeout_s=0)
    payload = b"".join(len(part).to_bytes(2, "big") + part for part in (b"gone", b"down", b"ada", b"pass"))
    (said,) = broker.connects
    assert said[2:] == b"\0\4MQTT\5" + bytes([128 + 64 + 32 + 8 + 4 + 2]) + b"\0\x1e" + b"\0" + b"\0\4pi-1\0" + payload


def test_a_broker_of_before_mqtt_5() -> None:
    with scripted(b"\x20\x02\x00\x00") as broker:
        connection = Connection(Address("127.0.0.1", broker.address.port, mqtt5=False), "pi-1")
        connection.connect()
        assert connection._limit.most_bytes is None
        connection.close(timeout_s=0)
    assert broker.connects[0][2:] == b"\0\4MQTT\4\2\0\x1e\0\4pi-1"


def test_a_broker_says_how_large_a_packet_it_takes() -> None:
    with scripted(b"\x20\x08\x00\x00\x05\x27\x00\x00\x18\x00") as broker, connected(broker) as connection:
        assert connection._limit.most_bytes == 6144
        assert connection.part_bytes(65_536, 4096) == 5120
        connection.publish("t", bytes(6144 - 65))
        message, hint = refused(lambda: connection.publish("t", bytes(6144 - 64)))
    assert message == f"the broker at {broker.address} takes packets of at most 6144 bytes; a message on t has 6080"
    assert hint == "raise the broker's packet limit (mosquitto: max_packet_size)"


# --- later answers ------------------------------------------------------------------------------------------------


def test_a_goodbye_for_good() -> None:
    """Another client has our name."""
    with scripted(ACCEPTED + goodbye(142), hang_up=True) as broker:
        connection = Connection(broker.address, "pi-1")
        connection.publish("t", b"hello")
        connection.connect()
        assert connection.inbox.get(timeout=20) == Connected(first=True)
        event = connection.inbox.get(timeout=20)
        assert broken(event) == (
            f"another client with the same name connected to {broker.address}",
            "give every device its own --name; one aggregator carries a run",
        )
        assert isinstance(event, Broken) and isinstance(event.error, NameTaken)
        assert connection.flush(20)  # nobody waits for what will not be sent
        connection.close()


def test_a_packet_that_the_broker_calls_too_large_is_not_tried_twice() -> None:
    with scripted(ACCEPTED + goodbye(149), ACCEPTED) as broker:
        connection = Connection(broker.address, "pi-1")
        connection.publish("t", bytes(100_000 - 65))
        connection.connect()
        assert connection.inbox.get(timeout=20) == Connected(first=True)
        why = "Packet too large; packets have at most 50000 bytes from now on"
        assert connection.inbox.get(timeout=20) == Disconnected(why)
        assert connection.inbox.get(timeout=20) == Connected(first=False)
        assert connection.flush(20)  # it is left out
        connection.close()


def test_a_goodbye_for_now() -> None:
    with scripted(ACCEPTED + goodbye(139), ACCEPTED) as broker, connected(broker) as connection:
        assert connection.inbox.get(timeout=20) == Disconnected("Server shutting down")
        assert connection.inbox.get(timeout=20) == Connected(first=False)


@pytest.mark.parametrize("reason", [133, 135, 136])
def test_who_was_accepted_once_comes_back_whatever_the_broker_says(reason: int) -> None:
    """Its access list may be the wrong one for a while."""
    with scripted(ACCEPTED + goodbye(139), refusal(reason), ACCEPTED) as broker, connected(broker) as connection:
        assert connection.inbox.get(timeout=20) == Disconnected("Server shutting down")
        event = connection.inbox.get(timeout=20)
        assert isinstance(event, Disconnected) and event.reason.startswith("refused: ")
        while connection.inbox.get(timeout=20) != Connected(first=False):
            pass


@pytest.mark.parametrize(
    ("reason", "says", "wanted"),
    [
        (135, "Not authorized", ACCESS),
        (151, "Quota exceeded", FULL),
    ],
)
def test_a_message_that_is_refused(reason: int, says: str, wanted: str) -> None:
    """The first message we send has number 1; the broker's answer is there before."""
    refuses = b"\x40\x03\x00\x01" + bytes([reason])
    with scripted(ACCEPTED + refuses) as broker:
        connection = Connection(broker.address, "pi-1")
        connection.publish("t", b"hello")
        connection.connect()
        assert connection.inbox.get(timeout=20) == Connected(first=True)
        message, hint = broken(connection.inbox.get(timeout=20))
        connection.close(timeout_s=0)
    assert message == f"the broker at {broker.address} refuses a message: {says}"
    assert hint == wanted


def test_an_error_of_our_own_in_a_callback_ends_the_connection_with_a_word() -> None:
    connection = Connection(Address("127.0.0.1", 1), "pi-1")

    def wrong(what: str) -> None:
        raise KeyError(what)

    connection._caught(wrong)("topic")
    assert broken(connection.inbox.get(timeout=20)) == (
        "the connection to mqtt://127.0.0.1:1 failed: KeyError: 'topic'",
        "see --debug",
    )


# --- certificates ---------------------------------------------------------------------------------------------------


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    secure = Address("127.0.0.1", 8883, tls=True)
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    for half in (Tls(cert=file), Tls(key=file)):
        assert refused(lambda half=half: Connection(secure, "pi-1", tls=half), ConfigError) == (
            "a certificate and its key belong together",
            "give --cert and --key",
        )
    gone = tmp_path / "gone.pem"
    for name, tls in (("ca", Tls(ca=gone)), ("cert", Tls(cert=gone, key=file)), ("key", Tls(cert=file, key=gone))):
        message, _ = refused(lambda tls=tls: Connection(secure, "pi-1", tls=tls), ConfigError)
        assert message == f"no {name} file at {gone}"
    for tls in (Tls(ca=file), Tls(cert=file, key=file)):
        message, _ = refused(lambda tls=tls: Connection(secure, "pi-1", tls=tls), ConfigError)
        assert message.startswith("the TLS files cannot be used: ")
    Connection(Address("127.0.0.1", 1883), "pi-1", tls=Tls(ca=file))  # without TLS nobody reads them
