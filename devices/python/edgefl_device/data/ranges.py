"""Values at the door: what lies far outside the contract's range would be fused without a word, and spoil the model.

A device with 0..255 beside others with 0..1 has a loss in the thousands and takes the fleet's model back to chance. So:

* pixels (uint8) are scaled by `batches`, whatever they hold;
* where the range is 0..1 and all that a device has are whole numbers of 0..255, above 1, they are pixels too;
* other data are refused where a value is more than 10 times outside the range, unless their owner lets them pass;
* integers (tokens) are refused outside the range: nothing but an index out of bounds becomes of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgefl.data_contract import UNIT, Feature
from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray
from edgefl_device.data.numbers import chunks

FAR = 10  # times the range; a mean so far away has a value behind it that is, so values alone are looked at
BRIGHTEST = 255


@dataclass(frozen=True)
class Span:
    """What values arrays hold together. `whole`: whole numbers only."""

    low: float
    high: float
    whole: bool

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"

    @property
    def may_be_pixels(self) -> bool:
        """Whether these are whole numbers of 0..255, and not of 0..1."""
        return self.whole and self.low >= 0 and 1 < self.high <= BRIGHTEST


def judged(arrays: Mapping[str, AnyArray], feature: Feature, *, as_is: bool) -> tuple[dict[str, AnyArray], str]:
    """Arrays [n, ...] of one feature, by what they are called, all of one device: as they are to be used, and a note.

    Raises DataError for values that cannot be meant, of floats only where not `as_is`.
    """
    found = dict(arrays)
    numbers = {where: a for where, a in found.items() if feature.pixels is None or a.dtype != np.uint8}
    if not numbers or feature.mask_of:
        return found, ""
    span = span_of(numbers.values())
    if feature.range is None:
        odd = feature.is_float and span.may_be_pixels
        return found, f"warning: whole numbers {span}, and the bundle states no range" if odd else ""
    if feature.range == UNIT and feature.is_float and span.may_be_pixels and not as_is:
        return found | {where: a.astype(np.uint8) for where, a in numbers.items()}, f"scaled by {BRIGHTEST}"
    low, high = feature.range
    stated = f"{low:g}..{high:g}"
    where = " and ".join(numbers)
    if not feature.is_float:
        if span.low < low or span.high > high:
            raise DataError(f"{where}: values are {span}; the bundle takes {stated}")
        return found, ""
    if not _is_far(span, low, high):
        return found, ""
    if as_is:
        return found, f"warning: as is, {span} for {stated}"
    raise DataError(
        f"{where}: values are {span}, and the bundle was made for {stated}",
        hint="scale the data as the other devices do, or export with --range LOW,HIGH; --as-is lets them pass",
    )


def span_of(arrays: Iterable[AnyArray]) -> Span:
    """What values arrays [n, ...] hold, none of which is empty."""
    low, high, whole = math.inf, -math.inf, True
    for array in arrays:
        for _, part in chunks(array):
            low, high = min(low, float(part.min())), max(high, float(part.max()))
            whole = whole and (part.dtype.kind != "f" or bool((part == np.rint(part)).all()))
    return Span(low, high, whole)


def _is_far(span: Span, low: float, high: float) -> bool:
    """Whether a value is more than FAR times what the range has, or more than FAR ranges away from it."""
    larger = max(abs(span.low), abs(span.high)) > FAR * max(abs(low), abs(high))
    away = max(low - span.low, span.high - high) > FAR * (high - low)
    return larger or away
