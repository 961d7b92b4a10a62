"""FedAvg's bundle is a model and its programs. It serves FedAdam, FedYogi, LG-FedAvg and DEQ-FL as well."""

from __future__ import annotations

from edgefl_exporter.methods.method import Method


class FedAvg(Method, frozen=True, kw_only=True):
    """Nothing beside the model."""

    name = "fedavg"

    @property
    def prefix(self) -> str:
        return ""
