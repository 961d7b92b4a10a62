"""Who takes part in a round: who has joined, and who of them is asked."""

from __future__ import annotations

from collections import Counter

import pytest
from rounds import Count, fleet, make, of, open_with, reply, send

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Announce, Finished, Note, RoundDone, Verdict
from edgefl.aggregator.settings import RoundSettings

# --- joining ----------------------------------------------------------------------------------------------------------


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


# --- sampling ---------------------------------------------------------------------------------------------------------


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
