"""Fusion: numbers that can be checked by hand, and laws that all fusions pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgefl.aggregator.chosen import name_of
from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.fusion import FUSIONS, Clipped, TrimmedMean, WeightedMean, fusing, fusion_of
from edgefl.aggregator.rounds import Action, Announce, Note, RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.weights import rule_named
from edgefl.errors import ConfigError, RemoteProtocolError
from edgefl.method import Ask, Chosen, Fused, Reply, State, Task


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


weights = st.integers(1, 10_000)
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3)
replies = st.lists(st.tuples(weights, values), min_size=2, max_size=12)


def as_replies(drawn: list[tuple[int, list[float]]]) -> list[Reply]:
    """Of n examples each, and 2 n steps."""
    made = [reply(f"d{i}", n, *w, train_loss=w[0], train_examples=float(n)) for i, (n, w) in enumerate(drawn)]
    return [replace(one, steps=2 * one.examples) for one in made]


def part(name: str, examples: int, **tensors: float) -> Reply:
    return Reply(name, 0, examples, {n: np.array([w], np.float32) for n, w in tensors.items()}, {})


# --- laws of every fusion -----------------------------------------------------------------------------------------

# Every one of FUSIONS, with numbers where these change what it does.
CHOSEN: dict[str, Chosen] = {
    "mean": "mean",
    "median": "median",
    "trimmed_mean": "trimmed_mean",
    "trimmed_mean, a third": {"name": "trimmed_mean", "trim": 0.34},
    "trimmed_mean, nothing": {"name": "trimmed_mean", "trim": 0},
}


of_every_fusion = pytest.mark.parametrize("chosen", CHOSEN.values(), ids=list(CHOSEN))


def fused_by(chosen: Chosen, given: Iterable[Reply]) -> Fused:
    fusion = fusion_of(chosen)
    for one in given:
        fusion.add(one, float(one.examples))
    return fusion.finish()


def close(got: Fused, want: Fused) -> None:
    """Equal up to the last bit of a float32 of the largest term."""
    assert got.devices == want.devices and got.examples == want.examples
    assert got.tensors.keys() == want.tensors.keys()
    for name, value in want.tensors.items():
        np.testing.assert_allclose(got.tensors[name], value, rtol=2**-23, atol=1e-8)
    assert got.metrics == pytest.approx(want.metrics, rel=1e-12, abs=1e-6)
    assert (got.weights, got.measured, got.steps) == (want.weights, want.measured, want.steps)


def test_every_fusion_is_held_to_the_laws() -> None:
    assert {name_of(chosen, "fusion") for chosen in CHOSEN.values()} == set(FUSIONS)


@of_every_fusion
@given(drawn=replies, data=st.data())
def test_merging_is_adding(chosen: Chosen, drawn: list[tuple[int, list[float]]], data: st.DataObject) -> None:
    given_replies = as_replies(drawn)
    workers = [fusion_of(chosen) for _ in range(3)]
    for one in given_replies:
        workers[data.draw(st.integers(0, 2))].add(one, one.examples)
    total = fusion_of(chosen)
    for worker in workers:
        total.merge(worker)
    assert sorted(total.devices) == sorted(one.device for one in given_replies)
    close(total.finish(), fused_by(chosen, given_replies))


@of_every_fusion
@given(drawn=replies, rng=st.randoms(use_true_random=False))
def test_order_changes_nothing_beyond_rounding(chosen: Chosen, drawn: list[tuple[int, list[float]]], rng: Any) -> None:
    given_replies = as_replies(drawn)
    shuffled = given_replies.copy()
    rng.shuffle(shuffled)
    close(fused_by(chosen, shuffled), fused_by(chosen, given_replies))


@of_every_fusion
@given(drawn=replies, rng=st.randoms(use_true_random=False))
def test_who_sent_what_changes_nothing(chosen: Chosen, drawn: list[tuple[int, list[float]]], rng: Any) -> None:
    """The same replies under each other's names."""
    shuffled = drawn.copy()
    rng.shuffle(shuffled)
    got, want = (fused_by(chosen, as_replies(one)) for one in (shuffled, drawn))
    np.testing.assert_allclose(got.tensors["w"], want.tensors["w"], rtol=2**-23, atol=1e-8)


@of_every_fusion
@given(drawn=values, counts=st.lists(weights, min_size=1, max_size=12))
def test_equal_replies_are_their_own_fusion(chosen: Chosen, drawn: list[float], counts: list[int]) -> None:
    fused = fused_by(chosen, as_replies([(n, drawn) for n in counts]))
    np.testing.assert_array_max_ulp(fused.tensors["w"], np.array(drawn, np.float32), 1)


@of_every_fusion
@given(drawn=replies)
def test_nothing_is_beyond_what_was_sent(chosen: Chosen, drawn: list[tuple[int, list[float]]]) -> None:
    fused = fused_by(chosen, as_replies(drawn)).tensors["w"]
    sent = np.array([w for _, w in drawn], np.float32)
    assert (sent.min(0) <= fused).all() and (fused <= sent.max(0)).all()


@of_every_fusion
@given(drawn=replies)
def test_weights_are_parts_of_one_and_steps_are_as_said(chosen: Chosen, drawn: list[tuple[int, list[float]]]) -> None:
    fused = fused_by(chosen, as_replies(drawn))
    assert list(fused.weights) == list(fused.devices) == list(fused.measured)
    assert sum(fused.weights.values()) == pytest.approx(1, abs=1e-12)
    assert fused.steps == {f"d{i}": 2 * n for i, (n, _) in enumerate(drawn)}


@of_every_fusion
def test_replies_are_left_as_they_were_and_finishing_twice_is_harmless(chosen: Chosen) -> None:
    given_replies = [reply("a", 1, 3), reply("b", 3, 7)]
    for one in given_replies:
        one.tensors["w"].flags.writeable = False
    fusion = fusion_of(chosen)
    for one in given_replies:
        fusion.add(one, one.examples)
    first = fusion.finish()
    fusion.finish().tensors["w"][:] = 0
    np.testing.assert_array_equal(fusion.finish().tensors["w"], first.tensors["w"])


@of_every_fusion
def test_merging_leaves_the_other_alone(chosen: Chosen) -> None:
    one, two = fusion_of(chosen), fusion_of(chosen)
    two.add(reply("b", 3, 7), 3)
    one.merge(two)
    one.add(reply("a", 3, 3), 3)
    np.testing.assert_array_equal(two.finish().tensors["w"], [7])
    np.testing.assert_array_equal(one.finish().tensors["w"], [5])


@of_every_fusion
def test_merging_the_same_device_twice_is_our_bug(chosen: Chosen) -> None:
    one, two = fusion_of(chosen), fusion_of(chosen)
    one.add(reply("a", 1, 3), 1)
    two.add(reply("a", 1, 3), 1)
    with pytest.raises(AssertionError):
        one.merge(two)


@of_every_fusion
def test_nothing_to_finish_and_weights_that_are_none_are_our_bugs(chosen: Chosen) -> None:
    with pytest.raises(AssertionError, match="before any reply"):
        fusion_of(chosen).finish()
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AssertionError):
            fusion_of(chosen).add(reply("a", 1, 3), weight)


@of_every_fusion
def test_dtypes_and_shapes_are_kept(chosen: Chosen) -> None:
    tensors: dict[str, Any] = {
        "m": np.arange(6, dtype="f4").reshape(2, 3),
        "s": np.array(2.0, "f4"),
        "n": np.array([4, 8]),
        "e": np.zeros((0, 3), "f4"),
    }
    for name, value in fused_by(chosen, [Reply(name, 0, 3, tensors, {}) for name in "abc"]).tensors.items():
        assert value.dtype == tensors[name].dtype
        assert value.shape == tensors[name].shape
        np.testing.assert_array_equal(value, tensors[name])


@of_every_fusion
def test_a_tensor_of_another_shape_counts_nothing(chosen: Chosen) -> None:
    fusion = fusion_of(chosen)
    fusion.add(Reply("a", 0, 1, {"w": np.ones(3, np.float32)}, {}), 1.0)
    for wrong in (np.ones(1, np.float32), np.ones(2, np.float32), np.ones((3, 1), np.float32)):
        with pytest.raises(RemoteProtocolError, match=r"'b' sent 'w' of shape .*others sent \[3\]"):
            fusion.add(Reply("b", 0, 1, {"w": wrong}, {}), 1.0)
    assert fusion.finish().devices == ("a",)


@of_every_fusion
def test_each_tensor_is_fused_over_the_devices_that_sent_it(chosen: Chosen) -> None:
    """head of a and b, tail of b and c, only of a: as if nobody else were there."""
    a, b, c = part("a", 2, head=3, only=5), part("b", 2, head=7, tail=2), part("c", 2, tail=6)
    fused = fused_by(chosen, [a, b, c])
    assert {name: value.item() for name, value in fused.tensors.items()} == {"head": 5, "only": 5, "tail": 4}
    assert fused.devices == ("a", "b", "c") and fused.weights["a"] == pytest.approx(1 / 3)


@of_every_fusion
def test_accumulators_of_different_bundles_merge(chosen: Chosen) -> None:
    first, second = fusion_of(chosen), fusion_of(chosen)
    first.add(part("a", 2, head=3, only=5), 2)
    second.add(part("b", 2, head=7, tail=2), 2)
    first.merge(second)
    tensors = first.finish().tensors
    assert {name: value.item() for name, value in tensors.items()} == {"head": 5, "only": 5, "tail": 2}


# --- order statistics ---------------------------------------------------------------------------------------------


def scalars(*w: float) -> list[Reply]:
    return [reply(f"d{i:02}", i + 1, value) for i, value in enumerate(w)]


def test_the_median_of_each_coordinate() -> None:
    """Of [9, 1, 5] the 5 and of [0, 2, 1] the 1, whoever they are from; of [1, 2, 4, 100] the mean of 2 and 4."""
    fused = fused_by("median", [reply("a", 1, 9, 0), reply("b", 1000, 1, 2), reply("c", 1, 5, 1)])
    np.testing.assert_array_equal(fused.tensors["w"], [5, 1])
    assert fused.weights == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    assert fused.examples == 1002
    assert fused_by("median", scalars(100, 1, 4, 2)).tensors["w"] == [3]


@pytest.mark.parametrize(
    ("trim", "sent", "want"),
    [
        (0.2, [1, 2, 3, 4, 1000], 3),  # one at each end: (2 + 3 + 4) / 3
        (0.2, [-1000, 0, 3, 6, 1000], 3),
        (0.2, [0, 1, 2, 4, 5, 6, 7, 9, 10, 1000], 5.5),  # two at each end: (2 + 4 + 5 + 6 + 7 + 9) / 6
        (0.1, [0, 1, 2, 3, 4, 5, 6, 1000], 3.5),  # 0.8 of a reply is one: (1 + ... + 6) / 6
        (0.45, [0, 1, 5, 1000], 3),  # 1.8 would leave nothing: two are left
        (0.45, [0, 1, 5, 7, 1000], 5),  # 2.25 would leave nothing: one is left
        (0.45, [7], 7),
        (0.1, [7, 9], 8),
        (0.0, [1, 2, 3, 6], 3),
        (0.0, [2**24, 1, 1], 5592406),  # a sum of float32 would lose both ones
    ],
)
def test_the_mean_without_both_ends(trim: float, sent: list[float], want: float) -> None:
    fused = fused_by({"name": "trimmed_mean", "trim": trim}, scalars(*sent))
    assert fused.tensors["w"].item() == pytest.approx(want, rel=1e-7)


def test_a_share_that_is_a_whole_number_of_replies_is_trimmed_exactly() -> None:
    """0.07 * 100 is 7.000000000000001 in float64, and still 7 at each end: one of 8 liars is left among 86."""
    sent = [1000.0] * 8 + [0.0] * 92
    fused = fused_by({"name": "trimmed_mean", "trim": 0.07}, scalars(*sent))
    assert fused.tensors["w"].item() == pytest.approx(1000 / 86)


@given(drawn=st.lists(values, min_size=5, max_size=9), lies=st.lists(values, min_size=2, max_size=2))
def test_two_liars_among_five_or_more_move_nothing_beyond_the_others(
    drawn: list[list[float]], lies: list[list[float]]
) -> None:
    honest = np.array(drawn, np.float32)
    sent = as_replies([(1, w) for w in (*drawn, *([1e30 * np.sign(x) for x in lie] for lie in lies))])
    for chosen in ("median", {"name": "trimmed_mean", "trim": 0.3}):
        fused = fused_by(chosen, sent).tensors["w"]
        assert (honest.min(0) <= fused).all() and (fused <= honest.max(0)).all()


# --- the mean -----------------------------------------------------------------------------------------------------


@given(replies)
def test_it_is_the_mean_of_exact_arithmetic(drawn: list[tuple[int, list[float]]]) -> None:
    from fractions import Fraction

    got = fuse(*as_replies(drawn)).tensors["w"]
    for i in range(3):
        exact = sum(n * Fraction(w[i]) for n, w in drawn) / sum(n for n, _ in drawn)
        largest = max(abs(w[i]) for _, w in drawn)
        assert abs(float(got[i]) - float(exact)) <= 2**-23 * abs(float(exact)) + 2**-48 * largest


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


def test_a_device_that_says_its_examples_counts_beside_one_that_does_not() -> None:
    """One example, where nothing is said: (3 * 1 + 1 * 5) / 4."""
    fused = fuse(reply("a", 1, 0, train_loss=1.0, train_examples=3.0), reply("b", 1, 0, train_loss=5.0))
    assert fused.metrics["train.loss"] == 2.0


def test_only_a_programs_own_counts_add_up() -> None:
    fused = fuse(reply("a", 1, 0, evaluate_head_correct=2.0), reply("b", 1, 0, evaluate_head_correct=4.0))
    assert fused.metrics == {"evaluate.head.correct": 3.0}
    many = [reply(name, 1, 0, evaluate_head_loss=x, evaluate_examples=n) for name, x, n in (("a", 1, 3), ("b", 5, 1))]
    assert fuse(*many).metrics["evaluate.head.loss"] == 2.0


def test_what_each_device_measured_is_kept() -> None:
    fused = fuse(reply("b", 1, 0, train_loss=2.0), reply("a", 1, 0, train_loss=1.0))
    assert fused.measured == {"a": {"train.loss": 1.0}, "b": {"train.loss": 2.0}}
    assert fused_by("median", [reply("a", 1, 0, train_loss=1.0)]).measured == {"a": {"train.loss": 1.0}}


# --- weights by device --------------------------------------------------------------------------------------------


def test_the_weight_of_each_device_is_its_part_of_one() -> None:
    fused = fuse(reply("b", 3, 7), reply("a", 1, 3))
    assert fused.weights == {"a": 0.25, "b": 0.75}
    assert list(fused.weights) == ["a", "b"]


def test_a_share_is_of_the_median_weight_and_what_just_reaches_it_is_not_clipped() -> None:
    """Median 2, three times that is 6: only 50 counts less. (2 * 1 + 2 * 2 + 6 * 3 + 6 * 4 + 1 * 0) / 17."""
    fusion = Clipped(WeightedMean(), 3.0)
    for name, value, weight in (("a", 1, 2.0), ("b", 2, 2.0), ("c", 3, 6.0), ("d", 4, 50.0), ("e", 0, 1.0)):
        fusion.add(reply(name, 1, value), weight)
    fused = fusion.finish()
    assert fusion.clipped == {"d": (6.0, 50.0)}
    assert fused.tensors["w"].item() == pytest.approx(48 / 17)


def test_held_replies_know_the_shapes_of_all_that_came() -> None:
    """Also of a tensor that the last one did not have, and of those that another worker holds."""
    fusion, other = Clipped(WeightedMean(), 3.0), Clipped(WeightedMean(), 3.0)
    fusion.add(part("a", 1, w=1), 1.0)
    fusion.add(part("b", 1, v=1), 1.0)
    other.add(part("c", 1, u=1), 1.0)
    fusion.merge(other)
    for name in "wvu":
        with pytest.raises(RemoteProtocolError, match=f"'d' sent '{name}' of shape"):
            fusion.add(Reply("d", 0, 1, {name: np.zeros((2, 2), np.float32)}, {}), 1.0)
    assert fusion.devices == ("a", "b", "c")


# --- names --------------------------------------------------------------------------------------------------------


def test_names_and_numbers() -> None:
    assert isinstance(fusion_of("mean"), WeightedMean)
    assert fusion_of("mean") is not fusion_of("mean")
    for trim, chosen in (
        (0.1, "trimmed_mean"),
        (0.1, {"name": "trimmed_mean"}),
        (0.25, {"name": "trimmed_mean", "trim": 0.25}),
    ):
        fusion = fusion_of(chosen)
        assert isinstance(fusion, TrimmedMean) and fusion.trim == trim


@pytest.mark.parametrize(
    ("chosen", "message", "hint"),
    [
        ("avg", "no fusion is called 'avg'", "known: mean, median, trimmed_mean"),
        ("medain", "no fusion is called 'medain'", "did you mean 'median'?"),
        ({"trim": 0.1}, "a fusion has a name, and {'trim': 0.1} has none", '{ name = "NAME", NUMBER = 0.1 }'),
        (
            {"name": "trimmed_mean", "trimm": 0.1},
            "fusion 'trimmed_mean': unknown number 'trimm'",
            "did you mean 'trim'?",
        ),
        ({"name": "median", "trim": 0.1}, "fusion 'median': unknown number 'trim'", "fusion 'median' has none"),
        ({"name": "trimmed_mean", "trim": 0.5}, "fusion 'trimmed_mean': trim: Expected `float` < 0.5", None),
        ({"name": "trimmed_mean", "trim": -0.1}, "fusion 'trimmed_mean': trim: Expected `float` >= 0.0", None),
        ({"name": "trimmed_mean", "trim": "much"}, "fusion 'trimmed_mean': trim: Expected `float`, got `str`", None),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_one_line(chosen: Chosen, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as refused:
        fusion_of(chosen)
    assert (refused.value.message, refused.value.hint) == (message, hint)


def test_an_ask_names_its_fusion_and_its_rule() -> None:
    fusion, rule = fusing(Ask((), {}, weight="equal"))
    assert isinstance(fusion, WeightedMean) and rule.name == "equal"


# --- a fusion of one's own ----------------------------------------------------------------------------------------

MINE = """
import numpy as np
from edgefl.aggregator.fusion import Coordinates, Replies

class Largest(Coordinates):
    def combine(self, values):
        return values.max(axis=0)

class Power(Replies):
    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def finish(self):
        held = self.sorted()
        total = sum(weight**self.power for _, weight in held)
        parts = {reply.device: weight**self.power / total for reply, weight in held}
        w = sum(parts[reply.device] * reply.tensors["w"] for reply, _ in held)
        return self.fused({"w": w.astype(np.float32)}, parts)

def power_of(*, power):
    return Power(power)

class Nothing:
    pass

class Silent(Replies):
    def finish(self):
        return None

class Broken(Replies):
    def finish(self):
        return self.sorted()[7]

class Narrow(Coordinates):
    def combine(self, values):
        return values[0][:1]

class Forgets(Replies):
    def finish(self):
        return self.fused({}, {})

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., Chosen]:
    """One of the fusions in MINE, with numbers."""
    (tmp_path / "mine.py").write_text(MINE)
    return lambda name, **numbers: {"name": f"{tmp_path}/mine.py:{name}", **numbers}


def test_a_class_or_a_function_of_ones_own_file(mine: Callable[..., Chosen]) -> None:
    """The largest of [3, 0] and [1, 4]; weights 1 and 3, so squared 1 and 9: (3 + 9 * 1) / 10, (0 + 9 * 4) / 10."""
    sent = [reply("a", 1, 3, 0), reply("b", 3, 1, 4)]
    np.testing.assert_array_equal(fused_by(mine("Largest"), sent).tensors["w"], [3, 4])
    for chosen in (mine("Power"), mine("Power", power=2), mine("power_of", power=2.0)):
        fused = fused_by(chosen, sent)
        np.testing.assert_allclose(fused.tensors["w"], [1.2, 3.6], rtol=1e-6)
        assert fused.weights == {"a": 0.1, "b": 0.9} and fused.devices == ("a", "b")
    assert not fusion_of(mine("Largest")).weighs and fusion_of(mine("Power")).weighs


def test_own_fusions_merge(mine: Callable[..., Chosen]) -> None:
    one, two = fusion_of(mine("Largest")), fusion_of(mine("Largest"))
    one.add(part("a", 1, head=3), 1)
    two.add(part("b", 1, head=5, tail=2), 1)
    one.merge(two)
    assert one.devices == ("a", "b")
    assert {name: value.item() for name, value in one.finish().tensors.items()} == {"head": 5, "tail": 2}


@pytest.mark.parametrize(
    ("name", "numbers", "message", "hint"),
    [
        ("Largset", {}, "no 'Largset' in mine.py", "did you mean 'Largest'?"),
        ("number", {}, "'number' in mine.py is no function", "class number(edgefl.aggregator.fusion.Replies): ..."),
        ("Nothing", {}, "Nothing is no fusion: it has no 'devices'", "derive it from edgefl.aggregator.fusion.Replies"),
        ("Replies", {}, "Replies is no fusion: it has no 'finish'", "derive it from edgefl.aggregator.fusion.Replies"),
        ("Power", {"pow": 2}, "unknown number 'pow'", "did you mean 'power'?"),
        ("Power", {"power": "high"}, "power: Expected `float`, got `str`", None),
        ("power_of", {}, "power is missing", '{ name = "NAME", power = 0.1 }'),
        ("power_of", {"power": {}}, "failed: TypeError", None),
    ],
)
def test_what_is_no_fusion_is_refused_in_one_line(
    mine: Callable[..., Chosen], name: str, numbers: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(ConfigError) as refused:
        fused_by(mine(name, **numbers), [reply("a", 2, 3)])
    assert refused.value.message.startswith(f"fusion 'mine.py:{name}'")
    assert message in refused.value.message and "\n" not in refused.value.message
    assert refused.value.hint == hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Silent", "gives a NoneType"),
        ("Broken", "failed: IndexError: list index out of range"),
        ("Narrow", "gives 'w' of shape [1]; the replies hold it of shape [2]"),
        ("Forgets", "gives 'w' not at all; the replies hold it of shape [2]"),
    ],
)
def test_what_it_gives_wrong_is_said_in_one_line(mine: Callable[..., Chosen], name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        fused_by(mine(name), [reply("a", 1, 3, 0), reply("b", 3, 1, 4)])
    assert refused.value.message == f"fusion 'mine.py:{name}' {message}"


# --- no share to bound where weights count nothing ----------------------------------------------------------------


class Chooses:
    """One round of everybody's 1-number model, fused as somebody has chosen."""

    def __init__(self, fusion: Chosen, weight: str) -> None:
        self.fusion, self.weight = fusion, weight

    def start(self) -> State:
        return State(0, {"w": np.zeros(1, np.float32)})

    def ask(self, state: State) -> Ask | None:
        task = Task("train", send=("w",))
        return None if state.round else Ask((task,), state.tensors, fusion=self.fusion, weight=self.weight)

    def advance(self, state: State, fused: Fused) -> State:
        return State(1, fused.tensors)


@pytest.mark.parametrize(("fusion", "said"), [("mean", ["c"]), ("median", []), (CHOSEN["trimmed_mean"], [])])
@pytest.mark.parametrize("weight", ["examples", "examples*steps"])
def test_nobody_is_told_that_its_weight_was_clipped_where_weights_count_nothing(
    fusion: Chosen, said: list[str], weight: str
) -> None:
    """1, 1 and 100 examples: 3 is the most of a mean; a median holds each reply once."""
    method = Chooses(fusion, weight)
    coordinator = Coordinator(method, method.start(), RoundSettings(min_devices=3))
    counts = {"a": 1, "b": 1, "c": 100}
    for name, examples in counts.items():
        actions = coordinator.joined(name, 0.0, examples=examples)
    (nonce,) = [action.nonce for action in actions if isinstance(action, Announce)]
    told: list[Action] = []
    for name, examples in counts.items():
        sent = Reply(name, 0, examples, {"w": np.ones(1, np.float32)}, {"train.solver_steps": 1.0})
        told += coordinator.replied(sent, nonce, 1.0)[1]
    assert [note.device for note in told if isinstance(note, Note) and note.event == "clipped"] == said
    (done,) = [action for action in told if isinstance(action, RoundDone)]
    assert done.fused.weights["c"] == pytest.approx(0.6 if said else 1 / 3)
