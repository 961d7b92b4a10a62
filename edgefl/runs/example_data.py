"""What examples say of a bundle's data contract: the range of their values, the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgefl.data_contract import SYMMETRIC, UNIT, class_name
from edgefl.errors import DataError

if TYPE_CHECKING:
    from edgefl_device.data import Splits


def with_examples(given: Mapping[str, Any], *, label: str | None = None) -> dict[str, Any]:
    """Options of an export with what `data` says in its place: `range` and `classes`, where nobody has given these.

    `label`: the name of the label's column in a table. Raises DataError where the data cannot be read.
    """
    options = dict(given)
    source = options.pop("data", None)
    if source is None:
        return options
    from edgefl_device.sources import read_splits

    splits = read_splits(source, label=label)
    if "range" not in options and (found := range_of(splits)) is not None:
        options["range"] = found
    if "classes" not in options and (names := names_of(splits)):
        options["classes"] = names
    return options


def range_of(splits: Splits) -> tuple[float, float] | None:
    """The customary range that features lie in, else from their lowest to their highest value; of pixels 0..1.

    None for integers, which may be tokens: the highest that somebody has says little of those that there are.
    """
    from edgefl_device.data import span_of

    arrays = [part.features for part in (splits.train, splits.test) if part is not None and len(part)]
    numbers = [array for array in arrays if array.dtype.kind == "f"]
    if not numbers:
        return UNIT if arrays and all(array.dtype == np.uint8 for array in arrays) else None
    span = span_of(numbers)
    if not np.isfinite([span.low, span.high]).all():
        raise DataError("the example data hold values that are not finite", hint="give --range LOW,HIGH")
    for low, high in (UNIT, SYMMETRIC):
        if low <= span.low and span.high <= high:
            return low, high
    if span.may_be_pixels:
        return 0.0, 255.0
    return (span.low, span.high) if span.low < span.high else None


def names_of(splits: Splits) -> tuple[str, ...]:
    """The names of the classes, in the order of their labels; empty where labels are numbers in a file."""
    names = splits.train.names
    return () if names is None else tuple(class_name(names[label]) for label in sorted(names))
