"""Learned weights: on a loss whose best weights are known, on one that is not convex, and where there is none."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.aggregator.fusion import Median, WeightedMean
from edgefl.aggregator.learned import LearnedMean, learning
from edgefl.errors import EdgeflError
from edgefl.method import Ask, Fused, Reply, Task
from edgefl.tensors import Array, Tensors


@dataclass
class Distance:
    """sum over tensors of |w - target|^2, as somebody's held-out loss. Counts how often it is asked."""

    targets: dict[str, Any]
    asked: list[str] = field(default_factory=list)

    def loss(self, tensors: Tensors) -> float:
        self.asked.append("loss")
        return float(sum(np.sum((tensors[n].astype(np.float64) - t) ** 2) for n, t in self.targets.items()))

    def gradient(self, tensors: Tensors) -> dict[str, Array]:
        self.asked.append("gradient")
        return {n: (2 * (tensors[n] - np.asarray(t))).astype(np.float32) for n, t in self.targets.items()}


class Ripples(Distance):
    """The same with ripples: many local minima."""

    def loss(self, tensors: Tensors) -> float:
        return super().loss(tensors) + float(np.sin(9 * tensors["w"]).sum())

    def gradient(self, tensors: Tensors) -> dict[str, Array]:
        return {"w": super().gradient(tensors)["w"] + (9 * np.cos(9 * tensors["w"])).astype(np.float32)}


class Broken(Distance):
    """A model whose loss is not finite."""

    def loss(self, tensors: Tensors) -> float:
        raise EdgeflError("evaluate.loss is nan")


def reply(name: str, examples: int, *w: float) -> Reply:
    return Reply(name, 0, examples, {"w": np.array(w, np.float32)}, {"train.loss": 1.0})


def learn(held_out: Distance, *replies: Reply, steps: int = 20, start: Tensors | None = None) -> Fused:
    fusion = LearnedMean(held_out, steps=steps, start=start)
    for one in replies:
        fusion.add(one, one.examples)
    return fusion.finish()


def mean(*replies: Reply) -> Fused:
    fusion = WeightedMean()
    for one in replies:
        fusion.add(one, one.examples)
    return fusion.finish()


def test_the_good_device_among_bad_ones() -> None:
    """Only "good" is where the held-out examples want the model, though it has the fewest examples."""
    draw = np.random.default_rng(0)
    target = draw.normal(size=20)
    bad = [reply(f"bad{i}", 100, *(target + 3 * draw.normal(size=20))) for i in range(4)]
    fused = learn(Distance({"w": target}), *bad, reply("good", 1, *target))
    assert mean(*bad, reply("good", 1, *target)).weights["good"] < 0.003
    assert fused.weights["good"] > 0.95
    assert fused.metrics["held_out.loss"] < 0.01 * fused.metrics["held_out.start_loss"]


def test_the_best_mixture_of_two() -> None:
    """|3 a + 7 (1 - a) - 4|^2 is 0 at a = 3/4."""
    fused = learn(Distance({"w": [4]}), reply("a", 1, 3), reply("b", 1, 7), steps=40)
    assert fused.weights["a"] == pytest.approx(0.75, abs=1e-3)
    assert fused.metrics["held_out.start_loss"] == 1.0


@dataclass
class Case:
    counts: list[int]
    values: list[list[float]]
    target: list[float]

    def replies(self) -> list[Reply]:
        return [reply(f"d{i}", n, *w) for i, (n, w) in enumerate(zip(self.counts, self.values, strict=True))]


numbers = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)
cases = st.integers(2, 6).flatmap(
    lambda n: st.builds(
        Case,
        st.lists(st.integers(1, 1000), min_size=n, max_size=n),
        st.lists(numbers, min_size=n, max_size=n),
        numbers,
    )
)


@given(cases, st.sampled_from([Distance, Ripples]))
def test_never_worse_than_its_start_and_on_the_simplex(case: Case, kind: type[Distance]) -> None:
    replies = case.replies()
    held_out = kind({"w": case.target})
    fused = learn(held_out, *replies, steps=8)
    assert held_out.loss(fused.tensors) <= held_out.loss(mean(*replies).tensors)
    assert fused.metrics["held_out.loss"] == held_out.loss(fused.tensors)
    assert min(fused.weights.values()) > 0
    assert sum(fused.weights.values()) == pytest.approx(1, abs=1e-12)
    assert fused.devices == mean(*replies).devices and fused.examples == sum(case.counts)


@given(cases, st.randoms(use_true_random=False))
def test_neither_order_nor_workers_change_a_bit(case: Case, rng: Any) -> None:
    replies = case.replies()
    shuffled = replies.copy()
    rng.shuffle(shuffled)
    first, second = (LearnedMean(Distance({"w": case.target}), steps=4) for _ in range(2))
    for i, one in enumerate(shuffled):
        (first, second)[i % 2].add(one, one.examples)
    first.merge(second)
    assert first.devices == tuple(one.device for one in (*shuffled[::2], *shuffled[1::2]))
    got, want = first.finish(), learn(Distance({"w": case.target}), *replies, steps=4)
    assert got.tensors["w"].tobytes() == want.tensors["w"].tobytes()
    assert got.weights == want.weights and got.metrics == want.metrics


def test_where_nothing_can_be_gained_it_is_the_mean_by_examples() -> None:
    """Equal replies, one reply, a loss that no reply changes: FedAvg's mean."""
    same = [reply("a", 1, 3, 0), reply("b", 3, 3, 0)]
    for replies in (same, same[:1]):
        fused = learn(Distance({"w": [1, 1]}), *replies)
        assert fused.tensors["w"].tobytes() == mean(*replies).tensors["w"].tobytes()
        assert fused.weights == mean(*replies).weights


def test_a_loss_that_is_not_finite_leaves_the_start() -> None:
    fused = learn(Broken({"w": [1]}), reply("a", 1, 3), reply("b", 3, 7))
    assert fused.tensors["w"] == [6]
    assert fused.weights == {"a": 0.25, "b": 0.75}
    assert fused.metrics == {"train.loss": 1.0}


def test_the_first_step_by_hand() -> None:
    """3 and 7, weights 3/4 and 1/4: their mean is 4, so towards 3 the gradient is 2 and the slopes 2 (3 - 4) = -2 and
    2 (7 - 4) = 6. In units of sqrt(3/4 * 4 + 1/4 * 36) = sqrt(12) they are -2 / sqrt(12) and 6 / sqrt(12)."""
    fused = learn(Distance({"w": [3]}), reply("a", 3, 3), reply("b", 1, 7), steps=1)
    a, b = 0.75 * math.exp(2 / math.sqrt(12)), 0.25 * math.exp(-6 / math.sqrt(12))
    assert fused.weights == pytest.approx({"a": a / (a + b), "b": b / (a + b)})
    assert fused.metrics["held_out.start_loss"] == 1


def test_a_loss_a_thousand_times_as_large_teaches_the_same() -> None:
    class Larger(Distance):
        def loss(self, tensors: Tensors) -> float:
            return 1000 * super().loss(tensors)

        def gradient(self, tensors: Tensors) -> dict[str, Array]:
            return {name: 1000 * slope for name, slope in super().gradient(tensors).items()}

    replies = [reply("a", 3, 3, 1), reply("b", 1, 7, 2), reply("c", 2, 1, 5)]
    small, large = (learn(kind({"w": [3, 3]}), *replies, steps=5) for kind in (Distance, Larger))
    assert large.weights == pytest.approx(small.weights, rel=1e-6)


def test_so_many_steps_and_no_more() -> None:
    held_out = Distance({"w": [4]})
    learn(held_out, reply("a", 1, 3), reply("b", 1, 7), steps=5)
    assert held_out.asked.count("loss") == 6
    assert held_out.asked.count("gradient") <= 5


def test_deltas_are_judged_where_they_lead() -> None:
    """From w = 10, deltas of -6 and +4 to a target of 4: all the weight to the first."""
    replies = [reply("a", 1, -6), reply("b", 1, 4)]
    fused = learn(Distance({"w": [4]}), *replies, start={"w": np.array([10], np.float32)}, steps=40)
    assert fused.weights["a"] > 0.99
    assert fused.tensors["w"] == pytest.approx(-6, abs=0.1)


def test_devices_that_hold_different_tensors() -> None:
    """The slopes agree with differences of the loss, also where a tensor is a mean over some of the devices."""
    sent: list[dict[str, float]] = [{"w": 3, "v": 1}, {"w": 7}, {"w": 5, "v": 9}]
    replies = [
        Reply(f"d{i}", 0, 1, {n: np.array([x], np.float32) for n, x in one.items()}, {}) for i, one in enumerate(sent)
    ]
    held_out = Distance({"w": [2], "v": [3]})  # where v is 4: both tensors slope
    fusion = LearnedMean(held_out)
    weights = np.array([0.5, 0.2, 0.3])

    def loss(a: Any) -> float:
        w = np.dot(a, [3, 7, 5]) / a.sum()
        v = (a[0] * 1 + a[2] * 9) / (a[0] + a[2])
        return float((w - 2) ** 2 + (v - 3) ** 2)

    slopes = fusion._slopes(replies, weights)
    for k, step in itertools.product(range(3), [1e-6]):
        up, down = weights.copy(), weights.copy()
        up[k] += step
        down[k] -= step
        assert slopes[k] == pytest.approx((loss(up) - loss(down)) / (2 * step), rel=1e-4)
    assert weights @ slopes == pytest.approx(0, abs=1e-5)


def test_a_run_whose_weights_are_learned_knows_deltas_from_values() -> None:
    state = {"w": np.array([10], np.float32)}
    begin = learning(Distance({"w": [4]}), steps=40)
    for send_as, sent in (("value", (4, 14)), ("delta", (-6, 4))):
        ask = Ask((Task("evaluate"), Task("train", send=("*",), send_as=send_as)), state, weight="learned")  # type: ignore[arg-type]
        fusion, rule = begin(ask)
        for name, w in zip("ab", sent, strict=True):
            one = reply(name, 1, w)
            fusion.add(one, rule.weigh(one))
        assert fusion.finish().weights["a"] > 0.99


def test_an_ask_that_wants_no_learned_weights_has_none() -> None:
    """CoDream's asks for gradients, in a run whose labels are weighted by learning."""
    fusion, rule = learning(Distance({"w": [4]}), steps=4)(Ask((Task("dream"),), {}, fusion="median", weight="equal"))
    assert isinstance(fusion, Median) and rule.name == "equal"


def test_weights_that_are_none_and_nothing_to_finish_are_our_bugs() -> None:
    with pytest.raises(AssertionError, match="before any reply"):
        LearnedMean(Distance({"w": [1]})).finish()
    with pytest.raises(AssertionError):
        LearnedMean(Distance({"w": [1]})).add(reply("a", 1, 3), math.nan)
