"""What is random on a device: pure functions of the task's seed and the device's name, in any language."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def order_of(examples: int, *, seed: int | None, device: str, epoch: int) -> npt.NDArray[np.intp]:
    """The indices 0..examples-1 in the order of one epoch; None keeps the feed's order.

    key = the first 8 bytes, little-endian, of SHA-256("SEED/DEVICE/EPOCH"). Example i is placed by the i-th
    number of SplitMix64 started at key (Steele, Lea, Flood, OOPSLA 2014). NumPy's own shuffles may change between
    versions and exist in no other language.
    """
    if seed is None:
        return np.arange(examples)
    z = np.arange(1, examples + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += _key(f"{seed}/{device}/{epoch}")
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


def seed_of(seed: int | None, device: str) -> int:
    """The seed of a program's random numbers, 0 to 2^63 - 1, from SHA-256("SEED/DEVICE/program"). 0 without a seed."""
    return 0 if seed is None else int(_key(f"{seed}/{device}/program")[0] >> np.uint64(1))


def _key(text: str) -> npt.NDArray[np.uint64]:
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u8")
