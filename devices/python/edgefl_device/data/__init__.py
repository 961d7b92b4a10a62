"""A device's examples in memory: fitted to the bundle's contract, cut into batches. Start here.

    train = fit_to_contract(read_splits("mnist/").train, manifest.data, "mnist/")
    for x, y in batches(train, manifest.data, order, 10): ...

Where they come from: `edgefl_device.sources`.
"""

from __future__ import annotations

from edgefl_device.data.contract import batches, fit_to_contract
from edgefl_device.data.dataset import Dataset, Splits

__all__ = ["Dataset", "Splits", "batches", "fit_to_contract"]
