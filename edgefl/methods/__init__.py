"""The aggregator's half of each published method, one file each."""

from __future__ import annotations

from typing import Any

from edgefl.methods.codream import CoDream
from edgefl.methods.codream_fast import CoDreamFast
from edgefl.methods.deq_fl import DeqFl
from edgefl.methods.fedavg import FedAvg
from edgefl.methods.fedmrl import FedMRL
from edgefl.methods.fedopt import FedAdam, FedYogi
from edgefl.methods.fedproto import FedProto
from edgefl.methods.fedprox import FedProx
from edgefl.methods.lg_fedavg import LgFedAvg
from edgefl.methods.scaffold import Scaffold

DEFAULT = "fedavg"
METHODS: dict[str, type[Any]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "scaffold": Scaffold,
    "fedmrl": FedMRL,
    "lg_fedavg": LgFedAvg,
    "deq_fl": DeqFl,
    "fedproto": FedProto,
    "codream": CoDream,
    "codream_fast": CoDreamFast,
}
