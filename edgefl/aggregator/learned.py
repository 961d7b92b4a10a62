"""Weights learned on held-out examples: the point of the simplex where the weighted mean of the replies does best.

    minimise over a_k >= 0, sum_k a_k = 1:   L(sum_k a_k x_k)       L: mean loss of the held-out examples

by exponentiated gradient (Kivinen, Warmuth, "Exponentiated Gradient versus Gradient Descent for Linear Predictors",
Information and Computation 132, 1997): a_k <- a_k exp(-rate dL/da_k) / Z, with dL/da_k = <grad L(x), x_k - x> at the
mean x. A step that does not lower the loss is not taken, so the result is never worse than where learning started.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edgefl.aggregator.fusion import Fusing, Fusion, Replies, WeightedMean, fusing, shares
from edgefl.aggregator.weights import LEARNED, Rule, rule_of
from edgefl.errors import EdgeflError
from edgefl.method import Ask, Fused, Reply
from edgefl.tensors import Array, Tensors

Weights = npt.NDArray[np.float64]  # [replies], they sum to 1

LEAST = 1e-9  # a weight of exactly 0 could never grow again


class HeldOut(Protocol):
    """The held-out examples and a bundle's programs over them. Both raise EdgeflError for a result that is not
    finite."""

    def loss(self, tensors: Tensors) -> float:
        """The mean loss with these shared tensors, as `evaluate` measures it."""
        ...

    def gradient(self, tensors: Tensors) -> dict[str, Array]:
        """The gradient of the mean loss by each shared tensor that trains."""
        ...


class LearnedMean(Replies):
    """The weighted mean whose weights do best on held-out examples.

    `start` is what deltas are added to, None where replies hold values. The metrics get "held_out.loss" and
    "held_out.start_loss", before learning.
    """

    def __init__(self, held_out: HeldOut, *, start: Tensors | None = None, steps: int = 20) -> None:
        super().__init__()
        self._held_out = held_out
        self._start = start
        self._steps = steps

    def finish(self) -> Fused:
        held = self.sorted()
        assert held, "finish() before any reply"
        replies = [reply for reply, _ in held]
        first = shares({reply.device: weight for reply, weight in held})
        weights, losses = self._learn(replies, np.array([first[reply.device] for reply in replies]))
        fused = _mean(replies, weights)
        return msgspec.structs.replace(fused, metrics={**fused.metrics, **losses})

    def _learn(self, replies: Sequence[Reply], weights: Weights) -> tuple[Weights, dict[str, float]]:
        """The best weights found, and the held-out loss before and after."""
        best = start_loss = self._loss(replies, weights)
        rate, slopes = 1.0, None
        for _ in range(self._steps):
            if slopes is None:
                slopes = self._slopes(replies, weights)
                size = math.sqrt(float(weights @ slopes**2))
                if not 0 < size < math.inf:
                    break  # nothing to gain, or nothing to learn from
            tried = _step(weights, rate * slopes / size)
            loss = self._loss(replies, tried)
            if loss < best:
                weights, best, rate, slopes = tried, loss, 2 * rate, None
            else:
                rate /= 4
        finite = {"held_out.start_loss": start_loss, "held_out.loss": best}
        return weights, finite if math.isfinite(best) else {}

    def _loss(self, replies: Sequence[Reply], weights: Weights) -> float:
        """Infinite where the mean of the replies has none."""
        try:
            return self._held_out.loss(self._model(_mean(replies, weights).tensors))
        except EdgeflError:
            return math.inf

    def _slopes(self, replies: Sequence[Reply], weights: Weights) -> Weights:
        """dL/da_k; they sum to 0 with the weights. Each tensor is a mean over the devices that sent it."""
        mean = _mean(replies, weights).tensors
        slopes = np.zeros(len(replies))
        try:
            gradient = self._held_out.gradient(self._model(mean))
        except EdgeflError:
            return slopes
        for name, slope in gradient.items():
            having = [k for k, reply in enumerate(replies) if name in reply.tensors]
            total = weights[having].sum()
            for k in having:
                slopes[k] += np.vdot(slope, np.subtract(replies[k].tensors[name], mean[name], dtype=np.float64)) / total
        return slopes

    def _model(self, mean: Tensors) -> Tensors:
        """The shared tensors that a mean of the replies stands for."""
        if self._start is None:
            return mean
        return {name: (self._start[name] + mean[name]).astype(mean[name].dtype) for name in mean if name in self._start}


def learning(held_out: HeldOut, *, steps: int) -> Fusing:
    """The fusing of a run whose weights are learned in so many `steps` a round, where an ask wants them."""

    def begin(ask: Ask) -> tuple[Fusion, Rule]:
        rule = rule_of(ask.weight)
        if rule.name != LEARNED:
            return fusing(ask)
        deltas = any(task.send_as == "delta" for task in ask.tasks if task.send)
        return LearnedMean(held_out, start=ask.tensors if deltas else None, steps=steps), rule

    return begin


def _mean(replies: Sequence[Reply], weights: Weights) -> Fused:
    fusion = WeightedMean()
    for reply, weight in zip(replies, weights, strict=True):
        fusion.add(reply, float(weight))
    return fusion.finish()


def _step(weights: Weights, change: Weights) -> Weights:
    """a_k exp(-change_k) / Z, in logarithms so that nothing overflows."""
    logs = np.log(weights) - change
    raised = np.maximum(np.exp(logs - logs.max()), LEAST)
    result: Weights = raised / raised.sum()
    return result
