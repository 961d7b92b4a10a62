"""A broker forgets a dead run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Process, json_of

from edgefl import protocol
from edgefl.address import Address
from edgefl.errors import ConfigError
from edgefl.mqtt import Connection
from edgefl.protocol import AggregatorStatus
from edgefl.runs.forget import forget
from edgefl.transport import Connected, Received
from edgefl_broker import RunningBroker


@pytest.fixture
def speaker(broker: RunningBroker) -> Connection:
    connection = Connection(Address.parse(broker.url), "speaker")
    connection.connect()
    assert connection.inbox.get(timeout=20) == Connected(first=True)
    return connection


def test_what_was_kept_of_a_run_is_gone_and_other_runs_stay(
    start: Callable[..., Process], broker: RunningBroker, speaker: Connection, tmp_path: Path
) -> None:
    topics = [
        protocol.aggregator_topic("dead"),
        protocol.device_topic("dead", "pi-1"),
        protocol.device_topic("dead", "pi-2"),
        protocol.round_topic("dead"),
    ]
    for topic in (*topics, protocol.round_topic("other")):
        speaker.publish(topic, b"something", retain=True)
    assert speaker.flush()
    code, out, err = start("broker", "forget", "dead", "--broker", broker.url, "--format", "json").end()
    assert code == 0, err
    assert json_of(out) == {"run": "dead", "forgotten": topics}
    speaker.subscribe("edgefl/#")
    assert speaker.inbox.get(timeout=20) == Received(protocol.round_topic("other"), b"something", True)
    speaker.close()
    code, _, err = start("broker", "forget", "dead", "--broker", broker.url).end()
    assert code == 3 and f"error: the broker at {broker.url} has kept nothing of run dead" in err


def test_a_run_that_is_up_is_not_forgotten(broker: RunningBroker, speaker: Connection) -> None:
    frame, over = protocol.encode(AggregatorStatus(1, "up")), threading.Event()

    def speak() -> None:
        while not over.wait(0.05):
            speaker.publish(protocol.aggregator_topic("alive"), frame, retain=True)

    speaking = threading.Thread(target=speak)
    speaking.start()
    with pytest.raises(ConfigError, match="run alive is up"):
        forget("alive", broker.url)
    over.set()
    speaking.join()
    speaker.close()
