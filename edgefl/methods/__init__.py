"""The aggregator's half of each published method, one file each."""

from __future__ import annotations

from typing import Any

from edgefl.methods.fedavg import FedAvg

METHODS: dict[str, type[Any]] = {"fedavg": FedAvg}
