"""A fusion of your own: fusion = { name = "own_fusion.py:GeometricMedian", steps = 8 } in [method].

A fusion makes one set of tensors of many replies. One that derives from `Replies` is handed all of a round at once,
with their weights; one that derives from `Coordinates` is handed one tensor after the other, as `median` is.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from edgefl.aggregator.fusion import Replies, WeightedMean
from edgefl.method import Fused, Reply


class GeometricMedian(Replies):
    """The point with the least sum of distances to all replies, by Weiszfeld's smoothed steps: Pillutla, Kakade,
    Harchaoui, "Robust Aggregation for Federated Learning", 2019, arXiv:1912.13445. A reply far from all others counts
    little, however far it is.

    steps       of the search. Arguments with a default are numbers that a run file may set
    nearest     a distance below it counts as it
    """

    def __init__(self, steps: Annotated[int, Meta(ge=1)] = 8, nearest: Annotated[float, Meta(gt=0)] = 1e-6) -> None:
        super().__init__()
        self.steps = steps
        self.nearest = nearest

    def finish(self) -> Fused:
        held = self.sorted()  # by device, so that the order of arrival changes nothing
        fused = mean(held)
        for _ in range(self.steps):
            fused = mean([(reply, weight / max(self.nearest, distance(reply, fused))) for reply, weight in held])
        return fused


def mean(held: list[tuple[Reply, float]]) -> Fused:
    fusion = WeightedMean()
    for reply, weight in held:
        fusion.add(reply, weight)
    return fusion.finish()


def distance(reply: Reply, fused: Fused) -> float:
    """Over all tensors of the reply."""
    squares = [np.square(x - fused.tensors[name], dtype=np.float64).sum() for name, x in reply.tensors.items()]
    return float(np.sqrt(sum(squares)))
