"""Work that is of no use any more is given up, and everybody hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from descent import fedavg, make_data
from memory import World

from edgefl import protocol
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.protocol import TaskFailed

SLOW = "pi-3"


@pytest.fixture
def world(tmp_path: Path, regression: Bundle) -> Iterator[World]:
    settings = RoundSettings(min_devices=3, quorum=0.5, deadline_s=60.0)
    made = World(tmp_path, regression, fedavg(regression, rounds=12), make_data(2), settings=settings)
    yield made
    made.store.close()


def test_a_device_that_was_too_slow_says_what_it_gives_up_and_is_asked_again(world: World) -> None:
    slow = world.nodes[SLOW]
    awake = slow.step

    def asleep() -> None:
        slow._job = None  # its session is at work on it, and nothing comes of it

    slow.step = asleep  # type: ignore[method-assign]
    world.run(lambda: len(world.rounds) == 1)
    assert world.now_s >= 60 and slow.session.working is not None
    world.run(lambda: bool(world.events("given up")))
    assert world.events("given up") == [(SLOW, "given up: round 2 has begun")]
    assert slow.log[-1] == "round 1: given up: round 2 has begun"
    assert [(message.device, message.round) for message in world.broker.said(TaskFailed)] == [(SLOW, 0)]
    slow.step = awake  # type: ignore[method-assign]
    world.run()
    assert [SLOW in devices for _, devices in world.rounds] == [False, *[True] * 11]


def test_a_reply_that_nobody_took_is_dropped_with_a_line(world: World) -> None:
    world.broker.lost = lambda client, topic: topic == protocol.up_topic("toy", SLOW)
    world.run(lambda: len(world.rounds) == 2 and not world.broker.pending)
    assert "round 1: its reply is dropped: round 2 has begun" in world.nodes[SLOW].log
    assert "round 1: its reply is dropped: round 2 has begun" not in world.nodes["pi-1"].log
