"""Real brokers and paho clients. Waiting is always for an event, with a deadline."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import pytest
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgefl_broker.engines import find_program

DEADLINE_S = 30.0


class Client:
    """A paho client whose callbacks fill queues. `connack` holds CONNACK's (reason code, properties)."""

    def __init__(self, **options: Any) -> None:
        options = {"protocol": paho.MQTTv5} | options
        self.paho = paho.Client(paho.CallbackAPIVersion.VERSION2, **options)
        self.paho.reconnect_delay_set(min_delay=0.01, max_delay=1)  # type: ignore[arg-type]
        self.received: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.subscribed: queue.Queue[list[ReasonCode]] = queue.Queue()
        self.connack: queue.Queue[tuple[ReasonCode, Properties | None]] = queue.Queue()
        self.disconnected: queue.Queue[ReasonCode] = queue.Queue()
        self.published: queue.Queue[ReasonCode] = queue.Queue()
        self.paho.on_message = lambda _client, _data, message: self.received.put(message)
        self.paho.on_subscribe = lambda _client, _data, _mid, codes, _properties: self.subscribed.put(codes)
        self.paho.on_connect = lambda _client, _data, _flags, code, properties: self.connack.put((code, properties))
        self.paho.on_disconnect = lambda _client, _data, _flags, code, _properties: self.disconnected.put(code)
        self.paho.on_publish = lambda _client, _data, _mid, code, _properties: self.published.put(code)

    def connect(self, url: str) -> tuple[ReasonCode, Properties | None]:
        address = urlsplit(url)
        assert address.hostname and address.port
        self.paho.connect(address.hostname, address.port, keepalive=60)
        self.paho.loop_start()
        return self.connack.get(timeout=DEADLINE_S)

    def subscribe(self, topic: str) -> ReasonCode:
        self.paho.subscribe(topic, qos=1)
        return self.subscribed.get(timeout=DEADLINE_S)[0]

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> ReasonCode:
        """Publish with QoS 1; the PUBACK's reason."""
        self.paho.publish(topic, payload, qos=1, retain=retain)
        return self.published.get(timeout=DEADLINE_S)

    def next(self) -> paho.MQTTMessage:
        return self.received.get(timeout=DEADLINE_S)

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    """`client(url, **paho_options)`: a connected client, closed when the test ends. url=None does not connect."""
    made: list[Client] = []

    def make(url: str | None, **options: Any) -> Client:
        new = Client(**options)
        made.append(new)
        if url is not None:
            code, _ = new.connect(url)
            assert not code.is_failure, code
        return new

    yield make
    for each in made:
        each.close()


@pytest.fixture
def mosquitto() -> str:
    """The path of mosquitto. `make test` installs it where it can; CI must have it."""
    program = find_program("mosquitto")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not installed, and CI must test with it")
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    return program


@pytest.fixture(params=["mosquitto", "iotcore"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto")
    name: str = request.param
    return name
