"""When a round is closed, and when it is asked again."""

from __future__ import annotations

import pytest
from rounds import Count, fleet, make, of, open_with, send

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Announce, Note, OpenRound, RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.method import State


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
            assert note.event == "asked again" and note.text.startswith(
                f"{replies} of {needed} needed replied; silent: d"
            )
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
    """Two honest devices among a hundred names: two deadlines, and the round is theirs; no later one waits for long."""
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
    assert (announce.quorum, len(announce.trial)) == (1, 98)  # they are tried again, and nobody counts on them
    send(coordinator, "d00", 201.0)
    assert send(coordinator, "d01", 203.0)[1] == [Note("replied", 2, "d01")]
    assert coordinator.deadline_s == 206.0  # not 300
    assert of(coordinator.tick(206.0), RoundDone)


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


def test_who_left_and_came_back_is_waited_for_again() -> None:
    coordinator, _ = open_with(2, quorum=0.5)
    coordinator.left("d01", 1.0), coordinator.joined("d01", 2.0)
    assert of(send(coordinator, "d00")[1], RoundDone) == []
    assert of(send(coordinator, "d01")[1], RoundDone)


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
