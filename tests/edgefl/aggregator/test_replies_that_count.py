"""Devices that fail, and replies that are late, foreign or there already: what counts, and what does not."""

from __future__ import annotations

import pytest
from rounds import Count, fleet, make, nonce_of, of, open_with, reply, send

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.fusion import WeightedMean
from edgefl.aggregator.rounds import Announce, Finished, Note, RoundDone, Verdict
from edgefl.aggregator.weights import Rule

# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_device_is_not_waited_for() -> None:
    coordinator, _ = open_with(2)
    assert coordinator.failed("d00", 0, "no space", 1.0) == [Note("failed", 0, "d00", "no space")]
    (done,) = of(send(coordinator, "d01")[1], RoundDone)
    assert done.fused.devices == ("d01",)


def test_a_device_that_failed_may_still_reply() -> None:
    coordinator, _ = open_with(2, quorum=1.0)
    coordinator.failed("d00", 0, "no space", 1.0)
    assert send(coordinator, "d00")[0].status == "accepted"
    (done,) = of(send(coordinator, "d01")[1], RoundDone)
    assert len(done.fused.devices) == 2


def test_who_failed_and_was_asked_again_is_waited_for_again() -> None:
    """At the deadline one of two has failed; asked again, its second failure ends the waiting at once, and with its
    reply the round is over."""
    for replies in (False, True):
        coordinator, _ = open_with(2, quorum=1.0)
        coordinator.failed("d00", 0, "no space", 1.0)
        assert of(coordinator.tick(100.0), Announce)
        assert of(send(coordinator, "d01", 101.0)[1], Announce) == []  # d00 may still reply
        if replies:
            assert len(of(send(coordinator, "d00", 102.0)[1], RoundDone)) == 1
        else:
            assert coordinator.failed("d00", 0, "no space", 102.0) == [Note("failed", 0, "d00", "no space")]
            assert coordinator.replies == (1, 2)


def test_who_failed_before_it_replied_is_waited_for_when_the_round_is_done_again() -> None:
    coordinator, _ = open_with(3, quorum=0.1)
    coordinator.failed("d00", 0, "no space", 1.0)
    send(coordinator, "d00"), send(coordinator, "d01")
    assert of(send(coordinator, "d02", value=1e9)[1], Announce)  # undone, without d02
    assert of(send(coordinator, "d01")[1], RoundDone) == []
    (done,) = of(send(coordinator, "d00")[1], RoundDone)
    assert done.fused.devices == ("d00", "d01")


def test_when_all_have_failed_the_others_are_asked_in_their_place() -> None:
    coordinator, first = open_with(4, fraction=0.5, quorum=1.0)
    a, b = first.devices
    coordinator.failed(a, 0, "no space", 1.0)
    (again,) = of(coordinator.failed(b, 0, "no space", 1.0), Announce)
    assert set(again.devices) == set(fleet(4))
    others = sorted(set(fleet(4)) - {a, b})
    send(coordinator, others[0], 2.0)
    (done,) = of(
        [x for name in (a, b) for x in coordinator.failed(name, 0, "still no space", 2.0)]
        + send(coordinator, others[1], 3.0)[1],
        RoundDone,
    )
    assert set(done.fused.devices) == set(others)


@pytest.mark.parametrize("spare", range(4))
def test_devices_that_always_fail_are_not_asked_in_a_loop(spare: int) -> None:
    """Each fails as soon as it is asked: after one attempt for each spare device, the deadline is waited for."""
    coordinator, announce = open_with(2 + spare, fraction=2 / (2 + spare), quorum=1.0)
    waiting = [announce]
    announced = 0
    while waiting:
        for name in waiting.pop().devices:
            waiting += of(coordinator.failed(name, 0, "broken", 1.0), Announce)
        announced += 1
        assert announced < 20
    assert announced <= 1 + spare
    assert coordinator.tick(99.0) == []
    assert of(coordinator.tick(101.0), Announce)


def test_a_failure_of_another_round_or_of_somebody_not_asked_is_ignored() -> None:
    coordinator = make("a", "b")  # b came too late for this round
    assert coordinator.failed("a", 1, "x", 1.0) == []
    assert coordinator.failed("b", 0, "x", 1.0) == []
    assert coordinator.failed("z", 0, "x", 1.0) == []


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused_and_the_device_not_waited_for(weight: float) -> None:
    rule = Rule("odd", lambda reply: weight if reply.device == "a" else 1.0)
    coordinator = make(min_devices=2, fusing=lambda ask: (WeightedMean(), rule))
    coordinator.joined("a", 0.0)
    coordinator.joined("b", 0.0)
    verdict, actions = send(coordinator, "a")
    assert verdict.status == "refused"
    assert verdict.reason == f"weight rule 'odd' gives {weight}; expected above 0"
    assert actions == [Note("failed", 0, "a", verdict.reason)]
    (done,) = of(send(coordinator, "b")[1], RoundDone)
    assert done.fused.devices == ("b",)


def test_a_rule_given_from_outside_weighs_the_replies() -> None:
    """(3 * 2 + 1 * 6) / 4 = 3"""
    rule = Rule("own", lambda reply: 3.0 if reply.device == "a" else 1.0)
    coordinator = make(min_devices=2, fusing=lambda ask: (WeightedMean(), rule))
    coordinator.joined("a", 0.0)
    coordinator.joined("b", 0.0)
    send(coordinator, "a", value=2.0)
    (done,) = of(send(coordinator, "b", value=6.0)[1], RoundDone)
    assert done.fused.tensors["x"] == [3]
    assert done.fused.weights == {"a": 0.75, "b": 0.25}


def test_no_examples_weigh_nothing() -> None:
    assert send(make("a"), "a", examples=0)[0].status == "refused"


# --- replies that do not count ----------------------------------------------------------------------------------------


def test_a_duplicate_changes_nothing() -> None:
    coordinator, _ = open_with(2)
    send(coordinator, "d00", value=2)
    verdict, actions = send(coordinator, "d00", value=100)
    assert verdict.status == "duplicate"
    assert actions == [Note("duplicate", 0, "d00", verdict.reason)]
    (done,) = of(send(coordinator, "d01", value=4)[1], RoundDone)
    assert done.state.tensors["x"] == [3]


def test_a_late_reply_is_told_so() -> None:
    coordinator, _ = open_with(2)
    send(coordinator, "d00")
    nonce = nonce_of(coordinator)
    coordinator.tick(100.0)
    coordinator.begin(100.0)
    verdict, _ = coordinator.replied(reply("d01", 0), nonce, 101.0)
    assert verdict == Verdict("late", "round 0 is closed")
    assert coordinator.replies == (0, 2)


def test_foreign_replies_are_refused() -> None:
    coordinator = make("a", "b")  # only a is asked
    nonce = nonce_of(coordinator)
    for name, round, used, says in [
        ("b", 0, nonce, "the device was not asked in this round"),
        ("stranger", 0, nonce, "the device was not asked in this round"),
        ("a", 0, "0" * 16, "round 0 was not announced with this nonce"),
        ("a", 1, nonce, "round 1 was not announced with this nonce"),
    ]:
        assert coordinator.judge(name, round, used) == Verdict("refused", says)
        verdict, actions = coordinator.replied(reply(name, round), used, 1.0)
        assert verdict == Verdict("refused", says)
        assert actions == [Note("refused", round, name, says)]
    assert coordinator.replies == (0, 1)


def test_nonces_differ_by_round_and_by_secret() -> None:
    def nonces(secret: str) -> list[str]:
        coordinator = Coordinator(Count(), Count().start(), secret=secret)
        found = []
        (announce,) = of(coordinator.joined("a", 0.0), Announce)
        for _ in range(3):
            found.append(announce.nonce)
            coordinator.replied(reply("a", coordinator.state.round), announce.nonce, 1.0)
            announce = coordinator.begin(1.0)[0]
            if isinstance(announce, Finished):
                break
        return found

    assert len(set(nonces("one") + nonces("two"))) == 6
    assert nonces("one") == nonces("one")
