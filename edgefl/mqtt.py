"""The only file that imports an MQTT client: one connection, whose events arrive in a queue.

paho runs every callback on one thread; a callback that blocks trips the keep-alive, and one that raises kills the
thread silently. So callbacks here only put events into `inbox`, and outgoing messages wait in an `Outbox`, which feeds
paho as the broker acknowledges them.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgefl import refusals
from edgefl.address import Address, Tls
from edgefl.errors import BrokerError, ConfigError, NameTaken, NoBroker
from edgefl.outbox import IN_FLIGHT, Outbox, Waiting
from edgefl.packet_limit import OVERHEAD_BYTES, PacketLimit
from edgefl.patience import LONGEST_PAUSE_S, Pauses
from edgefl.transport import Broken, Connected, Disconnected, Drained, Event, Received

EXPIRES = "MessageExpiryInterval"  # the property of MQTT 5

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
QUICK_S = 2.0  # a connection that is lost within so long does not count as one: the next pause is longer
QUICK_LOSSES = 5  # in a row, then we say what may be wrong
NOT_YET_VALID = 9  # OpenSSL: X509_V_ERR_CERT_NOT_YET_VALID


class _Secured(ssl.SSLSocket):
    """A socket that is closed when its handshake fails: paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class Connection:
    """One MQTT client. `will` is asked before every (re)connect what the broker should say when we vanish."""

    def __init__(
        self,
        address: Address,
        client_id: str,
        *,
        will: Callable[[], tuple[str, bytes]] | None = None,
        tls: Tls | None = None,
        folder: Path | None = None,
    ) -> None:
        """`folder`: where to remember how large a packet the broker takes, where that had to be found out."""
        self.address = address
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._limit = PacketLimit(str(address), address.packet_bytes, folder)
        self._known_limit = self._limit.most_bytes  # as whoever publishes knows it
        self._will = will
        self._topics: list[str] = []
        self._outbox = Outbox(self._give, drained=lambda: self.inbox.put(Drained()))
        self._pauses = Pauses()
        self._made_s = 0.0
        self._quick_losses = 0
        self._first = True
        self._closing = False
        self._answer: queue.SimpleQueue[BrokerError | None] = queue.SimpleQueue()
        self._client_id = client_id
        self._tls = tls
        self._client = self._make_client()

    # --- verbs ------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect and wait for the broker's answer. Raises NoBroker when it does not come, or is "not now": then this
        may be called again; BrokerError when it is no.

        Later losses are repaired by themselves, for ever, with growing, random delays.
        """
        self._closing = False
        try:
            self._client.connect(self.address.host, self.address.port, keepalive=KEEPALIVE_S)
        except ssl.SSLError as error:
            raise self._not_secure(error) from error
        except UnicodeError as error:
            raise BrokerError(f"no broker can be at {self.address} ({error})", hint="check the address") from error
        except OSError as error:
            raise NoBroker(
                f"no broker answers at {self.address} ({getattr(error, 'strerror', None) or error})",
                hint="start one with `edgefl broker`, or check the address",
            ) from error
        self._client.loop_start()
        try:
            refusal = self._answer.get(timeout=CONNECT_TIMEOUT_S)
        except queue.Empty:
            refusal = NoBroker(
                f"{self.address} accepts connections but does not answer as an MQTT broker",
                hint="is it another service, or a TLS port? A broker without MQTT 5: add ?protocol=3.1.1",
            )
        if refusal is not None:
            self._end_attempt()
            raise refusal

    def _not_secure(self, error: ssl.SSLError) -> BrokerError:
        message = f"no secure connection to {self.address}: {error.reason or error}"
        if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == NOT_YET_VALID:
            return NoBroker(f"{message} ({error.verify_message})", hint="is this machine's clock right?")
        if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):  # it hangs up: perhaps it is starting
            return NoBroker(message, hint="check that the port speaks TLS")
        return BrokerError(message, hint="check --ca, and that the port speaks TLS")

    def _end_attempt(self) -> None:
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()
        self._client = self._make_client()  # paho's cannot begin again: it leaves its sockets open
        self._answer = queue.SimpleQueue()

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

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expires_s: int = 0) -> None:
        """Queue one message for QoS 1. Raises BrokerError when the broker takes no packet so large. Where it speaks
        MQTT 5 it keeps the message for `expires_s` seconds; 0: for ever.

        Where a limit was found meanwhile, such a message is left out: `Connected` says that there is another limit, and
        whoever gets no answer says everything again.
        """
        message, most_bytes = Waiting(topic, payload, retain, expires_s), self._limit.most_bytes
        if most_bytes is not None and message.packet_bytes > most_bytes:
            if most_bytes != self._known_limit:
                return
            raise BrokerError(
                f"the broker at {self.address} takes packets of at most {most_bytes} bytes; "
                f"a message on {topic} has {len(payload)}",
                hint=refusals.hint(refusals.PACKET_TOO_LARGE),
            )
        self._outbox.put(message)
        self._feed()

    def room(self) -> int:
        """Bytes that may be published now without holding too much; where there is no room, `Drained` says when."""
        return self._outbox.room()

    def unsent_bytes(self) -> int:
        """Bytes that were published and that the broker has not acknowledged."""
        return self._outbox.unsent_bytes()

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
        """Payload bytes, at most `largest`, of a message that this broker takes, as far as is known.

        Raises BrokerError below `smallest`.
        """
        self._known_limit = self._limit.most_bytes
        if self._known_limit is None:
            return largest
        size = min(largest, self._known_limit - OVERHEAD_BYTES)
        if size < smallest:
            raise BrokerError(
                f"the broker at {self.address} takes packets of at most {self._known_limit} bytes; "
                f"edgefl needs {smallest + OVERHEAD_BYTES}",
                hint=refusals.hint(refusals.PACKET_TOO_LARGE),
            )
        return size

    # --- paho -------------------------------------------------------------------------------------------------

    def _make_client(self) -> paho.Client:
        version = paho.MQTTv5 if self.address.mqtt5 else paho.MQTTv311
        clean = {} if self.address.mqtt5 else {"clean_session": True}
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=version, **clean)  # type: ignore[arg-type]
        client.max_inflight_messages_set(IN_FLIGHT)
        if self.address.username is not None:
            client.username_pw_set(self.address.username, self.address.password)
        if self.address.tls:
            self._set_tls(client, self._tls or Tls())
        client.reconnect_delay_set(min_delay=self._pauses.next_s(), max_delay=LONGEST_PAUSE_S)  # type: ignore[arg-type]
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
            context.sslsocket_class = _Secured
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
                what = f"the connection to {self.address} failed: {type(error).__name__}: {error}"
                self._break(BrokerError(what, hint="see --debug"))

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
        for lacks, word in ((refusals.NO_RETAIN, "RetainAvailable"), (refusals.NO_QOS, "MaximumQoS")):
            if getattr(properties, word, 1) == 0:
                message = f"the broker at {self.address} cannot carry edgefl: {refusals.name(lacks)}"
                self._give_up(BrokerError(message, hint=refusals.hint(lacks)))
                return
        self._made_s = time.monotonic()
        self._limit.announced(getattr(properties, "MaximumPacketSize", None))
        first, self._first = self._first, False
        if topics := tuple(self._topics):
            client.subscribe([(t, 1) for t in topics])
        self._outbox.take_back(
            lambda: [
                Waiting(m.topic, bytes(m.payload), m.retain, getattr(m.properties, EXPIRES, 0))
                for m in client.drop_out_messages()
            ]
        )
        if (most_bytes := self._limit.most_bytes) is not None:
            self._outbox.drop(most_bytes)  # what was published before the limit was known would never pass
        if first:
            self._answer.put(None)
        self.inbox.put(Connected(first))
        self._feed()

    def _refused(self, reason: ReasonCode) -> None:
        message = f"the broker at {self.address} refuses us: {reason}"
        if not self._first:
            self.inbox.put(Disconnected(f"refused: {reason}"))  # it knew us before, and may again
        elif refusals.is_for_now(reason.value):
            self._answer.put(NoBroker(message, hint=refusals.hint(reason.value)))
        else:
            self._answer.put(BrokerError(message, hint=refusals.hint(reason.value)))

    def _give_up(self, error: BrokerError) -> None:
        """Nothing mends this: said to whoever waits for the connection, or has it."""
        if self._first:
            self._answer.put(error)
        else:
            self._break(error)

    def _on_disconnect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if self._closing:
            return
        if self._first:
            hint = "does the broker want --cert and --key, or another protocol? Without MQTT 5: add ?protocol=3.1.1"
            self._answer.put(NoBroker(f"{self.address} closes the connection: {reason}", hint=hint))
        elif reason.value == refusals.SESSION_TAKEN_OVER:
            self._break(
                NameTaken(
                    f"another client with the same name connected to {self.address}",
                    hint="give every device its own --name; one aggregator carries a run",
                )
            )
        else:
            self.inbox.put(Disconnected(self._lost(str(reason), reason.value == refusals.PACKET_TOO_LARGE)))

    def _lost(self, reason: str, too_large: bool) -> str:
        """Makes the next pause longer after a connection that did not last; the reason, with what may be wrong."""
        quick = time.monotonic() - self._made_s < QUICK_S
        self._quick_losses = self._quick_losses + 1 if quick else 0
        smaller = self._limit.lost(self._outbox.largest_under_way(), too_large=too_large)
        if smaller or not quick:
            self._pauses.begin_again()
        self._client.reconnect_delay_set(min_delay=self._pauses.next_s(), max_delay=LONGEST_PAUSE_S)  # type: ignore[arg-type]
        if smaller:
            return f"{reason}; packets have at most {self._limit.most_bytes} bytes from now on"
        if too_large:
            return f"{reason}; {refusals.hint(refusals.PACKET_TOO_LARGE)}"
        if self._quick_losses >= QUICK_LOSSES:
            return f"{reason}, again and again: is its packet limit too small, or does another client use our name?"
        return reason

    def _break(self, error: BrokerError) -> None:
        self._closing = True
        self._client.disconnect()
        self._outbox.give_up()
        self.inbox.put(Broken(error))

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        self.inbox.put(Received(message.topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, client: paho.Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties
    ) -> None:
        packet_bytes = self._outbox.acknowledged()
        if reason.is_failure:
            message = f"the broker at {self.address} refuses a message: {reason}"
            self._break(BrokerError(message, hint=refusals.message_hint(reason.value)))
            return
        self._limit.taken(packet_bytes)
        self._feed()

    def _feed(self) -> None:
        self._outbox.feed(self._client.is_connected)

    def _give(self, message: Waiting) -> None:
        properties = None
        if message.expires_s and self.address.mqtt5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            setattr(properties, EXPIRES, message.expires_s)
        self._client.publish(message.topic, message.payload, qos=1, retain=message.retain, properties=properties)
