"""What a run knows of its devices: devices.json."""

from __future__ import annotations

from pathlib import Path

import pytest
from descent import MakeWorld
from memory import with_tensors

from edgefl.aggregator.fleet import Fleet, Known
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store, read_fleet
from edgefl.bundle import Bundle
from edgefl.protocol import Presence


def up(**stated: object) -> Presence:
    return Presence("pi-1", 1, "up", **stated)  # type: ignore[arg-type]


def test_what_a_device_states_and_what_was_seen_of_it() -> None:
    fleet = Fleet({})
    fleet.states(up(cores=4, memory_mb=900, runtime="ort", train_examples=7, test_examples=2), "cnn", (), 1.5)
    fleet.heard("pi-1", 100, 2.5)
    fleet.heard("pi-1", 11, 3.5)
    fleet.failed("pi-1"), fleet.missed(["pi-1"]), fleet.missed(["pi-1"])
    fleet.heard("nobody", 1, 0.0), fleet.failed("nobody"), fleet.missed(["nobody"])
    assert fleet.known == {"pi-1": Known(7, 2, "cnn", 900, 4, "ort", None, "", 1, 2, 1.5, 3.5, 111)}


def test_it_states_more_when_it_knows_the_bundle_and_forgets_nothing_at_its_next_start() -> None:
    fleet = Fleet({"pi-1": Known(failures=3, first_seen_s=1.0)})
    assert not fleet.states(up(), "cnn", ("cat", "dog"), 9.0)
    assert fleet.states(up(data="scaled by 255", label_counts=[5, 0]), "cnn", ("cat", "dog"), 9.0)
    assert not fleet.states(up(data="scaled by 255"), "cnn", ("cat", "dog"), 9.0)  # said already
    fleet.states(up(label_counts=[5, 0]), "cnn", (), 9.0)
    assert fleet.known["pi-1"] == Known(
        name="cnn", failures=3, first_seen_s=1.0, data="scaled by 255", label_counts={"0": 5, "1": 0}
    )


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", "")
    known = {"pi-1": Known(7, 2, "cnn", label_counts={"cat": 5}, last_seen_s=3.5)}
    store.save_fleet(known)
    assert store.fleet() == read_fleet(tmp_path / "run") == known
    assert b'"class":"cnn"' in (tmp_path / "run" / "devices.json").read_bytes()
    store.close()


@pytest.mark.parametrize("text", ["", "[]", '{"devices": {"a": 1}}', "\xff"])
def test_a_damaged_one_stops_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "devices.json").write_bytes(text.encode("latin-1"))
    assert read_fleet(tmp_path) == read_fleet(tmp_path / "nowhere") == {}


def test_a_run_counts_what_devices_failed_and_missed(regression: Bundle, make_world: MakeWorld) -> None:
    world = make_world(regression, settings=RoundSettings(min_devices=3, quorum=0.3, deadline_s=60.0))
    world.nodes["pi-2"].tamper = lambda outcome: with_tensors(outcome, other=outcome.tensors["w"])
    world.broker.lost = lambda client, topic: topic.endswith("up/0/pi-3")
    world.run(lambda: world.coordinator.finished)
    known = world.aggregator.fleet.known
    assert [(known[name].failures, known[name].missed) for name in sorted(known)] == [(0, 0), (2, 0), (0, 2)]
    assert known["pi-1"].bytes_up == sum(record.bytes_up_by_device["pi-1"] for record in world.records)
    assert (known["pi-1"].examples, known["pi-1"].name) == (2, "all")
    assert known["pi-1"].last_seen_s >= 60
