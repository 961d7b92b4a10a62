"""Arrays of numbers as another dtype, refused where that would change them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray

CHUNK_BYTES = 2**20  # checks look at so much at once, to need little memory beside the data


def chunks(values: AnyArray) -> Iterator[tuple[int, AnyArray]]:
    """Parts of an array [n, ...] along its first dimension, with where each begins."""
    rows = max(1, CHUNK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        yield start, values[start : start + rows]


def whole_numbers(values: AnyArray, want: np.dtype[Any], where: str, what: str) -> AnyArray:
    """`values` as `want`, an integer dtype. Raises DataError unless every value stays what it is."""
    if values.dtype == want:
        return values
    with np.errstate(invalid="ignore"):
        converted = values.astype(want)
        same = converted == values
    if not same.all():
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        raise DataError(f"{where}: {what} at {at[0]} are {values[at]}, which is not a whole number that fits {want}")
    return converted


def finite_floats(values: AnyArray, want: np.dtype[Any], where: str, what: str) -> AnyArray:
    """`values` as `want`, a float dtype. Raises DataError unless all are finite in it.

    `what` says of which entry along the first dimension the wrong value is: "label {} is".
    """
    with np.errstate(over="ignore"):  # the check below reports it better
        converted = values.astype(want, copy=False)
    for start, part in chunks(converted):
        finite = np.isfinite(part)
        if not finite.all():
            at = start + int(np.argwhere(~finite)[0][0])
            wrong = np.atleast_1d(values[at])[~np.isfinite(np.atleast_1d(converted[at]))][0]
            raise DataError(
                f"{where}: {what.format(at)} {wrong}; expected finite {want} numbers",
                hint="remove the example or fill in its missing values",
            )
    return converted
