"""Devices that come, go, restart and share a name."""

from __future__ import annotations

import pytest
from descent import MakeWorld, assert_exact, make_data, trained_once_a_round
from memory import RUN, Node

from edgefl import protocol
from edgefl.bundle import Bundle


@pytest.mark.parametrize(("twin", "stays"), [("a second pi-1", "the first"), ("the other pi-1", "the second")])
def test_two_devices_with_one_name_are_a_conflict_for_one_of_them(
    make_world: MakeWorld, regression: Bundle, twin: str, stays: str
) -> None:
    """The broker knows a client by its name: the second throws the first out, which connects again, and so on."""
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1)
    first = world.nodes["pi-1"]
    world.broker.forget("pi-1")
    world.broker.publish(first.will)
    second = world.nodes["twin"] = Node(world, "pi-1", make_data(2)["pi-1"], client=twin, directory="elsewhere")
    world.run(lambda: not world.broker.pending)
    first.reconnect()
    world.run()
    assert (first.conflict, second.conflict) == (stays == "the second", stays == "the first")
    assert_exact(world)


def test_a_restarted_device_is_no_conflict_with_its_own_retained_presence(
    make_world: MakeWorld, regression: Bundle
) -> None:
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1)
    for node in world.nodes.values():
        node.start()
    world.run()
    assert not any(node.conflict for node in world.nodes.values())
    assert_exact(world)


@pytest.mark.parametrize("replaced_by", ["reconnect", "start"])
def test_a_late_will_of_an_older_connection_is_ignored(
    make_world: MakeWorld, regression: Bundle, replaced_by: str
) -> None:
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1)
    device = world.nodes["pi-1"]
    old = device.will
    getattr(device, replaced_by)()
    world.run(lambda: not world.broker.pending)
    assert world.receive(old.topic, old.payload, world.now_s) == []
    assert "pi-1" in world.coordinator.present
    assert world.receive(device.will.topic, device.will.payload, world.now_s) == []
    assert "pi-1" not in world.coordinator.present
    device.reconnect()
    world.run()
    assert_exact(world)


def test_a_device_that_sleeps_in_the_middle_of_a_round_and_comes_back(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle)
    device = world.nodes["pi-2"]
    world.run(lambda: bool(device.jobs))
    world.broker.forget("pi-2")
    world.broker.pending = [p for p in world.broker.pending if p[1] != protocol.up_topic(RUN, "pi-2")]
    world.broker.publish(device.session.leave())
    del world.nodes["pi-2"]
    world.run(lambda: world.now_s > 200, within_s=300)  # quorum is everybody: the round is asked again, and waits
    assert world.rounds == []
    assert world.events("asked again")
    world.nodes["pi-2"] = device
    device.start()
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)
