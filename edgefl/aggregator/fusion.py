"""Fusion: many replies become one set of tensors.

A fusion is `add(reply, weight)`, `merge(other)`, `finish()`. Accumulators of several workers merge. The mean streams
and holds no reply; order statistics need all of them at once, and hold them (`Replies`).
How much a reply counts is a weight rule (edgefl/aggregator/weights.py). Order statistics count every reply the same.

A fusion of one's own is a class in a file, `[method] fusion = "fusions.py:Mine"`. It derives from `Replies`, which
hands it all replies of a round, or from `Coordinates`, which hands it one tensor after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from edgefl.aggregator.chosen import name_of, numbers_of, with_numbers
from edgefl.aggregator.norms import lower_median
from edgefl.aggregator.own_fusion import OwnFusion
from edgefl.aggregator.weights import Rule, rule_of
from edgefl.errors import ConfigError, RemoteProtocolError, nearest
from edgefl.method import Ask, Chosen, Fused, Reply
from edgefl.own_code import own
from edgefl.tensors import Tensors

COUNTS = ("examples", "correct", "inner_correct")  # metrics of a program that are counts, not means


class Fusion(Protocol):
    """One round's accumulator.

    weighs      whether a reply's weight changes anything; where not, there is nothing to bound by `[round] max_share`
    """

    weighs: bool

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

    weighs = True

    def __init__(self) -> None:
        self.devices: tuple[str, ...] = ()
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._weights: dict[str, float] = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._by_device: dict[str, float] = {}
        self._examples = 0
        self._metrics = _Metrics()
        self._measured: dict[str, Mapping[str, float]] = {}
        self._steps: dict[str, int] = {}

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
        self._steps[reply.device] = reply.steps

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
        self._steps |= other._steps

    def finish(self) -> Fused:
        assert self.devices, "finish() before any reply"
        tensors = {name: (total / self._weights[name]).astype(self._dtypes[name]) for name, total in self._sums.items()}
        devices = tuple(sorted(self.devices))
        weights = shares({device: self._by_device[device] for device in devices})
        measured = {device: self._measured[device] for device in devices}
        steps = {device: self._steps[device] for device in devices}
        return Fused(tensors, self._metrics.finish(), devices, self._examples, weights, measured, steps)


class Replies:
    """The replies of one round, held until it ends: for fusions that must see all of them at once, by a `finish` of
    their own.

    Memory grows with the devices, which the streaming mean's does not.
    """

    weighs = True

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

    def fused(self, tensors: Tensors, weights: Mapping[str, float]) -> Fused:
        """These fused tensors, with what the replies say of themselves; `weights` are parts of 1."""
        metrics = _Metrics()
        replies = [reply for reply, _ in self.sorted()]
        for reply in replies:
            metrics.add(reply.metrics)
        return Fused(
            tensors,
            metrics.finish(),
            tuple(reply.device for reply in replies),
            sum(reply.examples for reply in replies),
            weights,
            {reply.device: reply.metrics for reply in replies},
            {reply.device: reply.steps for reply in replies},
        )


class Coordinates(Replies):
    """A fusion of each tensor by itself, from the replies that hold it. Weights change nothing: all count the same."""

    weighs = False

    def combine(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[replies, ...], at least one of them, as one: [...]."""
        raise NotImplementedError

    def finish(self) -> Fused:
        replies = [reply for reply, _ in self.sorted()]
        assert replies, "finish() before any reply"
        tensors = {}
        for name in dict.fromkeys(name for reply in replies for name in reply.tensors):
            having = [reply.tensors[name] for reply in replies if name in reply.tensors]
            tensors[name] = self.combine(np.array(having, np.float64)).astype(having[0].dtype)
        return self.fused(tensors, {reply.device: 1 / len(replies) for reply in replies})


class Median(Coordinates):
    """The median of each coordinate; of an even number the mean of the two in the middle (Yin, Chen, Ramchandran,
    Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv:1803.01498,
    Definition 1).

    Holds all replies, and ignores their weights.
    """

    def combine(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.median(values, axis=0))


class TrimmedMean(Coordinates):
    """The mean of each coordinate without the largest and the smallest `trim` of its values (Yin et al. 2018,
    Definition 2, their beta).

    At least so many: of 8 replies 0.1 trims one at each end, not none. One or two are always left.
    Holds all replies, and ignores their weights.
    """

    def __init__(self, trim: Annotated[float, Meta(ge=0, lt=0.5)] = 0.1) -> None:
        super().__init__()
        self.trim = trim

    def combine(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        count = len(values)
        cut = min(math.ceil(self.trim * count - 1e-9), (count - 1) // 2)  # 1e-9: 0.07 * 100 is more than 7 in float64
        return np.asarray(np.sort(values, axis=0)[cut : count - cut].mean(axis=0))


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


FUSIONS: dict[str, Callable[..., Fusion]] = {"mean": WeightedMean, "median": Median, "trimmed_mean": TrimmedMean}

Fusing = Callable[[Ask], tuple[Fusion, Rule]]  # how the replies to an ask become one, and how much each of them counts


def fusing(ask: Ask) -> tuple[Fusion, Rule]:
    """A new accumulator and the weight rule that an ask names. Raises ConfigError with the known names."""
    return fusion_of(ask.fusion), rule_of(ask.weight)


def fusion_of(chosen: Chosen) -> Fusion:
    """A new accumulator of the fusion that a run has chosen, by its name or with numbers. Raises ConfigError for a name
    or a number that there is not, or one out of bounds."""
    name = name_of(chosen, "fusion")
    if (found := own(name)) is not None:
        return OwnFusion(*found, numbers_of(chosen))
    if name not in FUSIONS:
        raise ConfigError(f"no fusion is called {name!r}", hint=nearest(name, FUSIONS))
    made: Fusion = with_numbers(FUSIONS[name], numbers_of(chosen), f"fusion {name!r}")()
    return made
