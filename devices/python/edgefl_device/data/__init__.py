"""A device's own data: read it, fit it to the bundle's contract, cut it into batches. Start here.

    splits = read_splits("mnist/")
    train = fit_to_contract(splits.train, manifest.data, "mnist/")
    for x, y in batches(train, manifest.data, order, 10): ...

`sources.py` lists the formats.
"""

from __future__ import annotations

from pathlib import Path

from edgefl_device.data.contract import batches, fit_to_contract
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.data.sources import read_splits

__all__ = ["Dataset", "Splits", "batches", "fit_to_contract", "read", "read_splits"]


def read(source: str | Path) -> Dataset:
    """The training examples of a source; see `read_splits`."""
    return read_splits(source).train
