"""Device classes: which bundle a device gets, by what it states when it joins.

A run file lists them; the first that suits a device is its class, for the whole run.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.manifest import Manifest, StateTensor
from edgefl.protocol import Presence
from edgefl.tensors import Array

NUMBERS = ("memory_mb", "cores", "train_examples", "test_examples")
WORDS = ("engine", "runtime")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CLAUSE = re.compile(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")


@dataclass(frozen=True)
class Condition:
    """ "memory_mb >= 2000 and cores >= 4": clauses (field of Presence, operator, value) that must all hold."""

    clauses: tuple[tuple[str, str, float | str], ...] = ()

    def holds(self, presence: Presence) -> bool:
        return all(_OPERATORS[sign](getattr(presence, name), value) for name, sign, value in self.clauses)


def parse_condition(text: str) -> Condition:
    """Raises ConfigError for a field, an operator or a value that is none."""
    clauses: list[tuple[str, str, float | str]] = []
    for part in re.split(r"\band\b", text):
        match = _CLAUSE.fullmatch(part)
        name, sign, value = match.groups() if match else (part.strip(), "", "")
        if match and name in NUMBERS and re.fullmatch(r"\d+(\.\d+)?", value):
            clauses.append((name, sign, float(value)))
        elif match and name in WORDS and sign in ("==", "!="):
            clauses.append((name, sign, value.strip("'\"")))
        else:
            raise ConfigError(
                f'for = "{text}": cannot read {part.strip()!r}',
                hint=f'for example "memory_mb >= 2000 and cores >= 4"; numbers: {", ".join(NUMBERS)}; '
                f"words, with == or !=: {', '.join(WORDS)}",
            )
    return Condition(tuple(clauses))


@dataclass(frozen=True)
class DeviceClass:
    """Devices that get the same bundle.

    condition   on what a device states; `devices`: patterns of names, one of which must match, where there are any
    settings    of programs, for the devices of this class; they count more than a task's
    """

    name: str
    bundle: Bundle
    condition: Condition = Condition()
    devices: tuple[str, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict)

    def suits(self, presence: Presence) -> bool:
        named = not self.devices or any(fnmatchcase(presence.device, pattern) for pattern in self.devices)
        return named and self.condition.holds(presence)


def class_of(presence: Presence, classes: Iterable[DeviceClass]) -> DeviceClass | None:
    """The first class that suits a device."""
    return next((one for one in classes if one.suits(presence)), None)


class Examples(NamedTuple):
    """How many a device says it has."""

    train: int
    test: int


def stated(presence: Presence) -> str:
    """What a device states, as a condition would name it."""
    return ", ".join(f"{name} {getattr(presence, name)}" for name in (*NUMBERS, *WORDS))


def check_classes(classes: Iterable[DeviceClass]) -> None:
    """Raise ConfigError unless all bundles agree on what they share, and have the settings of their class."""
    first: dict[str, tuple[DeviceClass, StateTensor]] = {}
    named: DeviceClass | None = None
    for one in classes:
        manifest = one.bundle.manifest
        if manifest.data.class_names:
            named = named or one
            if manifest.data.class_names != named.bundle.manifest.data.class_names:
                raise ConfigError(
                    f"device classes {named.name!r} and {one.name!r} do not call the same classes by the same names",
                    hint="export their bundles with the same --classes",
                )
        known = {i.name for program in manifest.programs.values() for i in program.inputs if i.source == "setting"}
        for name in one.settings:
            if name not in known:
                raise ConfigError(
                    f"device class {one.name!r} sets {name!r}, but no program of its bundle has such a setting",
                    hint=f"there is: {', '.join(sorted(known)) or 'none'}",
                )
        for group, tensor in manifest.fusion_map().items():
            other, want = first.setdefault(group, (one, tensor))
            if (tensor.dtype, tensor.shape) != (want.dtype, want.shape):
                raise ConfigError(
                    f"device class {one.name!r}: shared tensor {group!r} is {tensor.dtype} {list(tensor.shape)}; "
                    f"expected {want.dtype} {list(want.shape)}, as in device class {other.name!r}",
                    hint="export both with the same shared part, or keep the tensor private",
                )


def in_state(manifest: Manifest, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What a method has fused, by the names of a bundle's state: fusion groups that the bundle has not left out."""
    return {t.name: tensors[group] for group, t in manifest.fusion_map().items() if group in tensors}


def initial(classes: Iterable[DeviceClass]) -> dict[str, Array]:
    """What a method starts from: each fusion group's initial value, of the first class that has it."""
    found: dict[str, Array] = {}
    for one in classes:
        found = one.bundle.shared_weights() | found
    return found
