"""Which life of a device this process is: a device that has died knows its own earlier words again."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from edgefl.files import from_json, write_atomic

FILE = "life.json"


class _Life(msgspec.Struct, frozen=True):
    identity: str  # of the state folder
    number: int


def begin(directory: Path) -> str:
    """The name of this process's instance; those of one state folder are in the order of their beginning.

    Durable before anybody hears of it. Where the file is damaged the folder gets a new identity.
    """
    path = directory / FILE
    try:
        before = from_json(path.read_bytes(), _Life)
    except (OSError, ValueError):
        before = _Life(secrets.token_hex(8), 0)
    life = _Life(before.identity[:16], before.number + 1)
    write_atomic(path, msgspec.json.encode(life))
    return f"{life.identity}-{life.number:010}"
