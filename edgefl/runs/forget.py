"""Withdraws what a broker has kept of a run."""

from __future__ import annotations

import queue
import re

from edgefl import protocol
from edgefl.address import Address, Tls
from edgefl.errors import BrokerError, ConfigError, ProtocolError
from edgefl.mqtt import Connection
from edgefl.protocol import NAME, AggregatorStatus
from edgefl.transport import Broken, Received

SETTLE_S = 1.0  # what a broker has kept arrives together; wait so long for more


def forget(run: str, broker: str, *, tls: Tls | None = None) -> list[str]:
    """Have the broker forget a run that is over or dead: the topics of which it had kept a word.

    A device hears no more of that run, and waits for another. Raises ConfigError where the broker has kept nothing of
    it, or somebody says meanwhile that it is up; BrokerError.
    """
    if not re.search(NAME, run):
        raise ConfigError(f"run {run!r} cannot be", hint="a-z, 0-9, _ and -, at most 36 characters")
    connection = Connection(Address.parse(broker), f"edgefl-forget-{run}", tls=tls)
    connection.subscribe(f"{protocol.ROOT}/{run}/#")
    connection.connect()
    try:
        topics = _kept(connection, run)
        for topic in topics:
            connection.publish(topic, b"", retain=True)  # MQTT: an empty message takes the place of what was kept
        if not connection.flush():
            raise BrokerError(f"the broker at {connection.address} does not answer; it may still know run {run}")
        return topics
    finally:
        connection.close()


def _kept(connection: Connection, run: str) -> list[str]:
    topics: set[str] = set()
    while True:
        try:
            event = connection.inbox.get(timeout=SETTLE_S)
        except queue.Empty:
            if not topics:
                raise ConfigError(f"the broker at {connection.address} has kept nothing of run {run}") from None
            return sorted(topics)
        if isinstance(event, Broken):
            raise event.error
        if isinstance(event, Received) and event.retained:
            topics.add(event.topic)
        elif isinstance(event, Received) and _says_up(event):
            raise ConfigError(f"run {run} is up: its aggregator speaks", hint="stop that first")


def _says_up(event: Received) -> bool:
    try:
        message, _ = protocol.decode(event.payload)
    except ProtocolError:
        return False
    return isinstance(message, AggregatorStatus) and message.status == "up"
