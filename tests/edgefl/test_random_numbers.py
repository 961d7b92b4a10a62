"""Random numbers that every language makes alike: what tests/vectors/random.json says, computed once more, otherwise.

Here with Python's integers and no numpy, as in docs/protocol.md, word by word.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from edgefl.random_numbers import normals, order_of, seed_of

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "random.json").read_text()
)
WORD = 2**64 - 1


def key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def word(start: int, i: int) -> int:
    """The i-th number of SplitMix64, from 0."""
    z = ((i + 1) * 0x9E3779B97F4A7C15 + start) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def seed(case: dict[str, Any]) -> int | None:
    return None if case["seed"] is None else int(case["seed"])


def test_keys_and_words() -> None:
    for case in VECTORS["keys"]:
        assert case["key"] == str(key(case["text"]))
        assert case["words"] == [str(word(key(case["text"]), i)) for i in range(4)]


def test_orders() -> None:
    for case in VECTORS["orders"]:
        start, count = key(f"{case['seed']}/{case['device']}/{case['epoch']}"), case["examples"]
        drawn = sorted(range(count), key=lambda i, start=start: word(start, i))
        assert case["order"] == (list(range(count)) if case["seed"] is None else drawn)
        assert case["order"] == order_of(count, seed=seed(case), device=case["device"], epoch=case["epoch"]).tolist()


def test_seeds_of_programs() -> None:
    for case in VECTORS["seeds"]:
        want = 0 if case["seed"] is None else key(f"{case['seed']}/{case['device']}/program") // 2
        assert case["program"] == str(want) == str(seed_of(seed(case), case["device"]))


def test_noise() -> None:
    """Python's own log and cos may differ from numpy's in a last place."""
    for case in VECTORS["noise"]:
        start = key(f"{case['seed']}/noise")
        made = normals(int(case["seed"]), case["shape"]).reshape(-1)
        assert [struct.pack(">f", value).hex() for value in made] == case["values"]
        for i, bits in enumerate(case["values"]):
            u, v = ((word(start, j) >> 11) * 2.0**-53 for j in (2 * i, 2 * i + 1))
            want = math.sqrt(-2 * math.log1p(-u)) * math.cos(2 * math.pi * v)
            assert struct.unpack(">f", bytes.fromhex(bits))[0] == pytest.approx(want, rel=1.3e-7, abs=0)


def test_they_hold_every_size_and_names_of_many_alphabets() -> None:
    assert {case["examples"] for case in VECTORS["orders"]} >= {0, 1, 2, 7, 1000}
    assert any(not case["device"].isascii() for case in VECTORS["orders"])
    assert {case["seed"] for case in VECTORS["seeds"]} >= {None, "0", "-1", str(2**63)}
