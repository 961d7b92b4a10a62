"""Tasks of an aggregator that is newer than this edgefl: what of them it does not know.

A task is refused as a whole for one field that is not known: whoever passes over it does something else than was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args, get_type_hints

import msgspec

from edgefl.errors import first_line, one_line
from edgefl.feeds import FEEDS, KEPT
from edgefl.method import Keep, Task

OLDER = "this device is older than the task"
SHOWN = 100  # characters of a name or a value that somebody else chose

_HINTS = get_type_hints(Task)
_KNOWN: Mapping[str, Callable[[str], bool]] = {  # field -> whether a value of it is known
    "feed": lambda feed: feed in FEEDS or feed.startswith(KEPT),
    "send_as": lambda value: value in get_args(_HINTS["send_as"]),
    "encoding": lambda value: value in get_args(_HINTS["encoding"]),
}


def fault(tasks: list[object]) -> str:
    """Why the first task that cannot be read is not, as one line of bounded length; "" where all can.

    `tasks`: as they came, of dicts, lists, texts and numbers.
    """
    for number, task in enumerate(tasks, 1):
        if found := _fault(task, number):
            return found
    return ""


def _fault(task: object, number: int) -> str:
    if isinstance(task, dict):
        for name in [*_unknown(task, Task, ""), *_unknown(task.get("keep"), Keep, "keep.")]:
            return f"{OLDER}: field {_shown(name)}"
        for name, known in _KNOWN.items():
            value = task.get(name)
            if isinstance(value, str) and not known(value):
                return f"{OLDER}: field {name!r} is {_shown(value)}"
    try:
        msgspec.convert(task, Task)
    except (msgspec.ValidationError, OverflowError) as error:
        return f"this device cannot read task {number}: {one_line(first_line(error), SHOWN)}"
    return ""


def _unknown(fields: object, kind: type[Task | Keep], where: str) -> list[str]:
    known = kind.__struct_fields__
    return [where + name for name in fields if name not in known] if isinstance(fields, dict) else []


def _shown(text: str) -> str:
    return f"'{one_line(text, SHOWN)}'"
