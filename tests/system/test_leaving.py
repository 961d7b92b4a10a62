"""How a device leaves: politely, so that nobody waits for it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Process

from edgefl import protocol
from edgefl.address import Address
from edgefl.mqtt import Connection
from edgefl.protocol import AggregatorStatus, Presence
from edgefl.transport import Received
from edgefl_broker import RunningBroker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_device_that_is_asked_to_leave_says_that_it_sleeps(
    start: Callable[..., Process], broker: RunningBroker, parts: Path, number: int
) -> None:
    connection = Connection(Address.parse(broker.url), "watcher")
    connection.subscribe(protocol.device_topic("lab", "pi-1"))
    connection.connect()
    up = protocol.encode(AggregatorStatus(1, "up"))
    connection.publish(protocol.aggregator_topic("lab"), up, retain=True)
    device = start(
        "device", "--broker", broker.url, "--name", "pi-1", "--data", f"{parts / 'pi-1'}.npz", "--format", "jsonl"
    )
    assert said(connection) == "up"
    device.child.send_signal(number)
    code, out, err = device.end()
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["event"] == "said" and events[0]["text"].startswith(f"connected to {broker.url}; waiting")
    assert events[-1]["event"] == "left"
    assert code == 130 and "left; " in err and "keeps what is needed to come back" in err
    assert said(connection) == "sleeping"
    connection.close()


def said(connection: Connection) -> str:
    """The next status of a device."""
    while True:
        event = connection.inbox.get(timeout=20)
        if isinstance(event, Received):
            presence, _ = protocol.decode(event.payload)
            assert isinstance(presence, Presence)
            return presence.status
