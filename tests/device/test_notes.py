"""What a device says of its data, once it knows what the bundle wants."""

from __future__ import annotations

from pathlib import Path

from edgefl import protocol
from edgefl.protocol import Outgoing, Presence
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
    [note] = session.note_data("as is: -3..8841 for 0..1")
    assert (said(note).status, said(note).data, said(note).cores) == ("up", "as is: -3..8841 for 0..1", 4)
    assert said(session.leave()).data == "as is: -3..8841 for 0..1"
