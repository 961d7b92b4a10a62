"""What is random on a device: pure functions of the task's seed and the device's name, in any language."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgefl.random_numbers import key_of, words


def order_of(examples: int, *, seed: int | None, device: str, epoch: int) -> npt.NDArray[np.intp]:
    """The indices 0..examples-1 in the order of one epoch; None keeps the feed's order.

    key = the first 8 bytes, little-endian, of SHA-256("SEED/DEVICE/EPOCH"). Example i is placed by the i-th
    number of SplitMix64 started at key. NumPy's own shuffles may change between versions and exist in no other
    language.
    """
    if seed is None:
        return np.arange(examples)
    return np.argsort(words(key_of(f"{seed}/{device}/{epoch}"), examples), kind="stable")


def seed_of(seed: int | None, device: str) -> int:
    """The seed of a program's random numbers, 0 to 2^63 - 1, from SHA-256("SEED/DEVICE/program"). 0 without a seed."""
    return 0 if seed is None else int(key_of(f"{seed}/{device}/program")[0] >> np.uint64(1))
