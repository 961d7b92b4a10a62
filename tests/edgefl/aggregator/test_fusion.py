"""Fusion: means that can be checked by hand, whatever the order and however the work is split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.aggregator.fusion import FUSIONS, Clipped, WeightedMean, fusing, fusion_named
from edgefl.aggregator.weights import rule_named
from edgefl.errors import ConfigError, RemoteProtocolError
from edgefl.method import Ask, Fused, Reply


def reply(name: str, examples: int, *w: float, **metrics: float) -> Reply:
    named = {key.replace("_", "."): value for key, value in metrics.items()}
    return Reply(name, 0, examples, {"w": np.array(w, np.float32)}, named)


def fuse(*replies: Reply, weight: str = "examples") -> Fused:
    fusion = WeightedMean()
    for one in replies:
        fusion.add(one, rule_named(weight).weigh(one))
    return fusion.finish()


def test_unequal_devices_by_hand() -> None:
    """(1*[3, 0] + 3*[7, 4]) / 4 = [6, 3]"""
    fused = fuse(reply("a", 1, 3, 0), reply("b", 3, 7, 4))
    np.testing.assert_array_equal(fused.tensors["w"], [6, 3])
    assert fused.tensors["w"].dtype == np.float32
    assert fused.devices == ("a", "b")
    assert fused.examples == 4


def test_equal_weights_by_hand() -> None:
    fused = fuse(reply("a", 1, 3, 0), reply("b", 3, 7, 4), weight="equal")
    np.testing.assert_array_equal(fused.tensors["w"], [5, 2])


def test_a_device_that_dropped_out_is_not_in_the_denominator() -> None:
    """m_t sums over who answered: without c the mean of a and b is theirs alone, not (1*3 + 3*7) / 8."""
    np.testing.assert_array_equal(fuse(reply("a", 1, 3), reply("b", 3, 7)).tensors["w"], [6])
    np.testing.assert_array_equal(fuse(reply("a", 1, 3), reply("b", 3, 7), reply("c", 4, 100)).tensors["w"], [53])


def test_one_reply_is_its_own_mean_bit_for_bit() -> None:
    w = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for examples in (1, 3, 600, 10**9):
        assert fuse(reply("a", examples, *w)).tensors["w"].tobytes() == w.tobytes()


def test_equal_replies_are_their_own_mean() -> None:
    w = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    fused = fuse(*(reply(f"d{i}", i + 1, *w) for i in range(7)))
    np.testing.assert_array_max_ulp(fused.tensors["w"], w, 1)


def test_dtypes_and_shapes_are_kept() -> None:
    tensors: dict[str, Any] = {
        "m": np.arange(6, dtype="f4").reshape(2, 3),
        "s": np.array(2.0, "f4"),
        "n": np.array([4, 8]),
        "e": np.zeros((0, 3), "f4"),
    }
    fusion = WeightedMean()
    for name in "ab":
        fusion.add(Reply(name, 0, 3, tensors, {}), 3.0)
    for name, value in fusion.finish().tensors.items():
        assert value.dtype == tensors[name].dtype
        assert value.shape == tensors[name].shape
        np.testing.assert_array_equal(value, tensors[name])


@pytest.mark.parametrize("order", ["abc", "cab", "bca", "acb"])
def test_a_clipped_mean_does_not_depend_on_the_order_to_the_last_bit(order: str) -> None:
    """1e30 - 1e30 + 3 is 3 only in this order, that of the names; d counts 3 times the median, in place of 50."""
    given = {"a": 1e30, "b": -1e30, "c": 3.0}
    fusion = Clipped(WeightedMean(), 3.0)
    fusion.add(reply("d", 1, 0), 50.0)
    for name in order:
        fusion.add(reply(name, 1, given[name]), 1.0)
    assert fusion.devices == ("d", *order)
    fused = fusion.finish()
    assert fused.tensors["w"] == [0.5]
    assert fusion.clipped == {"d": (3.0, 50.0)}


def test_held_replies_are_of_one_shape() -> None:
    fusion = Clipped(WeightedMean(), 3.0)
    fusion.add(reply("a", 1, 1, 2), 1.0)
    with pytest.raises(RemoteProtocolError, match=r"'b' sent 'w' of shape \[1\]; others sent \[2\]"):
        fusion.add(reply("b", 1, 1), 1.0)
    assert fusion.devices == ("a",)


def test_replies_are_left_as_they_were() -> None:
    first, second = reply("a", 1, 3), reply("b", 3, 7)
    for one in (first, second):
        one.tensors["w"].flags.writeable = False
    fusion = WeightedMean()
    fusion.add(first, 1.0)
    fusion.add(second, 3.0)
    assert fusion.finish().tensors["w"] == [6]
    assert fusion.finish().tensors["w"] == [6]  # asking twice is harmless


weights = st.integers(1, 10_000)
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3)
replies = st.lists(st.tuples(weights, values), min_size=2, max_size=12)


def as_replies(drawn: list[tuple[int, list[float]]]) -> list[Reply]:
    return [reply(f"d{i}", n, *w, train_loss=w[0], train_examples=float(n)) for i, (n, w) in enumerate(drawn)]


def close(got: Fused, want: Fused) -> None:
    """Equal up to the last bit of a float32 of the largest term."""
    assert got.devices == want.devices and got.examples == want.examples
    np.testing.assert_allclose(got.tensors["w"], want.tensors["w"], rtol=2**-23, atol=1e-8)
    assert got.metrics == pytest.approx(want.metrics, rel=1e-12, abs=1e-6)


@given(replies, st.data())
def test_merging_is_adding(drawn: list[tuple[int, list[float]]], data: st.DataObject) -> None:
    given_replies = as_replies(drawn)
    workers = [WeightedMean() for _ in range(3)]
    for one in given_replies:
        workers[data.draw(st.integers(0, 2))].add(one, one.examples)
    total = WeightedMean()
    for worker in workers:
        total.merge(worker)
    close(total.finish(), fuse(*given_replies))


@given(replies, st.randoms(use_true_random=False))
def test_order_changes_nothing_beyond_rounding(drawn: list[tuple[int, list[float]]], rng: Any) -> None:
    given_replies = as_replies(drawn)
    shuffled = given_replies.copy()
    rng.shuffle(shuffled)
    close(fuse(*shuffled), fuse(*given_replies))


@given(replies)
def test_it_is_the_mean_of_exact_arithmetic(drawn: list[tuple[int, list[float]]]) -> None:
    from fractions import Fraction

    got = fuse(*as_replies(drawn)).tensors["w"]
    for i in range(3):
        exact = sum(n * Fraction(w[i]) for n, w in drawn) / sum(n for n, _ in drawn)
        largest = max(abs(w[i]) for _, w in drawn)
        assert abs(float(got[i]) - float(exact)) <= 2**-23 * abs(float(exact)) + 2**-48 * largest


def test_merging_leaves_the_other_alone() -> None:
    one, two = WeightedMean(), WeightedMean()
    two.add(reply("b", 3, 7), 3)
    one.merge(two)
    one.add(reply("a", 1, 3), 1)
    np.testing.assert_array_equal(two.finish().tensors["w"], [7])
    np.testing.assert_array_equal(one.finish().tensors["w"], [6])


def test_merging_the_same_device_twice_is_our_bug() -> None:
    one, two = WeightedMean(), WeightedMean()
    one.add(reply("a", 1, 3), 1)
    two.add(reply("a", 1, 3), 1)
    with pytest.raises(AssertionError):
        one.merge(two)


def test_nothing_to_finish_and_weights_that_are_none_are_our_bugs() -> None:
    with pytest.raises(AssertionError, match="before any reply"):
        WeightedMean().finish()
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AssertionError):
            WeightedMean().add(reply("a", 1, 3), weight)


def test_one_accumulator_whatever_the_number_of_devices() -> None:
    """8 bytes a number after one reply, and after a thousand; no reply is held."""
    import tracemalloc

    def replies(count: int) -> Any:
        for i in range(count):
            yield Reply(f"d{i}", 0, 1, {"w": np.full(10_000, i, np.float32)}, {})

    fusion = WeightedMean()
    tracemalloc.start()
    try:
        for one in replies(2):
            fusion.add(one, 1.0)
        after_two, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for one in replies(1000):
            fusion.add(one, 1.0)
        del one
        after_many, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_two >= 80_000
    assert after_many - after_two < 200_000  # names and metrics of a thousand devices; their tensors are 40 MB
    assert peak - after_two < 400_000  # one reply, one product


# --- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_are_means_by_examples_and_counts_add_up() -> None:
    """Loss (10*1 + 30*2) / 40; 4 + 20 right of 40."""
    fused = fuse(
        reply("a", 1, 0, evaluate_loss=1.0, evaluate_correct=4.0, evaluate_examples=10.0),
        reply("b", 99, 0, evaluate_loss=2.0, evaluate_correct=20.0, evaluate_examples=30.0),
    )
    assert fused.metrics == {"evaluate.correct": 24.0, "evaluate.examples": 40.0, "evaluate.loss": 1.75}


def test_a_metric_counts_over_the_examples_of_its_own_program() -> None:
    fused = fuse(
        reply("a", 1, 0, train_loss=1.0, train_examples=1.0, evaluate_loss=1.0, evaluate_examples=9.0),
        reply("b", 1, 0, train_loss=2.0, train_examples=3.0, evaluate_loss=2.0, evaluate_examples=1.0),
    )
    assert fused.metrics["train.loss"] == 1.75
    assert fused.metrics["evaluate.loss"] == 1.1


def test_a_metric_without_examples_is_a_plain_mean_over_those_that_have_it() -> None:
    fused = fuse(reply("a", 1, 0, solver_steps=4.0), reply("b", 9, 0, solver_steps=8.0), reply("c", 9, 0))
    assert fused.metrics == {"solver.steps": 6.0}


def test_a_mean_over_no_examples_is_left_out() -> None:
    assert fuse(reply("a", 1, 0, evaluate_loss=1.0, evaluate_examples=0.0)).metrics == {"evaluate.examples": 0.0}


# --- weights by device --------------------------------------------------------------------------------------------


def test_the_weight_of_each_device_is_its_part_of_one() -> None:
    fused = fuse(reply("b", 3, 7), reply("a", 1, 3))
    assert fused.weights == {"a": 0.25, "b": 0.75}
    assert list(fused.weights) == ["a", "b"]


@given(replies)
def test_weights_sum_to_one_and_merge_as_they_add(drawn: list[tuple[int, list[float]]]) -> None:
    first, second = WeightedMean(), WeightedMean()
    for i, one in enumerate(as_replies(drawn)):
        (first, second)[i % 2].add(one, one.examples)
    first.merge(second)
    merged = first.finish()
    assert sum(merged.weights.values()) == pytest.approx(1, abs=1e-12)
    assert merged.weights == fuse(*as_replies(drawn)).weights


# --- devices that hold different tensors --------------------------------------------------------------------------


def part(name: str, examples: int, **tensors: float) -> Reply:
    return Reply(name, 0, examples, {n: np.array([w], np.float32) for n, w in tensors.items()}, {})


def test_each_tensor_is_the_mean_over_the_devices_that_sent_it() -> None:
    """head: (1*3 + 3*7) / 4 = 6; tail of b and c: (3*2 + 1*6) / 4 = 3; only: a's alone."""
    fused = fuse(part("a", 1, head=3, only=5), part("b", 3, head=7, tail=2), part("c", 1, tail=6))
    assert {name: value.item() for name, value in fused.tensors.items()} == {"head": 6, "only": 5, "tail": 3}
    assert fused.weights == {"a": 0.2, "b": 0.6, "c": 0.2}


def test_accumulators_of_different_bundles_merge() -> None:
    first, second = WeightedMean(), WeightedMean()
    first.add(part("a", 1, head=3, only=5), 1)
    second.add(part("b", 3, head=7, tail=2), 3)
    first.merge(second)
    tensors = first.finish().tensors
    assert {name: value.item() for name, value in tensors.items()} == {"head": 6, "only": 5, "tail": 2}


# --- names --------------------------------------------------------------------------------------------------------


def test_names_and_unknown_names() -> None:
    assert isinstance(fusion_named("mean"), WeightedMean)
    assert fusion_named("mean") is not fusion_named("mean")
    with pytest.raises(ConfigError, match="no fusion is called 'avg'") as refused:
        fusion_named("avg")
    assert refused.value.hint == f"known: {', '.join(FUSIONS)}"


def test_an_ask_names_its_fusion_and_its_rule() -> None:
    fusion, rule = fusing(Ask((), {}, weight="equal"))
    assert isinstance(fusion, WeightedMean) and rule.name == "equal"


def test_a_tensor_of_another_shape_counts_nothing() -> None:
    fusion = WeightedMean()
    fusion.add(Reply("a", 0, 1, {"w": np.ones(3, np.float32)}, {}), 1.0)
    for wrong in (np.ones(1, np.float32), np.ones(2, np.float32), np.ones((3, 1), np.float32)):
        with pytest.raises(RemoteProtocolError, match=r"'b' sent 'w' of shape .*others sent \[3\]"):
            fusion.add(Reply("b", 0, 1, {"w": wrong}, {}), 1.0)
    assert fusion.finish().devices == ("a",)
