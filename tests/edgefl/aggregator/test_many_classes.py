"""Devices with several bundles in one run: each keeps its class, and all fuse what they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from descent import ROUNDS, MakeWorld, assert_exact, fedavg
from memory import RUN, Broker, Node, World
from toy import write_regression

from edgefl import protocol
from edgefl.aggregator.classes import DeviceClass, parse_condition
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.manifest import parse_manifest
from edgefl.protocol import Presence

MEMORY = {"pi-1": {"memory_mb": 8000}, "pi-2": {"memory_mb": 500}, "pi-3": {"memory_mb": 500}}


@pytest.fixture
def two_classes(tmp_path: Path) -> list[DeviceClass]:
    """Bundles of two classes that share w, under the name of its group in one of them."""
    return [
        DeviceClass("large", write_regression(tmp_path / "large", name="large"), parse_condition("memory_mb >= 4000")),
        DeviceClass("small", write_regression(tmp_path / "small", name="little", group="w")),
    ]


def classes_run(make_world: MakeWorld, classes: list[DeviceClass], **options: Any) -> World:
    method = options.pop("method", None) or fedavg(classes[0].bundle)
    return make_world(classes[0].bundle, classes=classes, method=method, capabilities=MEMORY, **options)


def bundle_of(node: Node) -> list[str]:
    """The names of the bundles that a device has downloaded."""
    paths = sorted(node.directory.glob("bundles/*/manifest.json"))
    return [parse_manifest(path.read_bytes(), where=str(path)).name for path in paths]


def test_every_device_has_the_bundle_of_its_class_and_all_fuse_what_they_share(
    make_world: MakeWorld, two_classes: list[DeviceClass]
) -> None:
    world = classes_run(make_world, two_classes)
    world.run()
    assert_exact(world)
    assert {name: bundle_of(node) for name, node in world.nodes.items()} == {
        "pi-1": ["large"],
        "pi-2": ["little"],
        "pi-3": ["little"],
    }


def test_a_device_keeps_its_class_whatever_it_states_later(
    make_world: MakeWorld, two_classes: list[DeviceClass]
) -> None:
    """Its private state fits no other bundle. Kills of both sides change nothing about it."""
    world = classes_run(make_world, two_classes)
    world.run(lambda: len(world.rounds) == 1)
    for node in world.nodes.values():
        node.capabilities["memory_mb"] = 8500 - int(node.capabilities["memory_mb"])
        node.start()
    world.run(lambda: len(world.rounds) == 2)
    world.restart_aggregator()
    world.run()
    assert_exact(world)
    assert bundle_of(world.nodes["pi-1"]) == ["large"] and bundle_of(world.nodes["pi-2"]) == ["little"]
    assert world.store.classes() == {"pi-1": "large", "pi-2": "small", "pi-3": "small"}


@pytest.mark.parametrize("seed", range(3))
def test_many_bundles_on_a_bad_network(make_world: MakeWorld, two_classes: list[DeviceClass], seed: int) -> None:
    world = classes_run(make_world, two_classes, broker=Broker(drop=0.3, duplicate=0.2, reorder=True, seed=seed))
    world.run(lambda: world.coordinator.finished)
    assert_exact(world)


def test_a_device_without_a_bundle_is_told_and_the_run_goes_on(
    make_world: MakeWorld, two_classes: list[DeviceClass]
) -> None:
    settings = RoundSettings(min_devices=1, quorum=1.0, deadline_s=60.0)
    world = classes_run(make_world, two_classes[:1], settings=settings)
    world.run(lambda: world.nodes["pi-1"].done)
    assert [devices for _, devices in world.rounds] == [("pi-1",)] * ROUNDS
    text = "no [[bundle]] of the run file is for memory_mb 500, cores 0"
    assert {device for device, said in world.events("no bundle") if text in said} == {"pi-2", "pi-3"}
    assert any(f"waiting: {text}" in line for line in world.nodes["pi-2"].log)
    assert world.store.classes() == {"pi-1": "large"}


def test_the_settings_of_a_class_count_more_than_a_tasks(make_world: MakeWorld, two_classes: list[DeviceClass]) -> None:
    """A class that trains at rate 0 leaves the weights as they were."""
    still = [replace(one, settings={"learning_rate": 0.0}) for one in two_classes]
    world = classes_run(make_world, still)
    world.run()
    assert world.coordinator.state.tensors["w"].tolist() == [0, 0]


def test_an_assignment_that_is_lost_is_asked_for_again(make_world: MakeWorld, regression: Bundle) -> None:
    lost: list[str] = []

    def is_lost(client: str, topic: str) -> bool:
        if topic == protocol.down_topic(RUN, "pi-2") and not lost:
            lost.append(topic)
            return True
        return False

    world = make_world(regression, broker=Broker(lost=is_lost))
    world.run()
    assert_exact(world)
    said = [p for p in world.broker.said(Presence) if p.device == "pi-2"]
    assert len(lost) == 1 and len(said) == 3  # the last asks whether the run is finished
