"""Rounds, by hand: events and a clock in, actions out. A device's reply is its number; a fused round is their mean."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.aggregator.coordinator import (
    Action,
    Announce,
    Coordinator,
    Finished,
    Note,
    OpenRound,
    RoundDone,
    RoundSettings,
    Verdict,
)
from edgefl.aggregator.fusion import Fusing, WeightedMean, fusing
from edgefl.aggregator.weights import Rule
from edgefl.errors import ConfigError, EdgeflError
from edgefl.method import Ask, Fused, Reply, State, Task


@dataclass(frozen=True)
class Count:
    """A method whose state is the fused number of the last round."""

    rounds: int = 3
    weight: str = "examples"

    def start(self) -> State:
        return State(0, {"x": np.zeros(1, np.float32)})

    def ask(self, state: State) -> Ask | None:
        return Ask((Task("train"),), state.tensors, weight=self.weight) if state.round < self.rounds else None

    def advance(self, state: State, fused: Fused) -> State:
        return State(state.round + 1, dict(fused.tensors))


def make(
    *present: str,
    method: Count = Count(),
    seed: int = 0,
    resumed: OpenRound | None = None,
    fusing: Fusing = fusing,
    **settings: Any,
) -> Coordinator:
    """A coordinator that has begun at 0 s and been told of some devices. Deadline 100 s, quorum one half."""
    chosen = RoundSettings(**({"deadline_s": 100.0} | settings))
    coordinator = Coordinator(method, method.start(), chosen, seed=seed, secret="s", resumed=resumed, fusing=fusing)
    coordinator.begin(0.0)
    for name in present:
        coordinator.joined(name, 0.0)
    return coordinator


def fleet(count: int) -> list[str]:
    return [f"d{i:02}" for i in range(count)]


def reply(name: str, round: int = 0, value: float = 1.0, examples: int = 1) -> Reply:
    return Reply(name, round, examples, {"x": np.array([value], np.float32)}, {})


def send(coordinator: Coordinator, name: str, now_s: float = 1.0, **changed: Any) -> tuple[Verdict, list[Action]]:
    """A reply to the open round."""
    answer = reply(name, changed.pop("round", coordinator.state.round), **changed)
    return coordinator.replied(answer, nonce_of(coordinator), now_s)


def nonce_of(coordinator: Coordinator) -> str:
    return coordinator._nonce()  # it is also in every Announce; a round that nobody was told of has one too


def of(actions: list[Action], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def open_with(count: int, **settings: Any) -> tuple[Coordinator, Announce]:
    """`count` devices that are all there when the round opens."""
    coordinator = Coordinator(
        Count(), Count().start(), RoundSettings(**({"deadline_s": 100.0, "min_devices": count} | settings)), secret="s"
    )
    actions: list[Action] = []
    for name in fleet(count):
        actions = coordinator.joined(name, 0.0)
    (announce,) = of(actions, Announce)
    return coordinator, announce


# --- joining ------------------------------------------------------------------------------------------------------


def test_a_run_from_its_first_device_to_its_end() -> None:
    coordinator = Coordinator(Count(2), Count(2).start(), RoundSettings(deadline_s=100.0), secret="s")
    assert coordinator.begin(0.0) == []  # nobody is there
    noted, announced = coordinator.joined("pi", 5.0)
    assert noted == Note("joined", 0, "pi")
    assert isinstance(announced, Announce)
    assert (announced.round, announced.attempt, announced.devices, announced.duration_s) == (0, 0, ("pi",), 100.0)
    verdict, (_, done) = coordinator.replied(reply("pi", 0, 7.0), announced.nonce, 9.0)
    assert verdict == Verdict("accepted")
    assert isinstance(done, RoundDone)
    assert (done.round, done.state.round, done.attempts, done.asked, done.seconds) == (0, 1, 1, 1, 4.0)
    assert done.state.tensors["x"] == [7]
    assert coordinator.deadline_s is None  # nothing is open until the round is durable
    (announced,) = coordinator.begin(10.0)
    assert isinstance(announced, Announce) and announced.round == 1
    send(coordinator, "pi", 11.0)
    (finished,) = coordinator.begin(12.0)
    assert finished == Finished(coordinator.state)
    assert coordinator.finished
    assert coordinator.begin(13.0) == coordinator.tick(1e9) == []


def test_a_round_waits_for_min_devices() -> None:
    coordinator = make(min_devices=3)
    assert of(coordinator.joined("a", 0.0) + coordinator.joined("b", 0.0), Announce) == []
    coordinator.left("a", 0.0)
    assert of(coordinator.joined("c", 0.0), Announce) == []  # b and c
    (announce,) = of(coordinator.joined("a", 0.0), Announce)
    assert announce.devices == ("a", "b", "c")


def test_joining_twice_changes_nothing() -> None:
    coordinator = make(min_devices=2)
    coordinator.joined("a", 0.0)
    assert coordinator.joined("a", 0.0) == []
    assert coordinator.present == {"a"}


def test_who_joins_during_a_round_waits_for_the_next() -> None:
    coordinator = make("a")
    assert of(coordinator.joined("b", 0.5), Announce) == []
    send(coordinator, "a")
    (announce,) = coordinator.begin(2.0)
    assert isinstance(announce, Announce) and announce.devices == ("a", "b")


def test_leaving_twice_or_without_having_been_there_changes_nothing() -> None:
    coordinator = make("a", "b")
    assert coordinator.left("z", 0.0) == []
    assert of(coordinator.left("b", 0.0), Note) == [Note("left", 0, "b")]
    assert coordinator.left("b", 0.0) == []


# --- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "devices", "asked"),
    [(1.0, 7, 7), (0.1, 100, 10), (0.1, 10, 1), (0.01, 10, 1), (0.25, 10, 2), (0.5, 3, 2), (0.34, 3, 1)],
)
def test_m_is_c_times_k_at_least_one(fraction: float, devices: int, asked: int) -> None:
    _, announce = open_with(devices, fraction=fraction)
    assert len(announce.devices) == asked
    assert set(announce.devices) <= set(fleet(devices))


def test_sampling_is_uniform_over_seeds() -> None:
    """400 rounds, 3 of 10 devices: each is asked in 120 of them, plus or minus four standard deviations of 9.2."""
    asked: Counter[str] = Counter()
    for seed in range(400):
        method = Count()
        settings = RoundSettings(fraction=0.3, min_devices=10)
        coordinator = Coordinator(method, method.start(), settings, seed=seed)
        for name in fleet(10):
            actions = coordinator.joined(name, 0.0)
        asked.update(of(actions, Announce)[0].devices)
    assert len(asked) == 10
    assert all(abs(count - 120) < 37 for count in asked.values())


def test_the_same_seed_asks_the_same_devices_and_rounds_differ() -> None:
    def history(seed: int) -> list[tuple[str, ...]]:
        method = Count(rounds=5)
        settings = RoundSettings(fraction=0.3, min_devices=10, quorum=1.0)
        coordinator = Coordinator(method, method.start(), settings, seed=seed)
        for name in fleet(10):
            coordinator.joined(name, 0.0)
        asked = []
        while not coordinator.finished:
            assert coordinator._round is not None
            asked.append(tuple(sorted(coordinator._round.asked)))
            for name in asked[-1]:
                send(coordinator, name)
            coordinator.begin(2.0)
        return asked

    assert history(1) == history(1)
    assert len(history(1)) == 5 and len(set(history(1))) > 1
    assert history(1) != history(2)


# --- quorum and deadline ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quorum", "devices", "needed"), [(0.5, 4, 2), (0.5, 5, 3), (1.0, 3, 3), (0.01, 9, 1)])
def test_a_deadline_closes_a_round_at_quorum_and_not_below(quorum: float, devices: int, needed: int) -> None:
    for replies in range(devices):
        coordinator, _ = open_with(devices, quorum=quorum)
        for name in fleet(devices)[:replies]:
            send(coordinator, name)
        assert coordinator.tick(99.9) == []
        actions = coordinator.tick(100.0)
        if replies >= needed:
            (done,) = actions
            assert isinstance(done, RoundDone)
            assert (len(done.fused.devices), done.asked, done.seconds) == (replies, devices, 100.0)
        else:
            note, again = actions
            assert note == Note("asked again", 0, text=f"{replies} of {devices} replied")
            assert isinstance(again, Announce) and again.attempt == 1


def test_when_all_have_replied_the_round_does_not_wait() -> None:
    coordinator, _ = open_with(2)
    assert of(send(coordinator, "d00", value=1)[1], RoundDone) == []
    (done,) = of(send(coordinator, "d01", value=5)[1], RoundDone)
    assert done.state.tensors["x"] == [3]


def test_asking_again_keeps_earlier_replies_and_the_nonce() -> None:
    coordinator, first = open_with(4, quorum=1.0)
    send(coordinator, "d00", value=8)
    again = of(coordinator.tick(100.0), Announce)[0]
    assert (again.nonce, again.devices, again.attempt) == (first.nonce, first.devices, 1)
    assert coordinator.deadline_s == 200.0
    for name in ("d01", "d02", "d03"):
        _, actions = send(coordinator, name, 150.0, value=0)
    (done,) = of(actions, RoundDone)
    assert done.state.tensors["x"] == [2]  # (8 + 0 + 0 + 0) / 4
    assert (done.attempts, done.seconds) == (2, 150.0)


def test_asking_again_asks_others_in_place_of_those_that_are_gone() -> None:
    coordinator, first = open_with(10, fraction=0.3, quorum=1.0)
    gone, *rest = first.devices
    coordinator.left(gone, 1.0)
    send(coordinator, rest[0])
    again = of(coordinator.tick(100.0), Announce)[0]
    (new,) = set(again.devices) - set(first.devices)
    send(coordinator, rest[1], 101.0)
    (done,) = of(send(coordinator, new, 102.0)[1], RoundDone)
    assert set(done.fused.devices) == {*rest, new}


def test_names_that_never_answer_stop_no_run() -> None:
    """Two honest devices among a hundred names: two deadlines, and the round is theirs; the next waits for nobody."""
    coordinator = make(*fleet(100), quorum=0.5)  # the first round began with the first of them
    send(coordinator, "d00")
    (announce,) = of(coordinator.begin(0.0), Announce)
    assert (len(announce.devices), announce.quorum) == (100, 50)
    send(coordinator, "d00")
    send(coordinator, "d01")
    assert [type(a) for a in coordinator.tick(100.0)] == [Note, Announce]
    note, done = coordinator.tick(200.0)
    assert note == Note("quorum", 1, text="98 devices have never replied; 1 replies are enough")
    assert isinstance(done, RoundDone) and done.fused.devices == ("d00", "d01")
    (announce,) = of(coordinator.begin(200.0), Announce)
    assert announce.devices == ("d00", "d01")


def test_a_quorum_counts_as_many_as_the_run_needs_whoever_they_are() -> None:
    coordinator, first = open_with(4, quorum=0.5)  # and a run of at least four
    assert (len(first.devices), coordinator.settings.min_devices) == (4, 4)
    send(coordinator, "d00")
    for deadline in range(1, 5):
        assert not of(coordinator.tick(100.0 * deadline), RoundDone)
    send(coordinator, "d01", 450.0)
    assert of(coordinator.tick(500.0), RoundDone)


def test_who_has_replied_before_counts_for_the_quorum_for_ever() -> None:
    coordinator = make(*fleet(4), quorum=0.5)
    send(coordinator, "d00")
    coordinator.begin(0.0)
    for name in fleet(4):
        send(coordinator, name)
    coordinator.begin(0.0)
    send(coordinator, "d00")
    for deadline in range(1, 6):
        assert not of(coordinator.tick(100.0 * deadline), RoundDone)


def test_a_resume_knows_who_has_replied_before() -> None:
    """Else an aggregator that was killed would be content with less than one that was not."""
    settings = RoundSettings(quorum=0.5, deadline_s=100.0)
    state = State(1, Count().start().tensors)
    coordinator = Coordinator(Count(), state, settings, resumed=OpenRound(1, 0, tuple(fleet(4)), 2), replied=fleet(4))
    coordinator.begin(0.0)
    send(coordinator, "d00")
    for deadline in range(1, 5):
        assert not of(coordinator.tick(100.0 * deadline), RoundDone)


def test_a_device_that_leaves_with_quorum_ends_the_waiting() -> None:
    coordinator, _ = open_with(3)
    send(coordinator, "d00")
    send(coordinator, "d01")
    (done,) = of(coordinator.left("d02", 2.0), RoundDone)
    assert done.fused.devices == ("d00", "d01")


def test_a_device_that_leaves_without_quorum_is_waited_for_and_may_come_back() -> None:
    coordinator, _ = open_with(3, quorum=1.0)
    send(coordinator, "d00")
    send(coordinator, "d01")
    assert coordinator.left("d02", 2.0) == [Note("left", 0, "d02")]
    assert coordinator.joined("d02", 3.0) == [Note("joined", 0, "d02")]
    (done,) = of(send(coordinator, "d02", 4.0)[1], RoundDone)
    assert len(done.fused.devices) == 3


def test_a_reply_of_a_device_that_left_counts() -> None:
    coordinator, _ = open_with(3, quorum=1.0)
    coordinator.left("d02", 1.0)
    assert send(coordinator, "d02")[0].status == "accepted"


@pytest.mark.parametrize("first", ["leaves", "joins"])
def test_nobody_left_to_wait_for_means_that_others_are_asked_at_once(first: str) -> None:
    """Whether the asked device goes before the other one comes, or after."""
    coordinator = make("a")
    events = [lambda: coordinator.left("a", 1.0), lambda: coordinator.joined("b", 1.0)]
    actions = [action for event in (events if first == "leaves" else events[::-1]) for action in event()]
    (again,) = of(actions, Announce)
    assert again.devices == ("a", "b") and again.attempt == 1
    (done,) = of(send(coordinator, "b", 2.0)[1], RoundDone)
    assert done.fused.devices == ("b",)


# --- failures -----------------------------------------------------------------------------------------------------


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


# --- replies that do not count ------------------------------------------------------------------------------------


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
    assert coordinator.replies == (0, 1)


def test_who_missed_a_deadline_is_waited_for_again_when_it_says_something() -> None:
    """A device that is connected and silent costs one deadline, not one in every round."""
    coordinator, _ = open_with(3)
    send(coordinator, "d00"), send(coordinator, "d01")
    coordinator.tick(100.0)
    (second,) = asked(coordinator.begin(100.0))
    assert second == ("d00", "d01")
    send(coordinator, "d00"), send(coordinator, "d01")  # closes at once: nobody else is outstanding
    coordinator.heard("d02")
    (third,) = asked(coordinator.begin(101.0))
    assert third == ("d00", "d01", "d02")


def asked(actions: list[Action]) -> list[tuple[str, ...]]:
    return [action.devices for action in actions if isinstance(action, Announce)]


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


# --- no single reply owns a round, or ends a run ------------------------------------------------------------------


def stating(**examples: int) -> Coordinator:
    """Devices that say how many examples they have. Quorum one half."""
    coordinator = make(min_devices=len(examples))
    for name, count in examples.items():
        coordinator.joined(name, 0.0, examples=count)
    return coordinator


def test_a_weight_is_at_most_three_times_the_median_of_what_was_stated() -> None:
    """2, 4, 6 and 1000: the lower median is 4, so (2*0 + 4*0 + 6*0 + 12*2) / 24 = 1."""
    coordinator = stating(a=2, b=4, c=6, d=1000)
    for name, count in (("a", 2), ("b", 4), ("c", 6)):
        send(coordinator, name, value=0.0, examples=count)
    _, clipped, done = send(coordinator, "d", value=2.0, examples=1000)[1]
    assert clipped == Note("clipped", 0, "d", "counts as 12 of 1000")
    assert isinstance(done, RoundDone)
    assert done.state.tensors["x"] == [1] and done.fused.weights["d"] == 0.5
    assert done.fused.examples == 1012  # what devices say is told as it is


def test_the_limit_is_fixed_with_the_announcement_and_kept_for_a_resume() -> None:
    coordinator = stating(a=1, b=1, c=1)
    coordinator.joined("c", 0.5, examples=1000)
    (again,) = of(coordinator.tick(100.0), Announce)
    assert again.weight_limit == 3
    saved = OpenRound(0, 1, again.devices, again.quorum, again.weight_limit)
    resumed = make(resumed=saved)
    for one in (coordinator, resumed):
        assert of(send(one, "c", examples=1000)[1], Note)[-1].text == "counts as 3 of 1000"


def test_nobody_has_more_examples_than_it_stated() -> None:
    coordinator = stating(a=5, b=5)
    verdict, _ = send(coordinator, "a", examples=6)
    assert verdict == Verdict("refused", "6 examples; device 'a' stated 5 when it joined")
    assert send(coordinator, "a", examples=5)[0].status == "accepted"


def test_weights_that_only_replies_tell_are_bounded_by_each_other() -> None:
    """1, 2 and a billion: 3 * 2 is the limit, and (1*0 + 2*0 + 6*3) / 9 = 2. In any order, to the last bit."""
    given = {"a": (1.0, 0.0), "b": (2.0, 0.0), "c": (1e9, 3.0)}
    rule = Rule("own", lambda reply: given[reply.device][0])
    found = set()
    for order in (("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")):
        coordinator = make(min_devices=3, fusing=lambda ask: (WeightedMean(), rule))
        for name in order:
            coordinator.joined(name, 0.0)
        for name in order:
            _, actions = send(coordinator, name, value=given[name][1])
        assert of(actions, Note)[-1] == Note("clipped", 0, "c", "counts as 6 of 1e+09")
        (done,) = of(actions, RoundDone)
        assert done.fused.weights["c"] == pytest.approx(6 / 9)
        found.add(done.state.tensors["x"].tobytes())
    assert found == {np.array([2], np.float32).tobytes()}


def test_an_undone_round_is_asked_again_with_its_nonce_and_without_the_offender() -> None:
    coordinator, first = open_with(3)
    send(coordinator, "d00", value=1.0), send(coordinator, "d01", value=3.0)
    verdict, actions = send(coordinator, "d02", value=-1000.0)
    assert verdict.status == "accepted"  # it was; what became of it is in the actions
    _, undone, again = actions
    assert undone == Note("undone", 0, text="a change of norm 1e+03 beside a median of 3; asked again without d02")
    assert isinstance(again, Announce)
    assert (again.round, again.nonce, again.attempt, again.devices) == (0, first.nonce, 1, first.devices)
    assert coordinator.judge("d02", 0, again.nonce).reason.startswith("round 1 was undone: a change of norm 1e+03")
    assert coordinator.replies == (0, 3)
    send(coordinator, "d00", value=1.0)
    (done,) = of(send(coordinator, "d01", value=3.0)[1], RoundDone)
    assert done.state.tensors["x"] == [2] and done.attempts == 2
    coordinator.begin(2.0)
    assert coordinator.judge("d02", 1, nonce_of(coordinator)).status == "accepted"  # a new round, a new chance


def test_who_did_not_reply_before_is_not_waited_for_when_a_round_is_done_again() -> None:
    coordinator, _ = open_with(4)
    send(coordinator, "d00"), send(coordinator, "d01"), send(coordinator, "d02", value=1e9)
    assert of(coordinator.tick(100.0), Announce)
    send(coordinator, "d00", 101.0)
    assert of(send(coordinator, "d01", 101.0)[1], RoundDone)


def test_too_few_without_the_offender_wait_for_the_deadline_and_all_may_try_again() -> None:
    coordinator, _ = open_with(2, quorum=1.0)
    send(coordinator, "d00"), send(coordinator, "d01", value=1e9)
    send(coordinator, "d00")
    assert coordinator.tick(99.0) == []
    note, again = coordinator.tick(101.0)
    assert note == Note("asked again", 0, text="1 of 2 replied; no reply of d01 is refused unseen any more")
    assert isinstance(again, Announce) and again.attempt == 2
    assert of(send(coordinator, "d01")[1], RoundDone)  # it has mended its ways


def test_others_are_asked_in_place_of_an_offender() -> None:
    coordinator = make(min_devices=4, fraction=0.5, quorum=1.0)
    for name in "abcd":
        actions = coordinator.joined(name, 0.0)
    one, other = asked(actions)[0]
    send(coordinator, one)
    (again,) = of(send(coordinator, other, value=1e9)[1], Announce)
    assert len(again.devices) == 3
    (spare,) = set(again.devices) - {one, other}
    send(coordinator, spare)
    (done,) = of(send(coordinator, one)[1], RoundDone)
    assert set(done.fused.devices) == {one, spare}


def test_what_is_usual_may_change_for_all_at_once() -> None:
    """After a round of norms about 1 all send 1000 times as much: who is alone is refused, who is not is right."""
    coordinator, _ = open_with(3)
    for name in fleet(3):
        send(coordinator, name)
    coordinator.begin(2.0)
    for name in fleet(2):
        verdict, actions = send(coordinator, name, value=1001.0)
        assert verdict.status == "refused" and of(actions, Announce) == []
    _, actions = send(coordinator, "d02", value=1001.0)
    assert of(actions, Announce)  # at once
    for name in fleet(3):
        verdict, actions = send(coordinator, name, value=1001.0)
        assert verdict.status == "accepted"
    (done,) = of(actions, RoundDone)
    assert done.state.tensors["x"] == [1001]


def test_the_driver_undoes_a_round_and_what_followed_from_it() -> None:
    """The method was asked after the state that is gone already: the ask after the good one is another."""
    coordinator, _ = open_with(3)
    for name, value in zip(fleet(3), (1.0, 2.0, 30.0), strict=True):
        _, actions = send(coordinator, name, value=value)
    assert of(actions, RoundDone)[0].state.tensors["x"] == [11]
    note, again = coordinator.undo("evaluate.loss is nan", 2.0)
    assert note == Note("undone", 0, text="evaluate.loss is nan; asked again without d02")
    assert isinstance(again, Announce) and (again.round, again.before) == (0, "")
    assert coordinator.state.round == 0
    send(coordinator, "d00", value=1.0)
    (done,) = of(send(coordinator, "d01", value=2.0)[1], RoundDone)
    (announce,) = coordinator.begin(3.0)
    assert isinstance(announce, Announce)
    assert done.state.tensors["x"] == announce.ask.tensors["x"] == [1.5]


def test_each_undoing_bars_twice_as_many() -> None:
    """Eight devices, and a driver that likes nothing: 1, 2 and 4 barred are too many for a quorum of 5."""
    coordinator, _ = open_with(8, quorum=5 / 8)
    undone = 0
    for _ in range(8):
        for name in fleet(8):
            if coordinator.judge(name, 0, nonce_of(coordinator)).status != "accepted":
                continue
            _, actions = send(coordinator, name, value=1.0 + int(name[1:]))
            if of(actions, RoundDone):
                coordinator.undo("no use", 2.0)
                undone += 1
    assert undone == 3
    assert coordinator.judge("d07", 0, nonce_of(coordinator)).status == "refused"
    assert coordinator.judge("d00", 0, nonce_of(coordinator)).status in ("duplicate", "accepted")


@pytest.mark.parametrize("error", [EdgeflError("too large for float16"), OverflowError("inf"), ValueError("nan")])
def test_a_method_that_stumbles_over_a_number_does_not_end_the_run(error: Exception) -> None:
    class Stumbling(Count):
        def advance(self, state: State, fused: Fused) -> State:
            if fused.tensors["x"] > 5:
                raise error
            return super().advance(state, fused)

    coordinator = make(min_devices=3, method=Stumbling())
    for name in "abc":
        coordinator.joined(name, 0.0)
    send(coordinator, "a"), send(coordinator, "b")
    _, undone, _ = send(coordinator, "c", value=50.0)[1]
    assert undone.text == f"the replies cannot be fused: {error}; asked again without c"
    send(coordinator, "a")
    assert of(send(coordinator, "b")[1], RoundDone)


def test_a_setting_that_is_wrong_ends_the_run_as_before() -> None:
    class Wrong(Count):
        def advance(self, state: State, fused: Fused) -> State:
            raise ConfigError("[method] devices is 1, but 2 answered")

    coordinator = make("a", method=Wrong())
    with pytest.raises(ConfigError):
        send(coordinator, "a")


@pytest.mark.parametrize("numbers", [{"loss": float("nan")}, {}])
def test_a_state_that_is_not_finite_is_none(numbers: dict[str, float]) -> None:
    class Dividing(Count):
        def advance(self, state: State, fused: Fused) -> State:
            x = fused.tensors["x"] if numbers else fused.tensors["x"] / np.float32(0)
            return State(state.round + 1, {"x": x}, numbers)

    coordinator = make("a", method=Dividing())
    _, undone, _ = send(coordinator, "a")[1]
    name = "'loss' would be nan" if numbers else "'x' would not be finite"
    assert undone == Note("undone", 0, text=f"{name}; asked again without a")
    assert coordinator.state.round == 0
    assert of(coordinator.tick(200.0), Announce)


def test_a_run_that_stops_announces_no_undone_round() -> None:
    coordinator, _ = open_with(4)
    send(coordinator, "d00"), send(coordinator, "d01"), send(coordinator, "d02", value=1e9)
    (note,) = coordinator.stop(5.0)
    assert isinstance(note, Note) and note.event == "undone"
    assert coordinator.state.round == 0


# --- resuming and ending ------------------------------------------------------------------------------------------


def test_a_resumed_round_announces_the_same_devices_and_nonce() -> None:
    _, first = open_with(10, fraction=0.3)
    coordinator = Coordinator(
        Count(), Count().start(), RoundSettings(min_devices=10), secret="s", resumed=OpenRound(0, 2, first.devices)
    )
    (again,) = coordinator.begin(0.0)
    assert isinstance(again, Announce)
    assert (again.devices, again.nonce, again.attempt) == (first.devices, first.nonce, 2)
    for name in fleet(10):  # presence is told again, in any order: nobody else is asked meanwhile
        assert of(coordinator.joined(name, 0.0), Announce) == []
    for name in first.devices:
        _, actions = send(coordinator, name)
    (done,) = of(actions, RoundDone)
    assert set(done.fused.devices) == set(first.devices)


def test_a_resumed_round_does_not_wait_for_who_is_told_to_be_gone() -> None:
    coordinator = make(min_devices=1, resumed=OpenRound(0, 0, ("a", "b")))
    send(coordinator, "a")
    assert coordinator.replies == (1, 2)
    (done,) = of(coordinator.left("b", 1.0), RoundDone)  # its retained will
    assert done.fused.devices == ("a",)


def test_an_open_round_that_was_closed_before_the_stop_is_not_resumed() -> None:
    state = State(1, {"x": np.zeros(1, np.float32)})
    coordinator = Coordinator(Count(), state, RoundSettings(), resumed=OpenRound(0, 0, ("a",)))
    assert coordinator.begin(0.0) == []
    (announce,) = of(coordinator.joined("b", 0.0), Announce)
    assert (announce.round, announce.devices) == (1, ("b",))


def test_stop_with_quorum_fuses_what_came_and_opens_nothing() -> None:
    coordinator, _ = open_with(3)
    send(coordinator, "d00", value=2)
    send(coordinator, "d01", value=4)
    (done,) = coordinator.stop(5.0)
    assert isinstance(done, RoundDone)
    assert done.state.tensors["x"] == [3]
    assert coordinator.begin(6.0) == []
    assert not coordinator.finished


def test_stop_without_quorum_leaves_the_round_for_the_resume() -> None:
    coordinator, _ = open_with(3)
    send(coordinator, "d00")
    assert coordinator.stop(5.0) == []
    assert coordinator.state.round == 0


def test_finish_ends_the_run_after_the_round() -> None:
    coordinator = make("a")
    coordinator.finish()
    assert not coordinator.finished
    send(coordinator, "a")
    assert coordinator.begin(2.0) == [Finished(coordinator.state)]
    assert coordinator.state.round == 1


# --- whatever happens ---------------------------------------------------------------------------------------------

NAMES = [f"d{i}" for i in range(5)]
names = st.sampled_from(NAMES)
events = st.one_of(
    st.tuples(st.just("joined"), names),
    st.tuples(st.just("left"), names),
    st.tuples(st.just("failed"), names),
    st.tuples(st.just("replied"), names),
    st.tuples(st.just("replied to the round before"), names),
    st.tuples(st.just("tick"), st.sampled_from(["1", "40", "101"])),
    st.tuples(st.just("restart"), st.just("")),
)


class Driver:
    """What an aggregator does around a coordinator, and what must hold at every step."""

    def __init__(self, settings: RoundSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.now_s = 0.0
        self.method = Count(rounds=4)
        self.state = self.method.start()
        self.saved: OpenRound | None = None
        self.present: set[str] = set()
        self.rounds: list[RoundDone] = []
        self.announces_at: Counter[float] = Counter()
        self.restart()

    def restart(self) -> None:
        self.coordinator = Coordinator(
            self.method, self.state, self.settings, seed=self.seed, secret="s", resumed=self.saved
        )
        self.counted: list[str] = []
        self.carry_out(self.coordinator.begin(self.now_s))
        for name in sorted(self.present):  # retained presence
            self.carry_out(self.coordinator.joined(name, self.now_s))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Announce):
                if self.saved is None or self.saved.round != action.round:
                    self.first = action.devices
                    self.quorum = max(1, int(np.ceil(self.settings.quorum * len(action.devices))))
                self.saved = OpenRound(action.round, action.attempt, action.devices, action.quorum)
                self.announces_at[self.now_s] += 1
                assert action.round == self.state.round
            if isinstance(action, RoundDone):
                assert sorted(self.counted) == sorted(action.fused.devices)
                assert len(set(self.counted)) == len(self.counted) >= self.quorum
                assert set(self.counted) <= set(self.saved.devices if self.saved else ())
                values = [float(NAMES.index(name)) for name in self.counted]
                np.testing.assert_allclose(action.state.tensors["x"], [np.mean(values)], rtol=1e-6)
                assert action.state.round == self.state.round + 1
                self.state = action.state
                self.rounds.append(action)
                self.counted = []
                self.carry_out(self.coordinator.begin(self.now_s))

    def reply(self, name: str, behind: int = 0) -> None:
        round = self.state.round - behind
        if round < 0:
            return
        nonce = nonce_of(self.coordinator)
        verdict, actions = self.coordinator.replied(reply(name, round, NAMES.index(name)), nonce, self.now_s)
        if verdict.status == "accepted":
            assert behind == 0 and name not in self.counted
            self.counted.append(name)
        self.carry_out(actions)

    def happen(self, event: str, what: str) -> None:
        match event:
            case "joined":
                self.present.add(what)
                self.carry_out(self.coordinator.joined(what, self.now_s))
            case "left":
                self.present.discard(what)
                self.carry_out(self.coordinator.left(what, self.now_s))
            case "failed":
                self.carry_out(self.coordinator.failed(what, self.state.round, "broken", self.now_s))
            case "replied":
                self.reply(what)
            case "replied to the round before":
                self.reply(what, behind=1)
            case "tick":
                self.now_s += float(what)
                self.carry_out(self.coordinator.tick(self.now_s))
            case "restart":
                self.restart()


@given(
    st.lists(events, max_size=60),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_whatever_happens(
    history: list[tuple[str, str]], fraction: float, quorum: float, min_devices: int, seed: int
) -> None:
    """Nobody is counted twice, no round is fused below quorum, and once devices are there every round ends."""
    settings = RoundSettings(fraction=fraction, quorum=quorum, min_devices=min_devices, deadline_s=100.0)
    driver = Driver(settings, seed)
    for event, what in history:
        driver.happen(event, what)
    for name in NAMES:
        driver.happen("joined", name)
    for _ in range(2 * driver.method.rounds):
        for name in NAMES:
            driver.happen("replied", name)
        driver.happen("tick", "101")
    assert driver.coordinator.finished
    assert [done.round for done in driver.rounds] == [0, 1, 2, 3]


@given(st.lists(events, max_size=40), st.integers(0, 9))
def test_even_if_most_never_come_back(history: list[tuple[str, str]], seed: int) -> None:
    """One device that is there and answers is enough when a round needs one reply."""
    driver = Driver(RoundSettings(fraction=0.2, quorum=0.1, deadline_s=100.0), seed)
    for event, what in history:
        driver.happen(event, what)
    for name in NAMES[1:]:
        driver.happen("left", name)
    driver.happen("joined", "d0")
    for _ in range(2 * driver.method.rounds + 2):
        driver.happen("replied", "d0")
        driver.happen("tick", "101")
    assert driver.coordinator.finished


def test_a_resume_keeps_the_quorum_of_the_devices_asked_first() -> None:
    """Two are asked, both fail, the two spares are asked too: one reply of the first two is still a quorum."""
    coordinator, first = open_with(4, fraction=0.5, quorum=0.5)
    assert (len(first.devices), first.quorum) == (2, 1)
    for device in first.devices:
        actions = coordinator.failed(device, 0, "no memory", 1.0)
    again = next(action for action in actions if isinstance(action, Announce))
    assert (len(again.devices), again.quorum) == (4, 1)
