"""The verb of a device, before there is a broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgefl.errors import InputError
from edgefl_device.device import device


def test_what_a_reader_passed_over_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "b.txt").touch()
    told: list[str] = []
    with pytest.raises(InputError):  # before it connects
        device("mqtt://127.0.0.1:9", "pi-1", tmp_path, state=tmp_path / "state", engine="none", progress=told.append)
    assert told == [f"data: passed over 1 files that are no images of a class, such as {tmp_path / 'cat' / 'b.txt'}"]
