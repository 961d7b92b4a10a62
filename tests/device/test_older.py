"""A device that is older than a task says so: the round goes on without it, and the next ask finds it there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import RUN, Broker, World

from edgefl import protocol
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.methods.fedavg import FedAvg
from edgefl.protocol import TaskFailed
from edgefl_device.data.dataset import Dataset

OLD = "pi-2"  # its edgefl lacks a field
HALF = RoundSettings(min_devices=3, quorum=0.5, deadline_s=60.0)


class Newer(Broker):
    """To the old device, the tasks of some rounds have something more."""

    more: dict[str, Any]
    rounds: tuple[int, ...] = (1,)

    def _deliver(self, client: str, topic: str, payload: bytes, retained: bool) -> None:
        if topic == protocol.round_topic(RUN) and client == OLD:
            header = json.loads(payload[12 : (stop := 12 + int.from_bytes(payload[8:12], "little"))])
            if header["round"] in self.rounds:
                header["tasks"][0] |= self.more
                payload = framed(json.dumps(header).encode(), payload[stop:])
        super()._deliver(client, topic, payload, retained)


def framed(header: bytes, body: bytes) -> bytes:
    rest = len(header).to_bytes(4, "little") + header + body
    return b"efl\x01" + zlib.crc32(rest).to_bytes(4, "little") + rest


@pytest.fixture
def world(tmp_path: Path, regression: Bundle) -> Iterator[World]:
    data = {f"pi-{i}": Dataset(np.eye(2, dtype=np.float32), np.ones(2, np.float32)) for i in (1, 2, 3)}
    method = FedAvg({"w": regression.weights()["w"]}, rounds=3, batch_size=0, learning_rate=0.25)
    made = World(tmp_path, regression, method, data, broker=Newer(), settings=HALF)
    made.broker.more = {"patience": 3}  # type: ignore[attr-defined]
    yield made
    made.store.close()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"patience": 3}, "field 'patience'"),
        ({"encoding": "int8"}, "field 'encoding' is 'int8'"),
        ({"feed": "stream"}, "field 'feed' is 'stream'"),
    ],
)
def test_it_says_what_it_lacks_and_takes_part_again(world: World, more: dict[str, Any], says: str) -> None:
    world.broker.more = more  # type: ignore[attr-defined]
    world.run()
    assert [devices for _, devices in world.rounds] == [
        ("pi-1", "pi-2", "pi-3"),
        ("pi-1", "pi-3"),
        ("pi-1", "pi-2", "pi-3"),
    ]
    assert world.events("failed") == [(OLD, f"this device is older than the task: {says}")]
    assert world.now_s < 1  # nobody waited for a deadline
    assert [round for round, _ in world.nodes[OLD].jobs] == [0, 2]
    assert f"round 2: cannot do it: this device is older than the task: {says}" in world.nodes[OLD].log


def test_it_says_so_once_however_often_it_hears_the_task(world: World) -> None:
    world.broker.duplicate = 1.0
    world.run()
    assert len(world.broker.said(TaskFailed)) == 1


def test_an_older_device_that_was_killed_says_so_again(world: World) -> None:
    world.run(lambda: bool(world.broker.said(TaskFailed)))
    world.nodes[OLD].start()
    world.run()
    assert world.events("failed")[0][0] == OLD
    assert [devices for _, devices in world.rounds][2] == ("pi-1", "pi-2", "pi-3")


def test_where_all_are_older_the_round_is_asked_again_and_answered_again(world: World) -> None:
    """The aggregator may be told by a person to go back to what the fleet knows; nobody has to restart a device."""
    world.broker.rounds = (0,)  # type: ignore[attr-defined]
    for name in ("pi-1", "pi-3"):
        world.broker.forget(name)
        del world.nodes[name]
    world.settings = RoundSettings(min_devices=1, quorum=1.0, deadline_s=60.0)
    world.restart_aggregator()
    world.run(lambda: len(world.broker.said(TaskFailed)) == 3, within_s=600)
    assert not world.rounds
    world.broker.rounds = ()  # type: ignore[attr-defined]
    world.run(within_s=600)
    assert [devices for _, devices in world.rounds] == [(OLD,)] * 3
