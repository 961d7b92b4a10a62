"""Addresses of brokers: what may be said, and what is said of one that cannot be read. Never a password."""

from __future__ import annotations

import pytest

from edgefl.address import HINT, Address
from edgefl.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://127.0.0.1", Address("127.0.0.1", 1883)),
        ("mqtts://broker.example", Address("broker.example", 8883, True)),
        ("mqtts://u:p%40ss@broker.example:9", Address("broker.example", 9, True, "u", "p@ss")),
        ("mqtt://u:p@ss@h", Address("h", 1883, username="u", password="p@ss")),
        ("mqtt://ada@h:5?protocol=5", Address("h", 5, username="ada")),
        ("mqtt://a%20b:c%2Fd@h", Address("h", 1883, False, "a b", "c/d")),
        ("mqtt://h?protocol=3.1.1", Address("h", 1883, mqtt5=False)),
        ("mqtt://h?packet=131072&protocol=3.1.1", Address("h", 1883, mqtt5=False, packet_bytes=131_072)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert Address.parse(url) == address
    assert str(Address.parse(url)) == f"{'mqtts' if address.tls else 'mqtt'}://{address.host}:{address.port}"


@pytest.mark.parametrize(
    ("url", "message", "hint"),
    [
        ("", "'' cannot be read", HINT),
        ("h:1", "'h:1' cannot be read", HINT),
        ("http://h", "'http://h' cannot be read", HINT),
        ("mqtt://", "'mqtt://' cannot be read", HINT),
        ("mqtt://[::1", "'mqtt://[::1': Invalid IPv6 URL", HINT),
        ("mqtt://h:99999", "'mqtt://h:99999': Port out of range 0-65535", HINT),
        ("mqtt://u:secret@h:99999", "'mqtt://***@h:99999': Port out of range 0-65535", HINT),
        ("mqtt://h?protocol=4", "'mqtt://h?protocol=4': MQTT protocol '4'; expected 5 or 3.1.1", HINT),
        ("mqtt://h?packt=1", "'mqtt://h?packt=1': unknown option 'packt'", "did you mean 'packet'?"),
    ],
)
def test_addresses_that_cannot_be_read(url: str, message: str, hint: str) -> None:
    assert refusal(url) == (f"broker address {message}", hint)


@pytest.mark.parametrize("password", ["se#cret", "se/cret", "se?cret", "1#secret"])
def test_a_password_with_a_mark_of_addresses_is_not_shown_and_can_be_escaped(password: str) -> None:
    message, hint = refusal(f"mqtts://ada:{password}@broker.example:8883")
    assert message == "broker address 'mqtts://***@broker.example:8883' cannot be read"
    assert hint is not None and "write # as %23, @ as %40" in hint
    escaped = password.replace("#", "%23").replace("/", "%2F").replace("?", "%3F")
    assert Address.parse(f"mqtt://ada:{escaped}@h").password == password


@pytest.mark.parametrize("url", ["ws://h:9001", "wss://ada:secret@h/mqtt"])
def test_websockets_are_another_port(url: str) -> None:
    message, hint = refusal(url)
    assert message.endswith(": websockets") and "secret" not in message
    assert hint is not None and "mqtt:// or mqtts:// port" in hint


@pytest.mark.parametrize("size", ["0", "5119", "-1", "1e6", "128k", "268435461", ""])
def test_packets_that_are_too_small_or_no_number(size: str) -> None:
    message, _ = refusal(f"mqtt://h?packet={size}")
    assert message.endswith(f"packets of {size!r} bytes; expected 5120 to 268435460")


def refusal(url: str) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as refused:
        Address.parse(url)
    return refused.value.message, refused.value.hint
