"""Runs that stop, are resumed and end."""

from __future__ import annotations

import numpy as np
from rounds import Count, fleet, make, of, open_with, send

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Announce, Finished, OpenRound, RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.method import State


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


def test_a_resumed_round_has_the_quorum_that_it_was_announced_with() -> None:
    """One was asked, and failed; three spares were asked too. One reply is still enough, though four are asked."""
    coordinator = make(resumed=OpenRound(0, 1, tuple(fleet(4)), quorum=1), quorum=1.0)
    send(coordinator, "d03")
    assert coordinator.tick(99.0) == []
    (done,) = of(coordinator.tick(100.0), RoundDone)
    assert done.fused.devices == ("d03",)


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


def test_a_resume_keeps_the_quorum_of_the_devices_asked_first() -> None:
    """Two are asked, both fail, the two spares are asked too: one reply of the first two is still a quorum."""
    coordinator, first = open_with(4, fraction=0.5, quorum=0.5)
    assert (len(first.devices), first.quorum) == (2, 1)
    for device in first.devices:
        actions = coordinator.failed(device, 0, "no memory", 1.0)
    again = next(action for action in actions if isinstance(action, Announce))
    assert (len(again.devices), again.quorum) == (4, 1)
