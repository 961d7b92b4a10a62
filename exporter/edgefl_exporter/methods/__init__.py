"""The exporter's half of each published method, one file each: what it adds to a recipe, and its own options.

None of these files imports torch before a bundle is made.
"""

from __future__ import annotations

from edgefl_exporter.methods.codream import CoDream
from edgefl_exporter.methods.fedavg import FedAvg
from edgefl_exporter.methods.feddyn import FedDyn
from edgefl_exporter.methods.fedmrl import FedMRL
from edgefl_exporter.methods.fedproto import FedProto
from edgefl_exporter.methods.fedprox import FedProx
from edgefl_exporter.methods.method import Method
from edgefl_exporter.methods.scaffold import Scaffold

__all__ = ["DEFAULT", "METHODS", "CoDream", "FedAvg", "FedDyn", "FedMRL", "FedProto", "FedProx", "Method", "Scaffold"]

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (FedAvg, FedProx, FedDyn, Scaffold, FedMRL, FedProto, CoDream)
}
DEFAULT = FedAvg.name
