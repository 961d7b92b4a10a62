"""Fusion: many replies become one set of tensors, without holding them.

A fusion is `add(reply, weight)`, `merge(other)`, `finish()`. Accumulators of several workers merge.
How much a reply counts is a weight rule: a plain function of what the reply says about itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgefl.errors import ConfigError
from edgefl.method import Fused, Reply

COUNTS = ("examples", "correct")  # metrics of a program that are counts, not means


class Fusion(Protocol):
    """One round's accumulator."""

    devices: tuple[str, ...]

    def add(self, reply: Reply, weight: float) -> None:
        """Count one reply. `weight` is finite and above 0."""
        ...

    def merge(self, other: Any) -> None:
        """Count everything that `other`, of the same kind, has counted; the two hold different devices."""
        ...

    def finish(self) -> Fused:
        """The fused tensors of at least one reply."""
        ...


class WeightedMean:
    """sum_k w_k x_k / sum_k w_k, the mean of FedAvg (McMahan et al. 2017, Algorithm 1).

    One float64 accumulator a tensor, whatever the number of replies. Products of a float32 value and an
    example count are exact in float64, so the order of arrival changes at most the last bit of a float32.
    The denominator sums over the devices that answered, never over all that were asked.
    """

    def __init__(self) -> None:
        self.devices: tuple[str, ...] = ()
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._weight = 0.0
        self._examples = 0
        self._metrics = _Metrics()

    def add(self, reply: Reply, weight: float) -> None:
        assert math.isfinite(weight) and weight > 0, weight
        assert not self.devices or reply.tensors.keys() == self._sums.keys(), reply.tensors.keys()
        for name, value in reply.tensors.items():
            term = np.multiply(value, weight, dtype=np.float64)
            if name in self._sums:
                self._sums[name] += term
            else:
                self._sums[name] = term
                self._dtypes[name] = np.dtype(value.dtype)
        self.devices += (reply.device,)
        self._weight += weight
        self._examples += reply.examples
        self._metrics.add(reply.metrics)

    def merge(self, other: WeightedMean) -> None:
        """Count everything `other` has counted. The two must hold different devices."""
        assert not set(self.devices) & set(other.devices)
        for name, term in other._sums.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term.copy()
        self._dtypes |= other._dtypes
        self.devices += other.devices
        self._weight += other._weight
        self._examples += other._examples
        self._metrics.merge(other._metrics)

    def finish(self) -> Fused:
        assert self.devices, "finish() before any reply"
        tensors = {name: (total / self._weight).astype(self._dtypes[name]) for name, total in self._sums.items()}
        return Fused(tensors, self._metrics.finish(), tuple(sorted(self.devices)), self._examples)


class _Metrics:
    """Means over devices, weighted by "PROGRAM.examples" where a device says it. Counts (`COUNTS`) add up."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            program, _, output = name.partition(".")
            weight = 1.0 if output in COUNTS else metrics.get(f"{program}.examples", 1.0)
            self._sums[name] = self._sums.get(name, 0.0) + weight * value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def merge(self, other: _Metrics) -> None:
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._weights[name] = self._weights.get(name, 0.0) + other._weights[name]

    def finish(self) -> dict[str, float]:
        return {
            name: total if name.partition(".")[2] in COUNTS else total / self._weights[name]
            for name, total in sorted(self._sums.items())
            if self._weights[name] > 0
        }


def by_examples(reply: Reply) -> float:
    """FedAvg's weight: the device's number of training examples, n_k."""
    return float(reply.examples)


def equal(reply: Reply) -> float:
    """Every device counts the same."""
    return 1.0


FUSIONS: dict[str, Callable[[], Fusion]] = {"mean": WeightedMean}
WEIGHTS: dict[str, Callable[[Reply], float]] = {"examples": by_examples, "equal": equal}


def fusion_named(name: str) -> Fusion:
    """A new accumulator. Raises ConfigError with the known names."""
    if name not in FUSIONS:
        raise ConfigError(f"no fusion is called {name!r}", hint=f"known: {', '.join(FUSIONS)}")
    return FUSIONS[name]()


def weight_named(name: str) -> Callable[[Reply], float]:
    """A weight rule. Raises ConfigError with the known names."""
    if name not in WEIGHTS:
        raise ConfigError(f"no weight rule is called {name!r}", hint=f"known: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]
