"""Where a broker is, as a person writes it, and the certificates with which it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from edgefl.errors import ConfigError, nearest
from edgefl.packet_limit import LEAST_PACKET_BYTES

HINT = "a broker address looks like mqtt://127.0.0.1:1883 or mqtts://broker.example:8883"
_WEBSOCKETS = "edgefl speaks MQTT over TCP: give the broker's mqtt:// or mqtts:// port (1883, 8883), not its websockets"
_ESCAPES = "in a user name and a password, write # as %23, @ as %40, / as %2F, ? as %3F, : as %3A and % as %25"
_OPTIONS = ("protocol", "packet")
_MOST_PACKET_BYTES = 268_435_455 + 5  # of MQTT


@dataclass(frozen=True)
class Address:
    """mqtt://[user:password@]host[:1883] or mqtts://host[:8883]. `?protocol=3.1.1`: for a broker without MQTT 5;
    `?packet=131072`: for one that takes no larger packets and does not say so; both with &."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    mqtt5: bool = True
    packet_bytes: int | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ConfigError for anything that is not such an address; it shows no password."""
        shown = repr(re.sub("//.*@", "//***@", url, flags=re.DOTALL))
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"broker address {shown}: {error}", hint=HINT) from None
        if "@" in url and "@" not in parts.netloc:  # what a port or a host was taken for may be half of a password
            raise ConfigError(f"broker address {shown} cannot be read", hint=_ESCAPES)
        if parts.scheme in ("ws", "wss"):
            raise ConfigError(f"broker address {shown}: websockets", hint=_WEBSOCKETS)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"broker address {shown}: {error}", hint=HINT) from None
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ConfigError(f"broker address {shown} cannot be read", hint=HINT)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"broker address {shown}: unknown option {name!r}", hint=nearest(name, _OPTIONS))
        tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=port or (8883 if tls else 1883),
            tls=tls,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            mqtt5=_is_mqtt5(options.get("protocol", "5"), shown),
            packet_bytes=_packet_bytes(options.get("packet"), shown),
        )

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


@dataclass(frozen=True)
class Tls:
    """Certificate files (PEM) for mqtts://: the authority to trust, and our own certificate with its key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def _is_mqtt5(version: str, shown: str) -> bool:
    if version not in ("5", "3.1.1"):
        raise ConfigError(f"broker address {shown}: MQTT protocol {version!r}; expected 5 or 3.1.1", hint=HINT)
    return version == "5"


def _packet_bytes(text: str | None, shown: str) -> int | None:
    if text is None:
        return None
    size = int(text) if re.fullmatch("[0-9]{1,12}", text) else 0
    if not LEAST_PACKET_BYTES <= size <= _MOST_PACKET_BYTES:
        raise ConfigError(
            f"broker address {shown}: packets of {text!r} bytes; expected {LEAST_PACKET_BYTES} to {_MOST_PACKET_BYTES}",
            hint="for example ?packet=131072, the limit of AWS IoT",
        )
    return size
