"""The only file that imports an MQTT client: one connection, whose events arrive in a queue.

paho runs every callback on one thread; a callback that blocks trips the keep-alive, and one that raises kills the
thread silently. So callbacks here only put events into `inbox`, and outgoing messages wait in an `Outbox`, which feeds
paho as the broker acknowledges them.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgefl.errors import BrokerError, ConfigError
from edgefl.outbox import IN_FLIGHT, Outbox, Waiting
from edgefl.transport import Broken, Connected, Disconnected, Drained, Event, Received

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
PACKET_OVERHEAD_BYTES = 1024  # topic, properties and our header, beside a chunk
QUICK_S = 2.0  # a connection that is lost within so long is a quick loss
QUICK_LOSSES = 5  # in a row

SESSION_TAKEN_OVER = 142
PACKET_TOO_LARGE = 149
NOT_AUTHORISED = {134, 135, 140}
REFUSED_FOR_GOOD = NOT_AUTHORISED | {132, 133}  # and: unsupported protocol version, client identifier not valid


@dataclass(frozen=True)
class Address:
    """Where a broker is: mqtt://[user:password@]host[:1883] or mqtts://host[:8883]; `?protocol=3.1.1` for a
    broker without MQTT 5."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    mqtt5: bool = True

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ConfigError for anything that is not such an address."""
        hint = "a broker address looks like mqtt://127.0.0.1:1883 or mqtts://broker.example:8883"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"broker address {url!r}: {error}", hint=hint) from None
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ConfigError(f"broker address {url!r} cannot be read", hint=hint)
        version = parse_qs(parts.query).get("protocol", ["5"])[-1]
        if version not in ("5", "3.1.1"):
            raise ConfigError(f"broker address {url!r}: MQTT protocol {version!r}; expected 5 or 3.1.1", hint=hint)
        tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=port or (8883 if tls else 1883),
            tls=tls,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            mqtt5=version == "5",
        )

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


@dataclass(frozen=True)
class Tls:
    """Certificate files (PEM) for mqtts://: the authority to trust, and our own certificate with its key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class QuickLosses:
    """Connections that are lost as soon as they stand: so many in a row say that the broker does not want us."""

    def __init__(self) -> None:
        self._made_s = 0.0
        self._count = 0

    def made(self, now_s: float) -> None:
        """A connection stands."""
        self._made_s = now_s

    def lost(self, now_s: float) -> bool:
        """It is lost; whether that is once too often."""
        self._count = self._count + 1 if now_s - self._made_s < QUICK_S else 0
        return self._count >= QUICK_LOSSES


class Connection:
    """One MQTT client. `will` is asked before every (re)connect what the broker should say when we vanish."""

    def __init__(
        self,
        address: Address,
        client_id: str,
        *,
        will: Callable[[], tuple[str, bytes]] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.max_packet_bytes: int | None = None
        self._will = will
        self._topics: list[str] = []
        self._outbox = Outbox(self._give, drained=lambda: self.inbox.put(Drained()))
        self._losses = QuickLosses()
        self._first = True
        self._closing = False
        self._answer: queue.SimpleQueue[BrokerError | None] = queue.SimpleQueue()
        self._client = self._make_client(client_id, tls)

    # --- verbs ------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect and wait for the broker's answer. Raises BrokerError when it does not come or says no.

        Later losses are repaired by themselves, with growing, random delays.
        """
        try:
            self._client.connect(self.address.host, self.address.port, keepalive=KEEPALIVE_S)
        except ssl.SSLError as error:
            raise BrokerError(
                f"no secure connection to {self.address}: {error.reason or error}",
                hint="check --ca, and that the port speaks TLS",
            ) from error
        except (OSError, UnicodeError) as error:
            raise BrokerError(
                f"no broker answers at {self.address} ({getattr(error, 'strerror', None) or error})",
                hint="start one with `edgefl broker`, or check the address",
            ) from error
        self._client.loop_start()
        try:
            refusal = self._answer.get(timeout=CONNECT_TIMEOUT_S)
        except queue.Empty:
            refusal = BrokerError(
                f"{self.address} accepts connections but does not answer as an MQTT broker",
                hint="is it another service, or a TLS port? A broker without MQTT 5: add ?protocol=3.1.1",
            )
        if refusal is not None:
            self._closing = True
            self._client.loop_stop()
            raise refusal

    def subscribe(self, *topics: str) -> None:
        """Receive what comes on these topics, now and after every reconnect."""
        new = [t for t in topics if t not in self._topics]
        self._topics += new
        if new and self._client.is_connected():
            self._client.subscribe([(t, 1) for t in new])

    def unsubscribe(self, topic: str) -> None:
        if topic in self._topics:
            self._topics.remove(topic)
            self._client.unsubscribe(topic)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue one message for QoS 1. Raises BrokerError when the broker takes no packet so large."""
        if self.max_packet_bytes is not None and len(payload) + len(topic) + 64 > self.max_packet_bytes:
            raise BrokerError(
                f"the broker at {self.address} takes packets of at most {self.max_packet_bytes} bytes; "
                f"a message on {topic} has {len(payload)}",
                hint="raise the broker's packet limit (mosquitto: max_packet_size)",
            )
        self._outbox.put(Waiting(topic, payload, retain))
        self._feed()

    def room(self) -> int:
        """Bytes that may be published now without holding too much; where there is no room, `Drained` says when."""
        return self._outbox.room()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the broker has acknowledged everything; False when it takes too long."""
        return self._outbox.wait(timeout_s)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Send what waits, say goodbye (no will), end the thread."""
        self.flush(timeout_s)
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()

    def part_bytes(self, largest: int, smallest: int) -> int:
        """Payload bytes, at most `largest`, of a message that this broker takes.

        Raises BrokerError below `smallest`.
        """
        if self.max_packet_bytes is None:
            return largest
        size = min(largest, self.max_packet_bytes - PACKET_OVERHEAD_BYTES)
        if size < smallest:
            raise BrokerError(
                f"the broker at {self.address} takes packets of at most {self.max_packet_bytes} bytes; "
                f"edgefl needs {smallest + PACKET_OVERHEAD_BYTES}",
                hint="raise the broker's packet limit (mosquitto: max_packet_size)",
            )
        return size

    # --- paho -------------------------------------------------------------------------------------------------

    def _make_client(self, client_id: str, tls: Tls | None) -> paho.Client:
        version = paho.MQTTv5 if self.address.mqtt5 else paho.MQTTv311
        clean = {} if self.address.mqtt5 else {"clean_session": True}
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version, **clean)  # type: ignore[arg-type]
        client.max_inflight_messages_set(IN_FLIGHT)
        # Half a second to half a minute, random, so that a fleet does not come back all at once.
        client.reconnect_delay_set(min_delay=random.uniform(0.2, 0.8), max_delay=random.uniform(15, 45))  # type: ignore[arg-type]
        if self.address.username is not None:
            client.username_pw_set(self.address.username, self.address.password)
        if self.address.tls:
            self._set_tls(client, tls or Tls())
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._caught(self._on_connect)
        client.on_disconnect = self._caught(self._on_disconnect)
        client.on_message = self._caught(self._on_message)
        client.on_publish = self._caught(self._on_publish)
        return client

    def _set_tls(self, client: paho.Client, tls: Tls) -> None:
        if (tls.cert is None) != (tls.key is None):
            raise ConfigError("a certificate and its key belong together", hint="give --cert and --key")
        for name, path in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
            if path is not None and not path.is_file():
                raise ConfigError(f"no {name} file at {path}")
        try:
            context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
            if tls.cert is not None:
                context.load_cert_chain(tls.cert, tls.key)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"the TLS files cannot be used: {error}") from error
        client.tls_set_context(context)

    def _caught(self, callback: Callable[..., None]) -> Callable[..., None]:
        """An exception in a callback would end paho's thread without a word."""

        def run(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as error:
                self._answer.put(BrokerError(f"the connection to {self.address} failed: {error}"))
                self._break(f"the connection to {self.address} failed: {type(error).__name__}: {error}", "see --debug")

        return run

    def _on_pre_connect(self, client: paho.Client, userdata: object) -> None:
        if self._will is not None:
            topic, payload = self._will()
            client.will_set(topic, payload, qos=1, retain=True)

    def _on_socket_open(self, client: paho.Client, userdata: object, sock: Any) -> None:
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a small round trip: 88 ms -> 0.4 ms

    def _on_connect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._refused(reason)
            return
        self._losses.made(time.monotonic())
        self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        first, self._first = self._first, False
        if topics := tuple(self._topics):
            client.subscribe([(t, 1) for t in topics])
        self._outbox.take_back(
            lambda: [Waiting(m.topic, bytes(m.payload), m.retain) for m in client.drop_out_messages()]
        )
        if first:
            self._answer.put(None)
        self.inbox.put(Connected(first))
        self._feed()

    def _refused(self, reason: ReasonCode) -> None:
        if reason.value in NOT_AUTHORISED:
            hint = "check user and password in the address (mqtt://user:password@host), or the certificate"
        else:
            hint = "a broker without MQTT 5: add ?protocol=3.1.1 to the address"
        if self._first:
            self._answer.put(BrokerError(f"the broker at {self.address} refuses us: {reason}", hint=hint))
        elif reason.value in REFUSED_FOR_GOOD:
            self._break(f"the broker at {self.address} refuses us: {reason}", hint)
        else:
            self.inbox.put(Disconnected(str(reason)))  # busy, or starting: paho tries again

    def _on_disconnect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if self._closing:
            return
        if self._first:
            hint = "does the broker want --cert and --key, or another protocol? Without MQTT 5: add ?protocol=3.1.1"
            self._answer.put(BrokerError(f"{self.address} closes the connection: {reason}", hint=hint))
        elif reason.value == SESSION_TAKEN_OVER:
            self._break(
                f"another client with the same name connected to {self.address}",
                "give every device its own --name; one aggregator carries a run",
            )
        elif reason.value == PACKET_TOO_LARGE:
            self._break(
                f"the broker at {self.address} refuses our packets: {reason}",
                "raise the broker's packet limit (mosquitto: max_packet_size)",
            )
        else:
            if self._losses.lost(time.monotonic()):
                self._break(
                    f"the broker at {self.address} keeps closing the connection without a reason",
                    "its packet limit may be too small (iotcore: max_payload_size), or another client uses our name",
                )
            else:
                self.inbox.put(Disconnected(str(reason)))

    def _break(self, message: str, hint: str) -> None:
        self._closing = True
        self._client.disconnect()
        self._outbox.give_up()
        self.inbox.put(Broken(BrokerError(message, hint=hint)))

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        self.inbox.put(Received(message.topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, client: paho.Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties
    ) -> None:
        self._outbox.acknowledged()
        if reason.is_failure:
            self._break(f"the broker at {self.address} refuses a message: {reason}", "check its access list")
            return
        self._feed()

    def _feed(self) -> None:
        self._outbox.feed(self._client.is_connected)

    def _give(self, message: Waiting) -> None:
        self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)
