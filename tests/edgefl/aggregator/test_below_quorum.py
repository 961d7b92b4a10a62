"""A run that too few devices answer: who is missing, how long it waits, and what follows."""

from __future__ import annotations

from typing import Any

import pytest
from descent import MakeWorld
from rounds import Count, fleet, make, of, open_with, send

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Announce, GivenUp, Note, OpenRound, RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle


def below(**settings: Any) -> Coordinator:
    """Three devices are asked at 0 s, and all are needed. One replies, one leaves at 20 s, one says nothing."""
    coordinator, _ = open_with(3, quorum=1.0, **settings)
    send(coordinator, "d00", value=4)
    coordinator.left("d01", 20.0)
    return coordinator


def test_who_is_missing_is_said_by_name() -> None:
    coordinator = below()
    assert coordinator.missing(32.4) == "1 of 3 needed replied; gone: d01 (12 s); silent: d02"
    coordinator.failed("d02", 0, "broken", 33.0)
    coordinator.joined("d01", 34.0)
    assert coordinator.missing(35.0) == "1 of 3 needed replied; silent: d01; failed: d02"
    waiting = make(*fleet(7), min_devices=9)
    for second, name in enumerate(fleet(7)):
        waiting.left(name, float(second))
    gone = ", ".join(f"d0{i} ({10 - i} s)" for i in (6, 5, 4, 3, 2))
    assert waiting.missing(10.0) == f"0 of 9 needed are there; gone: {gone} and 2 more"
    waiting.joined("d06", 11.0)
    assert waiting.missing(11.0).startswith("1 of 9 needed are there; gone: d05 (6 s), d04")


@pytest.mark.parametrize("settings", [{}, {"patience_s": 150.0}, {"patience_s": 150.0, "below_quorum": "wait"}])
def test_by_itself_a_run_waits_for_ever(settings: dict[str, Any]) -> None:
    coordinator = below(**settings)
    for deadline in range(1, 20):
        note, again = coordinator.tick(100.0 * deadline)
        assert isinstance(again, Announce) and note.event == "asked again"
        assert coordinator.deadline_s == 100.0 * (deadline + 1)


def test_patience_ends_and_the_round_is_closed_with_who_is_there() -> None:
    coordinator = below(patience_s=150.0, below_quorum="close")
    (note, _) = coordinator.tick(100.0)
    text = "1 of 3 needed replied; gone: d01 (80 s); silent: d02"
    assert note == Note("asked again", 0, text=f"{text}; the round is closed with who is there in 50 s")
    assert coordinator.deadline_s == 150.0 and coordinator.tick(149.9) == []
    note, done = coordinator.tick(150.0)
    text = "1 of 3 needed replied; gone: d01 (130 s); silent: d02; from now on whoever is there is enough"
    assert note == Note("below quorum", 0, text=text)
    assert isinstance(done, RoundDone) and done.fused.devices == ("d00",) and done.state.tensors["x"] == [4]


def test_the_next_rounds_begin_with_who_is_there_until_all_are_again() -> None:
    coordinator = below(patience_s=150.0, below_quorum="close")
    coordinator.left("d02", 21.0)
    coordinator.tick(100.0), coordinator.tick(150.0)
    assert coordinator.begin(150.0) == []  # one of three is there: the patience of this round begins
    assert coordinator.deadline_s == 300.0
    note, announce = coordinator.tick(300.0)
    assert note.event == "below quorum" and announce.devices == ("d00",)
    send(coordinator, "d00", 301.0)
    (announce,) = of(coordinator.begin(301.0), Announce)  # it does not wait a second time
    assert announce.devices == ("d00",)


def test_who_is_enough_again_is_needed_again() -> None:
    coordinator = make("d00", method=Count(9), min_devices=2, patience_s=50.0, below_quorum="close")
    assert of(coordinator.tick(50.0), Announce)[0].devices == ("d00",)
    coordinator.joined("d01", 51.0)
    send(coordinator, "d00", 52.0)
    assert of(coordinator.begin(52.0), Announce)[0].devices == ("d00", "d01")
    send(coordinator, "d00", 53.0), coordinator.left("d01", 53.0)
    assert coordinator.begin(53.0) == [] and coordinator.deadline_s == 103.0


def test_with_nobody_there_nothing_is_closed_and_the_first_is_enough() -> None:
    coordinator, _ = open_with(2, quorum=1.0, patience_s=150.0, below_quorum="close")
    coordinator.tick(100.0)
    (note,) = coordinator.tick(150.0)
    assert note.event == "below quorum"
    assert coordinator.deadline_s == 200.0
    assert [type(a) for a in coordinator.tick(200.0)] == [Note, Announce]  # as ever
    send(coordinator, "d01", 210.0)
    assert of(coordinator.tick(300.0), RoundDone)
    nobody = make(patience_s=50.0, below_quorum="close")
    assert [type(a) for a in nobody.tick(50.0)] == [Note]
    assert nobody.deadline_s is None
    assert of(nobody.joined("d00", 60.0), Announce)


def test_patience_ends_and_the_run_stops() -> None:
    coordinator = below(patience_s=150.0, below_quorum="stop")
    assert coordinator.tick(100.0)[0].text.endswith("; the run stops in 50 s")
    text = "1 of 3 needed replied; gone: d01 (130 s); silent: d02"
    assert coordinator.tick(150.0) == [GivenUp(0, text)]
    assert coordinator.stopping


def test_a_run_that_nobody_joins_stops_too() -> None:
    coordinator = make("d00", min_devices=3, patience_s=50.0, below_quorum="stop")
    assert coordinator.deadline_s == 50.0
    assert coordinator.tick(50.0) == [GivenUp(0, "1 of 3 needed are there")]


def test_a_round_has_one_deadline_at_least() -> None:
    coordinator = below(patience_s=1.0, below_quorum="stop")
    assert coordinator.tick(99.0) == []
    assert of(coordinator.tick(100.0), GivenUp)


def test_what_has_its_quorum_is_not_given_up() -> None:
    coordinator, _ = open_with(2, quorum=0.5, patience_s=50.0, deadline_s=100.0, below_quorum="stop")
    send(coordinator, "d00")
    assert of(coordinator.tick(100.0), RoundDone)
    assert coordinator.tick(1e9) == []  # it is being kept


def test_a_resume_has_patience_anew() -> None:
    settings = RoundSettings(quorum=1.0, deadline_s=100.0, patience_s=150.0, below_quorum="stop")
    coordinator = Coordinator(Count(), Count().start(), settings, resumed=OpenRound(0, 3, ("a", "b"), 2))
    coordinator.begin(1000.0)
    assert coordinator.tick(1100.0)[0].event == "asked again"
    coordinator.left("b", 1140.0)  # before this start, says the broker
    coordinator.left("b", 1145.0)
    assert coordinator.tick(1150.0) == [GivenUp(0, "0 of 2 needed replied; gone: b (10 s); silent: a")]


def test_the_session_hands_it_on(regression: Bundle, make_world: MakeWorld) -> None:
    settings = RoundSettings(min_devices=3, quorum=1.0, deadline_s=60.0, patience_s=90.0, below_quorum="stop")
    world = make_world(regression, settings=settings)
    world.run(lambda: len(world.rounds) == 1)
    world.broker.lost = lambda client, topic: topic.endswith("/up/0/pi-3")
    with pytest.raises(AssertionError, match=r"GivenUp\(round=1, text='2 of 3 needed replied; silent: pi-3'\)"):
        world.run()
