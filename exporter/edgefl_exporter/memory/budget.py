"""A size of memory as people write it."""

from __future__ import annotations

import math
import re

from edgefl.errors import InputError

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)")


def budget_of(said: int | str | None) -> int | None:
    """Bytes: 48MB is 48,000,000, 48MiB 50,331,648. Raises InputError for what is no size above 0."""
    if said is None:
        return None
    found = _SIZE.fullmatch(said.strip()) if isinstance(said, str) else None
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if found and found[2].lower() in units:
        size = math.floor(float(found[1]) * units[found[2].lower()] + 0.5)
    else:
        size = said if isinstance(said, int) else 0
    if size <= 0:
        raise InputError(
            f"--memory {said!r} is no size", hint=f"a number and one of {', '.join(UNITS)}, for example --memory 48MB"
        )
    return size
