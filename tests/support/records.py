"""Records of rounds, by hand."""

from __future__ import annotations

from typing import Any

from edgefl.aggregator.record import Record


def record(number: int, **fields: Any) -> Record:
    """Of round `number`: one device replied, unless `fields` say otherwise."""
    plain: dict[str, Any] = {
        "replies": 1,
        "asked": 1,
        "attempts": 1,
        "examples": 2,
        "bytes_up": 0,
        "bytes_down": 0,
        "bytes_up_by_device": {},
        "seconds": 0.5,
        "elapsed_s": 0.5 * number,
        "devices": ["pi-1"],
        "weights": {"pi-1": 1.0},
    }
    return Record(round=number, **(plain | fields))


def of_fleet(number: int, **fields: Any) -> Record:
    """Of round `number`: seven of eight devices replied, and two are named, one of them new in each round."""
    plain: dict[str, Any] = {
        "replies": 7,
        "asked": 8,
        "bytes_up": 1024,
        "bytes_down": 3 * 2**20,
        "devices": ["pi-1", f"pi-{number}"],
        "weights": {},
        "metrics": {"train.loss": 1 / number},
    }
    return record(number, **(plain | fields))
