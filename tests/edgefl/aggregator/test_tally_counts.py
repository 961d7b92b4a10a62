"""A tally by itself: what a reply counts, what is said of it, and which count at all."""

from __future__ import annotations

import numpy as np
import pytest

from edgefl.aggregator.fusion import Fusion, Median, WeightedMean
from edgefl.aggregator.norms import Usual
from edgefl.aggregator.tally import Tally
from edgefl.aggregator.weights import Rule, rule_named
from edgefl.errors import RemoteProtocolError
from edgefl.method import Ask, Reply, Task

ASK = Ask((Task(program="train", send=("x",)),), {"x": np.zeros(1, np.float32)})
OWN = Rule("own", lambda reply: float(reply.examples))  # as by examples, but known only from replies


def reply(device: str, examples: int = 1, value: float = 1.0) -> Reply:
    """Its norm is `value`."""
    return Reply(device, 0, examples, {"x": np.array([value], np.float32)}, {})


def tally(
    rule: Rule | None = None,
    fusion: type[Fusion] = WeightedMean,
    usual: Usual | None = None,
    max_share: float = 3.0,
    max_norm: float = 0.0,
) -> Tally:
    chosen = rule or rule_named("examples")
    return Tally(ASK, lambda ask: (fusion(), chosen), usual or Usual(), max_share=max_share, max_norm=max_norm)


def test_a_reply_counts_no_more_than_the_limit_and_it_is_said_once() -> None:
    """1, 1 and 1 were stated: the limit is 3. What is exactly that is not clipped."""
    one = tally()
    assert one.weight_limit == 0.0
    one.limit_weights([1, 1, 1])
    assert one.weight_limit == 3.0
    assert one.count(reply("a", 3), None) == ""
    assert one.count(reply("b", 4), None) == "counts as 3 of 4"
    assert one.count(reply("c", 5), None) == "counts as 3 of 5"
    assert one.fuse().weights == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    one.undo(["a"], "it was undone")
    assert one.count(reply("b", 4), None) == ""  # it was said
    assert one.barred == {"a": "it was undone"} and one.replied == {"b"}


@pytest.mark.parametrize("max_share", [0.0, 3.0])
def test_without_a_share_or_a_limit_nothing_is_clipped(max_share: float) -> None:
    one = tally(max_share=max_share)
    if not max_share:
        one.limit_weights([1, 1])
    assert one.weight_limit == 0.0
    assert [one.count(reply("a", 1), None), one.count(reply("b", 999), None)] == ["", ""]
    assert one.fuse().weights["b"] == pytest.approx(0.999)
    assert one.clipped() == []


def test_weights_that_replies_tell_are_clipped_when_all_are_there() -> None:
    """1, 1, 1, 10 and 20: three times the lower median, 1, is 3."""
    one = tally(OWN)
    for device, examples in (("a", 1), ("b", 1), ("c", 1), ("d", 10), ("e", 20)):
        assert one.count(reply(device, examples), None) == ""
    assert one.fuse().weights["e"] == pytest.approx(3 / 9)
    assert sorted(one.clipped()) == [("d", "counts as 3 of 10"), ("e", "counts as 3 of 20")]
    assert one.clipped() == []  # it was said


@pytest.mark.parametrize(("fusion", "max_share"), [(Median, 3.0), (WeightedMean, 0.0)])
def test_where_weights_change_nothing_or_may_be_any_none_is_clipped(fusion: type[Fusion], max_share: float) -> None:
    one = tally(OWN, fusion, max_share=max_share)
    for device, examples in (("a", 1), ("b", 1), ("c", 999)):
        one.count(reply(device, examples), None)
    weights = one.fuse().weights
    assert one.clipped() == []
    assert weights["c"] == pytest.approx(1 / 3 if fusion is Median else 999 / 1001)


def test_a_reply_far_larger_than_usual_is_barred_and_one_at_the_limit_is_not() -> None:
    """Usual is 0.25, and twice that is the limit."""
    usual = Usual()
    usual.note(ASK, [0.25, 0.25, 0.25])
    one = tally(usual=usual, max_norm=2.0)
    assert one.count(reply("a", value=0.5), None) == ""
    with pytest.raises(RemoteProtocolError, match="a change of norm 0.75, more than 2 times the usual 0.25"):
        one.count(reply("b", value=0.75), None)
    assert one.barred == {"b": "a change of norm 0.75, more than 2 times the usual 0.25"}
    assert one.replied == {"a"}


def test_without_a_limit_on_norms_none_is_an_outlier() -> None:
    one = tally(max_norm=0.0)
    for device, value in (("a", 1.0), ("b", 1.0), ("c", 1e9)):
        one.count(reply(device, value=value), None)
    assert one.outliers() is None
    two = tally(max_norm=10.0)
    for device, value in (("a", 1.0), ("b", 1.0), ("c", 100.0)):
        two.count(reply(device, value=value), None)
    assert two.outliers() == ("a change of norm 100 beside a median of 1", ["c"])
