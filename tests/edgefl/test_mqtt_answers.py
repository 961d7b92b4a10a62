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
from edgefl.errors import BrokerError, ConfigError
from edgefl.mqtt import Address, Connection, Tls
from edgefl.transport import Broken, Connected, Disconnected, Event

PASSWORDS = "check user and password in the address (mqtt://user:password@host), or the certificate"
OLDER = "a broker without MQTT 5: add ?protocol=3.1.1 to the address"


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
        (136, "Server unavailable", OLDER),
    ],
)
def test_a_refusal_is_said_with_what_may_help(reason: int, says: str, hint: str) -> None:
    with scripted(refusal(reason), hang_up=True) as broker:
        connection = Connection(broker.address, "pi-1")
        assert refused(connection.connect) == (f"the broker at {broker.address} refuses us: {says}", hint)


def test_nobody_at_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
    message, hint = refused(Connection(address, "pi-1").connect)
    assert message == f"no broker answers at {address} (Connection refused)"
    assert hint == "start one with `edgefl broker`, or check the address"


def test_a_host_that_is_no_name() -> None:
    message, _ = refused(Connection(Address("a" * 70 + ".b", 1), "pi-1").connect)
    assert message.startswith("no broker answers at mqtt://aaa") and "None" not in message


def test_a_service_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_S", 0.1)
    with scripted(b"") as broker:
        connection = Connection(broker.address, "pi-1")
        message, hint = refused(connection.connect)
        connection._client.disconnect()
    assert message == f"{broker.address} accepts connections but does not answer as an MQTT broker"
    assert hint == "is it another service, or a TLS port? A broker without MQTT 5: add ?protocol=3.1.1"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho does not close its socket
def test_a_port_that_speaks_no_tls() -> None:
    with scripted(b"HTTP/1.1 400 no\r\n\r\n", hang_up=True) as broker:
        secure = Address("127.0.0.1", broker.address.port, tls=True)
        message, hint = refused(Connection(secure, "pi-1").connect)
    assert message.startswith(f"no secure connection to mqtts://127.0.0.1:{secure.port}: ") and "None" not in message
    assert hint == "check --ca, and that the port speaks TLS"
    gc.collect()  # here, where the warning is expected


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
        assert connection.max_packet_bytes is None
        connection.close(timeout_s=0)
    assert broker.connects[0][2:] == b"\0\4MQTT\4\2\0\x1e\0\4pi-1"


def test_a_broker_says_how_large_a_packet_it_takes() -> None:
    with scripted(b"\x20\x08\x00\x00\x05\x27\x00\x00\x10\x00") as broker, connected(broker) as connection:
        assert connection.max_packet_bytes == 4096
        connection.publish("t", bytes(4096 - 65))
        message, hint = refused(lambda: connection.publish("t", bytes(4096 - 64)))
    assert message == f"the broker at {broker.address} takes packets of at most 4096 bytes; a message on t has 4032"
    assert hint == "raise the broker's packet limit (mosquitto: max_packet_size)"


# --- later answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "says", "hint"),
    [
        (
            142,
            "another client with the same name connected to {}",
            "give every device its own --name; one aggregator carries a run",
        ),
        (
            149,
            "the broker at {} refuses our packets: Packet too large",
            "raise the broker's packet limit (mosquitto: max_packet_size)",
        ),
    ],
)
def test_a_goodbye_for_good(reason: int, says: str, hint: str) -> None:
    with scripted(ACCEPTED + goodbye(reason), hang_up=True) as broker:
        connection = Connection(broker.address, "pi-1")
        connection.publish("t", b"hello")
        connection.connect()
        assert connection.inbox.get(timeout=20) == Connected(first=True)
        assert broken(connection.inbox.get(timeout=20)) == (says.format(broker.address), hint)
        assert connection.flush(20)  # nobody waits for what will not be sent
        connection.close()


def test_a_goodbye_for_now() -> None:
    with scripted(ACCEPTED + goodbye(139), ACCEPTED) as broker, connected(broker) as connection:
        assert connection.inbox.get(timeout=20) == Disconnected("Server shutting down")
        assert connection.inbox.get(timeout=20) == Connected(first=False)


@pytest.mark.parametrize(("reason", "says", "hint"), [(135, "Not authorized", PASSWORDS), (133, "", OLDER)])
def test_refused_for_good_when_we_come_back(reason: int, says: str, hint: str) -> None:
    with scripted(ACCEPTED + goodbye(139), refusal(reason), hang_up=True) as broker, connected(broker) as connection:
        assert isinstance(connection.inbox.get(timeout=20), Disconnected)
        message, found = broken(connection.inbox.get(timeout=20))
        assert message.startswith(f"the broker at {broker.address} refuses us: {says}") and found == hint


def test_refused_for_now_when_we_come_back() -> None:
    with scripted(ACCEPTED + goodbye(139), refusal(136), ACCEPTED) as broker, connected(broker) as connection:
        assert connection.inbox.get(timeout=20) == Disconnected("Server shutting down")
        assert connection.inbox.get(timeout=20) == Disconnected("Server unavailable")
        events = [connection.inbox.get(timeout=20)]
        while events[-1] != Connected(first=False):
            events.append(connection.inbox.get(timeout=20))


def test_a_message_that_is_refused() -> None:
    """The first message we send has number 1; the broker's answer is there before."""
    refuses = b"\x40\x03\x00\x01\x87"
    with scripted(ACCEPTED + refuses) as broker:
        connection = Connection(broker.address, "pi-1")
        connection.publish("t", b"hello")
        connection.connect()
        assert connection.inbox.get(timeout=20) == Connected(first=True)
        message, hint = broken(connection.inbox.get(timeout=20))
        connection.close(timeout_s=0)
    assert message == f"the broker at {broker.address} refuses a message: Not authorized"
    assert hint == "check its access list"


def test_an_error_of_our_own_in_a_callback_ends_the_connection_with_a_word() -> None:
    connection = Connection(Address("127.0.0.1", 1), "pi-1")

    def wrong(what: str) -> None:
        raise KeyError(what)

    connection._caught(wrong)("topic")
    assert broken(connection.inbox.get(timeout=20)) == (
        "the connection to mqtt://127.0.0.1:1 failed: KeyError: 'topic'",
        "see --debug",
    )


# --- addresses and certificates -----------------------------------------------------------------------------------

HINT = "a broker address looks like mqtt://127.0.0.1:1883 or mqtts://broker.example:8883"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h", "broker address 'http://h' cannot be read"),
        ("mqtt://", "broker address 'mqtt://' cannot be read"),
        ("mqtt://h?protocol=4", "broker address 'mqtt://h?protocol=4': MQTT protocol '4'; expected 5 or 3.1.1"),
        ("mqtt://h:99999", "broker address 'mqtt://h:99999': Port out of range 0-65535"),
    ],
)
def test_an_address_that_cannot_be_read_shows_one_that_can(url: str, message: str) -> None:
    assert refused(lambda: Address.parse(url), ConfigError) == (message, HINT)


def test_the_parts_of_an_address() -> None:
    assert Address.parse("mqtts://broker.example") == Address("broker.example", 8883, True)
    assert Address.parse("mqtt://ada@h:5?protocol=5") == Address("h", 5, username="ada")
    assert Address.parse("mqtt://a%20b:c%2Fd@h") == Address("h", 1883, False, "a b", "c/d")
    assert str(Address("h", 1883)) == "mqtt://h:1883" and str(Address("h", 8883, True)) == "mqtts://h:8883"


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
