"""A device's examples in memory: fitted to the bundle's contract, cut into batches. Start here.

    data, note = fit_all({"mnist/": read_splits("mnist/").train}, manifest.data)
    for features, labels in batches(data["mnist/"], manifest.data, order, 10): ...

Where they come from: `edgefl_device.sources`.
"""

from __future__ import annotations

from edgefl_device.data.batches import batches
from edgefl_device.data.contract import fit_all, fit_to_contract
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.data.ranges import Span, span_of

__all__ = ["Dataset", "Span", "Splits", "batches", "fit_all", "fit_to_contract", "span_of"]
