"""Why a broker says no, in the numbers of MQTT 5, and what to do about it."""

from __future__ import annotations

SESSION_TAKEN_OVER = 142
PACKET_TOO_LARGE = 149
NO_RETAIN = 154
NO_QOS = 155

_PASSWORDS = "check user and password in the address (mqtt://user:password@host), or the certificate"
_ACCESS = "check its access list, and that our name is the one of our certificate"
_FULL = "the broker is full or busy: raise its limits (mosquitto: max_connections, max_queued_bytes)"
_HINTS = {
    132: "a broker without MQTT 5: add ?protocol=3.1.1 to the address",
    133: "the broker takes no client of such a name: edgefl-RUN-NAME; shorter names may help",
    134: _PASSWORDS,
    135: _PASSWORDS,
    136: "is it starting, or being stopped? A broker without MQTT 5: add ?protocol=3.1.1 to the address",
    137: _FULL,
    138: "the broker has banned this client: see its log",
    140: _PASSWORDS,
    PACKET_TOO_LARGE: "raise the broker's packet limit (mosquitto: max_packet_size)",
    151: _FULL,
    NO_RETAIN: "edgefl needs retained messages: let the broker keep them (mosquitto: retain_available true)",
    NO_QOS: "edgefl needs messages with QoS 1: let the broker take them (mosquitto: max_qos 2)",
    156: "the broker is not the one to use now: ask who runs it for its new address",
    157: "the broker has moved: ask who runs it for its new address",
    159: _FULL,
}
# Unspecified, implementation specific, server unavailable or busy, quota exceeded, connection rate exceeded.
_FOR_NOW = {128, 131, 136, 137, 151, 159}


def name(lacks: int) -> str:
    """What a broker lacks that accepts us all the same."""
    return {NO_RETAIN: "it keeps no messages", NO_QOS: "it takes messages with QoS 0 only"}[lacks]


def hint(reason: int) -> str:
    """What to do about a refused connection."""
    return _HINTS.get(reason, "see the broker's log")


def is_for_now(reason: int) -> bool:
    """Whether a broker that refuses a connection may accept it later."""
    return reason in _FOR_NOW


def message_hint(reason: int) -> str:
    """What to do about a refused message."""
    return _ACCESS if reason in (128, 135) else hint(reason)
