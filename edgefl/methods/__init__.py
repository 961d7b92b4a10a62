"""The aggregator's half of each published method, one file each. FILE.py:CLASS is one of one's own."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from edgefl import own_code
from edgefl.errors import ConfigError, InputError, nearest, said
from edgefl.methods.codream import CoDream
from edgefl.methods.codream_fast import CoDreamFast
from edgefl.methods.deq_fl import DeqFl
from edgefl.methods.fedavg import FedAvg
from edgefl.methods.feddyn import FedDyn
from edgefl.methods.fedmrl import FedMRL
from edgefl.methods.fednova import FedNova
from edgefl.methods.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from edgefl.methods.fedproto import FedProto
from edgefl.methods.fedprox import FedProx
from edgefl.methods.lg_fedavg import LgFedAvg
from edgefl.methods.scaffold import Scaffold

DEFAULT = "fedavg"
METHODS: dict[str, type[Any]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fednova": FedNova,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "fedmrl": FedMRL,
    "lg_fedavg": LgFedAvg,
    "deq_fl": DeqFl,
    "fedproto": FedProto,
    "codream": CoDream,
    "codream_fast": CoDreamFast,
}


def method_named(name: object) -> type[Any]:
    """The method of that name, or the class of FILE.py:CLASS. Raises ConfigError for a name that there is not, and for
    a class that is no method."""
    found = own_code.own(name) if isinstance(name, str) else None
    if found is not None:
        return _own(*found)
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"[method] name is {name!r}", hint=nearest(str(name), sorted(METHODS)))
    return METHODS[name]


def paper_of(kind: type[Any]) -> tuple[str, str]:
    """What a method is called, and where it was published, as the docstring of its file says: "FedProx: Li, Sahu, ...".

    Where that says nothing, the class's name and "".
    """
    text = getattr(sys.modules.get(kind.__module__), "__doc__", None) or ""
    for paragraph in text.split("\n\n"):
        names, _, paper = " ".join(paragraph.split()).partition(": ")
        for name in re.split(", | and ", names):
            if paper and re.sub("[^a-z0-9]", "", name.lower()) == kind.__name__.lower():
                return name, paper
    return kind.__name__, ""


def _own(path: Path, name: str) -> type[Any]:
    called = f"[method] {path.name + ':' + name!r}"
    try:
        kind = own_code.load(path, name, called=path.name)
    except InputError as error:
        raise ConfigError(f"{called}: {error.message}", hint=error.hint) from error
    hint = "derive it from FedAvg, or see edgefl/method.py"
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        raise ConfigError(f"{called} is no method: expected a class that is a msgspec.Struct", hint=hint)
    lacks = [part for part in ("start", "ask", "advance") if not callable(getattr(kind, part, None))]
    lacks += [] if "initial" in kind.__struct_fields__ else ["initial"]
    if lacks:
        raise ConfigError(f"{called} is no method: it has no {lacks[0]!r}", hint=hint)
    try:
        msgspec.structs.fields(kind)
    except Exception as error:  # an annotation of somebody's own means what it likes
        raise ConfigError(f"{called}: its fields have types that cannot be read: {said(error)}", hint=hint) from error
    return kind
