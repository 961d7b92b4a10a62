"""Random numbers that aggregator and devices make alike, in any language: pure functions of a key.

All that is random on a device is here: the order of its examples, the seed of its programs, noise. What a program draws
from its seed is in the program itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def key_of(text: str) -> npt.NDArray[np.uint64]:
    """The first 8 bytes, little-endian, of the SHA-256 of `text`, in an array of one element."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u8")


def words(key: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    """The first `count` numbers of SplitMix64 started at `key` (Steele, Lea, Flood, OOPSLA 2014)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def normals(seed: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Standard normal numbers: what the feed "noise" of a task with this seed holds.

    key = `key_of("SEED/noise")`. Element i is made of the words 2i and 2i + 1, as fractions u and v of 53 bits:
    sqrt(-2 log(1 - u)) cos(2 pi v) (Box and Muller, 1958) in float64, rounded to float32. Platforms whose log and cos
    differ in the last bit of a float64 agree but for about one float32 in 10^8.
    """
    drawn = words(key_of(f"{seed}/noise"), 2 * math.prod(shape)).reshape(-1, 2)
    u, v = ((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53).T
    made: npt.NDArray[np.float32] = (np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)).astype(np.float32)
    return made.reshape(shape)


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
