"""What can be exported, as far as it is known without torch, which takes seconds to import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgefl import own_code
from edgefl.errors import InputError, nearest

CATALOGUE = Path(__file__).parent / "zoo" / "catalogue.json"


def catalogue() -> list[dict[str, Any]]:
    """What a person chooses a model of the zoo by, as `zoo.described` gives it; `python -m edgefl_exporter.zoo` writes
    the file."""
    rows: list[dict[str, Any]] = json.loads(CATALOGUE.read_bytes())
    return rows


def check_there(source: str) -> None:
    """Raises InputError for a text that is not FILE:OBJECT or zoo:NAME, and for a file or model that is not there."""
    file, _, name = source.rpartition(":")
    if not file or not name:
        raise InputError(f"{source!r} is not FILE:OBJECT or zoo:NAME", hint="for example examples/digits.py:model")
    if file != "zoo":
        own_code.check_file(Path(file))
    elif name not in (names := [row["name"] for row in catalogue()]):
        raise InputError(f"no model {name!r} in the zoo", hint=nearest(name, names))
