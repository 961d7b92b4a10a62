"""The exporter's half of each published method, one file each: what it adds to a recipe, and its own options.

None of these files imports torch before a bundle is made.
"""

from __future__ import annotations

from edgefl import own_code
from edgefl.errors import ConfigError, InputError, nearest
from edgefl_exporter.methods.codream import CoDream
from edgefl_exporter.methods.fedavg import FedAvg
from edgefl_exporter.methods.feddyn import FedDyn
from edgefl_exporter.methods.fedmrl import FedMRL
from edgefl_exporter.methods.fedproto import FedProto
from edgefl_exporter.methods.fedprox import FedProx
from edgefl_exporter.methods.method import Method
from edgefl_exporter.methods.scaffold import Scaffold

__all__ = [
    "DEFAULT",
    "METHODS",
    "CoDream",
    "FedAvg",
    "FedDyn",
    "FedMRL",
    "FedProto",
    "FedProx",
    "Method",
    "Scaffold",
    "method_named",
]

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (FedAvg, FedProx, FedDyn, Scaffold, FedMRL, FedProto, CoDream)
}
DEFAULT = FedAvg.name


def method_named(name: str) -> type[Method]:
    """The method of that name, or the class of FILE.py:CLASS. Raises ConfigError for a name that there is not, and for
    a class that is no method."""
    if (found := own_code.own(name)) is None:
        if name not in METHODS:
            raise ConfigError(f"unknown method {name!r}", hint=nearest(name, METHODS))
        return METHODS[name]
    path, called = found
    try:
        kind = own_code.load(path, called)
    except InputError as error:
        raise ConfigError(f"--method {name!r}: {error.message}", hint=error.hint) from error
    if not (isinstance(kind, type) and issubclass(kind, Method) and hasattr(kind, "name")):
        raise ConfigError(
            f"--method {name!r} is no method of an export", hint="derive it from edgefl_exporter.methods.Method"
        )
    return kind
