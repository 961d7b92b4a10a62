"""Write random.json: the random numbers that every device makes alike, whatever its language.

    python tests/vectors/make_random.py

    keys     `key`, the first 8 bytes, little-endian, of SHA-256(`text`), and SplitMix64's first numbers from there
    orders   the order of a task's examples in one epoch: of a seed (null: as they are), a device and an epoch
    seeds    the seed of a program's own random numbers: of a task's seed (null: 0) and a device
    noise    standard normal float32 of a seed and a shape, in order, as their bits: 3f800000 is 1.0. A platform whose
             log or cos differs in a float64's last bit may differ by one unit in a float32's last place
    masks    what a program draws from its seed at one training step and call (site): two 32-bit keys; for each element
             a number u of 24 bits (hexadecimal), which is u / 2^24; and, for each p, whether dropout with that
             probability keeps it (u / 2^24 < 1 - p in float32), "1" or "0"

Numbers that may be greater than 2^53 are text. The definitions are in docs/protocol.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgefl.random_numbers import key_of, normals, order_of, seed_of, words
from edgefl_exporter.models.randomness import hashed, keys

PATH = Path(__file__).parent / "random.json"

DEVICES = ("pi-1", "a", "x" * 36, "gr\u00f6\u00dfe", "\u6d4b\u8bd5", "\U0001f353")
SEEDS = (None, 0, 1, 42, -1, 2**53, 2**63)
SIZES = (0, 1, 2, 7, 1000)


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _orders() -> list[dict[str, Any]]:
    cases = [(42, "pi-1", 0, size) for size in SIZES]
    cases += [(seed, "pi-1", 1, 7) for seed in SEEDS]
    cases += [(3, device, 0, 7) for device in DEVICES]
    cases += [(3, "pi-1", epoch, 7) for epoch in (1, 2, 10, 999_999)]
    return [
        {
            "seed": _text(seed),
            "device": device,
            "epoch": epoch,
            "examples": size,
            "order": order_of(size, seed=seed, device=device, epoch=epoch).tolist(),
        }
        for seed, device, epoch, size in cases
    ]


def _masks() -> list[dict[str, Any]]:
    cases: list[tuple[int, int, int, tuple[int, ...]]] = [
        (0, 0, 0, ()),
        (0, 0, 0, (8,)),
        (0, 1, 0, (8,)),
        (0, 0, 1, (8,)),
        (seed_of(42, "pi-1"), 0, 0, (3, 5)),
        (seed_of(42, "pi-2"), 2**31, 3, (2, 2, 3)),
        (2**63 - 1, 2**32 + 5, 100, (4,)),
        (1, 7, 2, (0, 3)),
    ]
    made = []
    for seed, step, site, shape in cases:
        u = hashed(seed, step, site, shape)
        made.append(
            {
                "seed": str(seed),
                "step": step,
                "site": site,
                "shape": list(shape),
                "keys": [f"{key:08x}" for key in keys(seed, step, site)],
                "uniform": [f"{int(value):06x}" for value in (u * 2**24).reshape(-1)],
                "kept": {
                    str(p): "".join("01"[int(kept)] for kept in (u < np.float32(1 - p)).reshape(-1)) for p in (0.1, 0.5)
                },
            }
        )
    return made


def vectors() -> dict[str, Any]:
    """What random.json holds."""
    texts = ("", "42/pi-1/0", "-1/pi-1/program", "3/gr\u00f6\u00dfe/0", "5/noise")
    noises: tuple[tuple[int, list[int]], ...] = (
        (0, [1]),
        (5, [3, 2]),
        (5, [2, 1, 4]),
        (-1, [5]),
        (2**53, [2]),
        (7, [0, 3]),
    )
    return {
        "keys": [
            {"text": text, "key": str(key_of(text)[0]), "words": [str(word) for word in words(key_of(text), 4)]}
            for text in texts
        ],
        "orders": _orders(),
        "seeds": [
            {"seed": _text(seed), "device": device, "program": str(seed_of(seed, device))}
            for seed, device in [*((seed, "pi-1") for seed in SEEDS), *((3, device) for device in DEVICES)]
        ],
        "noise": [
            {
                "seed": str(seed),
                "shape": shape,
                "values": [f"{bits:08x}" for bits in normals(seed, shape).view(np.uint32).reshape(-1)],
            }
            for seed, shape in noises
        ],
        "masks": _masks(),
    }


def text() -> str:
    """The file: one case a line."""
    parts = [f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, cases)) + "\n ]" for name, cases in vectors().items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text())
