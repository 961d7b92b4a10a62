"""What a run file chooses by a name, with numbers or without: a fusion, a weight rule.

    fusion = "median"
    fusion = { name = "trimmed_mean", trim = 0.2 }
    fusion = "fusions.py:mine"                       # of one's own; its path is seen from the run file

Numbers are keyword arguments of what is chosen. So its signature says which there are, of what type and within what
bounds (`trim: Annotated[float, Meta(ge=0, lt=0.5)] = 0.1`), and what each is where nothing is said.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgefl import own_code
from edgefl.errors import ConfigError, InputError, nearest
from edgefl.method import Chosen

Maker = Callable[..., Any]


def name_of(chosen: object, kind: str) -> str:
    """The name of what is chosen. Raises ConfigError where there is none; `kind` is "fusion" or "weight rule"."""
    name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
    if not isinstance(name, str):
        raise ConfigError(f"a {kind} has a name, and {chosen} has none", hint='{ name = "NAME", NUMBER = 0.1 }')
    return name


def numbers_of(chosen: Chosen) -> dict[str, Any]:
    """The numbers beside the name."""
    return {key: value for key, value in chosen.items() if key != "name"} if isinstance(chosen, Mapping) else {}


def with_numbers(make: Maker, numbers: Mapping[str, Any], what: str) -> Maker:
    """`make` with these keyword arguments; itself where there are none. Raises ConfigError, its line beginning with
    `what`, for a number that it does not take, one of a wrong kind or out of bounds, and one that is missing."""
    known = _numbers(make)
    for name in numbers:
        if name not in known:
            hint = nearest(name, known) if known else f"{what} has none"
            raise ConfigError(f"{what}: unknown number {name!r}", hint=hint)
    for name, (_, needed) in known.items():
        if needed and name not in numbers:
            raise ConfigError(f"{what}: {name} is missing", hint=f'{{ name = "NAME", {name} = 0.1 }}')
    given = msgspec.defstruct("Numbers", [(name, known[name][0]) for name in numbers])
    try:
        values = msgspec.structs.asdict(msgspec.convert(dict(numbers), given))
    except msgspec.ValidationError as error:
        expected, _, place = str(error).partition(" - at ")
        raise ConfigError(f"{what}: {place.strip('`$.')}: {expected}") from error
    return functools.partial(make, **values) if values else make


def load_own(path: Path, name: str, what: str, hint: str) -> Maker:
    """The function or class `name` in somebody's Python file. Raises ConfigError in one clear line; `hint` says how one
    could begin."""
    try:
        found = own_code.load(path, name, called=path.name)
    except InputError as error:
        raise ConfigError(f"{what}: {error.message}", hint=error.hint or hint) from error
    if not callable(found):
        raise ConfigError(f"{what}: {name!r} in {path.name} is no function", hint=hint)
    return found


def _numbers(make: Maker) -> dict[str, tuple[Any, bool]]:
    """Name -> type, and whether it has to be given, of the arguments of `make` that are numbers: those that have a
    default or can only be given by name."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return {}
    try:
        hinted = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
        hints = typing.get_type_hints(hinted, include_extras=True)
    except (NameError, TypeError):  # annotated with what is not there
        hints = {}
    found = {}
    for one in parameters:
        needed = one.default is one.empty
        if one.kind is one.KEYWORD_ONLY or (one.kind is one.POSITIONAL_OR_KEYWORD and not needed):
            found[one.name] = (hints.get(one.name, Any if needed else _kind(one.default)), needed)
    return found


def _kind(default: object) -> Any:
    """What an argument without a type takes: a whole number for a default does not mean that only those are."""
    return float if type(default) is int else type(default) if isinstance(default, (float, bool, str)) else Any
