"""What a device says of its data, once it knows what the bundle wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec.structs import replace

from edgefl import protocol
from edgefl.data_contract import DataContract, Feature
from edgefl.protocol import Outgoing, Presence
from edgefl_device.data.dataset import Dataset
from edgefl_device.data.labels import label_counts
from edgefl_device.wire.session import Session


def said(action: object) -> Presence:
    assert isinstance(action, Outgoing) and action.retain
    message, _ = protocol.decode(action.payload)
    assert isinstance(message, Presence)
    return message


def test_a_note_about_the_data_is_said_at_once_and_with_every_later_word(tmp_path: Path) -> None:
    session = Session("run", "pi-1", tmp_path, capabilities={"cores": 4})
    session.will()
    assert said(session.connected(0.0, again=False)[0]).data == ""
    [note] = session.note_data("warning: as is, -3..8841 for 0..1")
    assert (said(note).status, said(note).data, said(note).cores) == ("up", "warning: as is, -3..8841 for 0..1", 4)
    assert said(session.leave()).data == "warning: as is, -3..8841 for 0..1"


def test_how_many_examples_there_are_of_each_class_is_said_with_it(tmp_path: Path) -> None:
    session = Session("run", "pi-1", tmp_path)
    session.will()
    [note] = session.note_data("", [3, 0, 1])
    assert said(note).label_counts == said(session.leave()).label_counts == [3, 0, 1]


def test_classes_are_counted_in_the_contracts_numbering() -> None:
    images = DataContract((Feature((2,), "float32"),), classes=3, ignored_label=-1)
    data = Dataset(np.zeros((4, 2), np.float32), np.array([2, 0, 2, -1]))
    assert label_counts(data, images) == [1, 0, 2]
    assert label_counts(data, replace(images, classes=64))[:3] == [1, 0, 2]
    assert label_counts(data, replace(images, classes=65)) == []  # as many as a presence holds
    assert label_counts(data, replace(images, classes=None)) == []
