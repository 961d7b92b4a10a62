"""Fusion: many replies become one set of tensors, without holding them.

A fusion is `add(reply, weight)`, `merge(other)`, `finish()`. Accumulators of several workers merge.
How much a reply counts is a weight rule (edgefl/aggregator/weights.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgefl.aggregator.norms import lower_median
from edgefl.aggregator.weights import Rule, rule_named
from edgefl.errors import ConfigError, RemoteProtocolError
from edgefl.method import Ask, Fused, Reply

COUNTS = ("examples", "correct", "inner_correct")  # metrics of a program that are counts, not means


class Fusion(Protocol):
    """One round's accumulator."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Whose replies are counted."""
        ...

    def add(self, reply: Reply, weight: float) -> None:
        """Count one reply. `weight` is finite and above 0.

        Raises RemoteProtocolError, and counts nothing, for a tensor of another shape than in the replies before.
        """
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
    The denominator of each tensor sums over the devices that sent it, never over all that were asked: devices with
    bundles of different architecture fuse what they have in common.
    """

    def __init__(self) -> None:
        self.devices: tuple[str, ...] = ()
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._weights: dict[str, float] = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._by_device: dict[str, float] = {}
        self._examples = 0
        self._metrics = _Metrics()
        self._measured: dict[str, Mapping[str, float]] = {}

    def add(self, reply: Reply, weight: float) -> None:
        assert math.isfinite(weight) and weight > 0, weight
        _check_shapes(reply, {name: total.shape for name, total in self._sums.items()})
        for name, value in reply.tensors.items():
            term = np.multiply(value, weight, dtype=np.float64)
            if name in self._sums:
                self._sums[name] += term
                self._weights[name] += weight
            else:
                self._sums[name] = term
                self._weights[name] = weight
                self._dtypes[name] = np.dtype(value.dtype)
        self.devices += (reply.device,)
        self._by_device[reply.device] = weight
        self._examples += reply.examples
        self._metrics.add(reply.metrics)
        self._measured[reply.device] = reply.metrics

    def merge(self, other: WeightedMean) -> None:
        """Count everything `other` has counted. The two must hold different devices."""
        assert not set(self.devices) & set(other.devices)
        for name, term in other._sums.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term.copy()
            self._weights[name] = self._weights.get(name, 0.0) + other._weights[name]
        self._dtypes |= other._dtypes
        self.devices += other.devices
        self._by_device |= other._by_device
        self._examples += other._examples
        self._metrics.merge(other._metrics)
        self._measured |= other._measured

    def finish(self) -> Fused:
        assert self.devices, "finish() before any reply"
        tensors = {name: (total / self._weights[name]).astype(self._dtypes[name]) for name, total in self._sums.items()}
        devices = tuple(sorted(self.devices))
        weights = shares({device: self._by_device[device] for device in devices})
        measured = {device: self._measured[device] for device in devices}
        return Fused(tensors, self._metrics.finish(), devices, self._examples, weights, measured)


class Replies:
    """The replies of one round, held until it ends: for fusions that must see all of them at once.

    Memory grows with the devices, which the streaming mean's does not.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Reply, float]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self._held)

    def add(self, reply: Reply, weight: float) -> None:
        assert math.isfinite(weight) and weight > 0, weight
        _check_shapes(reply, self._shapes)
        self._shapes |= {name: value.shape for name, value in reply.tensors.items()}
        self._held[reply.device] = (reply, weight)

    def merge(self, other: Replies) -> None:
        """Hold what `other` holds too. The two must hold different devices."""
        assert not self._held.keys() & other._held.keys()
        self._held |= other._held
        self._shapes |= other._shapes

    def sorted(self) -> list[tuple[Reply, float]]:
        """Replies and their weights by the name of the device: so the order of arrival changes nothing."""
        return [self._held[device] for device in sorted(self._held)]


class Clipped(Replies):
    """A fusion of replies none of which counts more than `max_share` times the median weight of the round.

    For weights that are known only from the replies: the median is known when the last of them is there.
    """

    def __init__(self, fusion: Fusion, max_share: float) -> None:
        super().__init__()
        self._fusion = fusion
        self._max_share = max_share
        self.clipped: dict[str, tuple[float, float]] = {}  # device -> what its reply counts, and would have

    def finish(self) -> Fused:
        held = self.sorted()
        assert held, "finish() before any reply"
        limit = self._max_share * lower_median([weight for _, weight in held])
        for reply, weight in held:
            if weight > limit:
                self.clipped[reply.device] = (limit, weight)
            self._fusion.add(reply, min(weight, limit))
        return self._fusion.finish()


def _check_shapes(reply: Reply, known: Mapping[str, tuple[int, ...]]) -> None:
    """Raise RemoteProtocolError for a tensor of another shape than others have sent."""
    for name, value in reply.tensors.items():
        if name in known and known[name] != value.shape:
            raise RemoteProtocolError(
                f"device {reply.device!r} sent {name!r} of shape {list(value.shape)}; others sent {list(known[name])}"
            )


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


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights above 0 as parts of 1."""
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


FUSIONS: dict[str, Callable[[], Fusion]] = {"mean": WeightedMean}

Fusing = Callable[[Ask], tuple[Fusion, Rule]]  # how the replies to an ask become one, and how much each of them counts


def fusing(ask: Ask) -> tuple[Fusion, Rule]:
    """A new accumulator and the weight rule that an ask names. Raises ConfigError with the known names."""
    return fusion_named(ask.fusion), rule_named(ask.weight)


def fusion_named(name: str) -> Fusion:
    """A new accumulator. Raises ConfigError with the known names."""
    if name not in FUSIONS:
        raise ConfigError(f"no fusion is called {name!r}", hint=f"known: {', '.join(FUSIONS)}")
    return FUSIONS[name]()
