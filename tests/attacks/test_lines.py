"""Whatever a device says is one bounded line for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory import RUN, World

from edgefl import protocol
from edgefl.aggregator.classes import DeviceClass, parse_condition
from edgefl.aggregator.session import NOTE_LENGTH
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.cli.teller import Teller
from edgefl.errors import one_line
from edgefl.methods.fedavg import FedAvg
from edgefl.protocol import Announcement, Presence, TaskFailed
from edgefl_device.data.dataset import Dataset

LOUD = "\x1b[2J\r\nround 1: all is well\x07\u2028\u202e\x9b"


@pytest.fixture
def world(tmp_path: Path, regression: Bundle) -> Iterator[World]:
    data = Dataset(np.eye(2, dtype=np.float32), np.ones(2, np.float32))
    method = FedAvg(regression.shared_weights(), rounds=2, batch_size=0, learning_rate=0.25)
    settings = RoundSettings(min_devices=2, quorum=0.5, deadline_s=60.0)
    classes = [DeviceClass("all", regression, parse_condition("cores < 100"))]
    made = World(tmp_path, classes, method, {"pi-1": data, "pi-2": data}, settings=settings)
    yield made
    made.store.close()


def said(world: World) -> list[str]:
    lines = [note.text for note in world.notes if note.text]
    assert all(len(line) <= NOTE_LENGTH and line.isprintable() for line in lines), lines
    return lines


def test_a_reason_is_a_line(world: World) -> None:
    world.run(lambda: bool(world.broker.said(Announcement)))
    (announcement,) = world.broker.said(Announcement)
    failed = TaskFailed("pi-1", 0, announcement.nonce, LOUD * 30)  # type: ignore[union-attr]
    world.receive(protocol.up_topic(RUN, "pi-1"), protocol.encode(failed), world.now_s)
    (line,) = said(world)
    assert line.startswith("\\x1b[2J") and line.endswith("\u2026")


def test_a_tensors_name_is_cut(world: World) -> None:
    name = "w" * 700
    world.nodes["pi-1"].tamper = lambda o: replace(o, tensors={name: np.zeros(2, np.float32), **o.tensors})
    world.nodes["pi-2"].tamper = lambda o: replace(o, tensors={LOUD: np.zeros(2, np.float32), **o.tensors})
    world.run(lambda: len(world.events("failed")) == 2)
    lines = said(world)
    assert any("device 'pi-1'" in line for line in lines) and any("device 'pi-2'" in line for line in lines)
    receipts = [r.reason for r in world.broker.said(protocol.Receipt)]  # type: ignore[union-attr]
    assert len(receipts) == 2 and all(len(r) <= 1000 for r in receipts)


def test_a_topic_and_what_a_device_states_are_lines(world: World) -> None:
    world.run(lambda: len(world.coordinator.present) == 2)
    world.receive(f"edgefl/1/{RUN}/up/0/{LOUD}" + "x" * 60_000, b"", 0.0)
    world.receive(f"{LOUD}/" * 9, b"", 0.0)
    stranger = Presence("pi-9", 1, "up", "a", cores=100, runtime=LOUD * 30)
    world.receive(protocol.device_topic(RUN, "pi-9"), protocol.encode(stranger), 0.0)
    lines = said(world)
    assert len(lines) == 3
    assert [note.event for note in world.notes if note.text] == ["protocol error", "protocol error", "no bundle"]


def test_a_terminal_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    Teller().tell(f"waiting: {LOUD}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and "waiting: \\x1b[2J" in line


def test_ordinary_text_stays_as_it_is() -> None:
    text = "device 'pi-3' sent 'w' as float16 [8, 3]; expected float32 [16, 3] — größer"
    assert one_line(text) == text
    assert one_line("x" * 3000) == "x" * 1999 + "\u2026"
