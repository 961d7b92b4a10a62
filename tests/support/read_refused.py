"""A source that a device refuses to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefl.errors import DataError
from edgefl_device.sources import read_splits


def refused(source: Path | str) -> str:
    """The one line with which it is refused."""
    with pytest.raises(DataError) as caught:
        read_splits(source)
    assert "\n" not in caught.value.message
    return caught.value.message
