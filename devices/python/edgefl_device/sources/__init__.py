"""The formats people have, one file each. Start here.

splits = read_splits("mnist/")     # .train, and .test where the source has one
train = read("mnist/")             # its training examples alone
"""

from __future__ import annotations

from pathlib import Path

from edgefl_device.data.dataset import Dataset
from edgefl_device.sources.splits import read_splits

__all__ = ["read", "read_splits"]


def read(source: str | Path, *, label: str | None = None) -> Dataset:
    """The training examples of a source; see `read_splits`."""
    return read_splits(source, label=label).train
