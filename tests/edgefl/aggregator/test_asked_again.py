"""A device that missed a round is asked again, and no round waits for it as it would for others."""

from __future__ import annotations

from collections.abc import Iterator

from rounds import Count, fleet, make, of, open_with, reply, send

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Announce, Note, OpenRound, RoundDone
from edgefl.method import Ask, State, Task

ASLEEP = "d02"


def after_a_miss(rounds: int = 200) -> tuple[Coordinator, Announce]:
    """Three devices, of whom one has missed the first round; the second is announced at 100 s."""
    coordinator = make(*fleet(3), method=Count(rounds), min_devices=3, quorum=0.6)
    send(coordinator, "d00"), send(coordinator, "d01")
    (done,) = of(coordinator.tick(100.0), RoundDone)
    assert done.fused.devices == ("d00", "d01")
    (announce,) = of(coordinator.begin(100.0), Announce)
    return coordinator, announce


def test_it_is_asked_in_the_next_round_and_nobody_counts_on_it() -> None:
    _, announce = after_a_miss()
    assert announce.devices == (*fleet(2), ASLEEP)
    assert (announce.trial, announce.quorum) == ((ASLEEP,), 2)


def test_the_round_gives_it_as_long_again_as_the_others_took() -> None:
    coordinator, _ = after_a_miss()
    send(coordinator, "d00", 101.0)
    assert coordinator.deadline_s == 200.0
    assert of(send(coordinator, "d01", 103.0)[1], RoundDone) == []
    assert coordinator.deadline_s == 106.0
    assert coordinator.joined("d09", 104.0) == [Note("joined", 1, "d09")]
    assert coordinator.deadline_s == 106.0  # whatever happens meanwhile
    assert coordinator.tick(105.9) == []
    (done,) = coordinator.tick(106.0)
    assert isinstance(done, RoundDone) and (done.seconds, done.asked) == (6.0, 3)


def test_its_reply_within_that_counts_and_it_is_one_of_the_others_again() -> None:
    coordinator, _ = after_a_miss()
    send(coordinator, "d00", 101.0), send(coordinator, "d01", 103.0)
    (done,) = of(send(coordinator, ASLEEP, 105.0)[1], RoundDone)
    assert done.fused.devices == (*fleet(2), ASLEEP)
    (announce,) = of(coordinator.begin(105.0), Announce)
    assert (announce.trial, announce.quorum) == ((), 2)
    send(coordinator, "d00", 106.0), send(coordinator, "d01", 106.0)
    assert coordinator.deadline_s == 205.0  # the round waits for it as for anybody


def test_who_took_longer_than_the_others_before_may_again() -> None:
    coordinator = make(*fleet(3), min_devices=3, quorum=0.6)
    send(coordinator, "d00", 1.0), send(coordinator, "d01", 1.0), send(coordinator, ASLEEP, 80.0)
    coordinator.begin(80.0)
    send(coordinator, "d00", 81.0), send(coordinator, "d01", 81.0)
    assert of(coordinator.tick(180.0), RoundDone)
    coordinator.begin(180.0)
    send(coordinator, "d00", 181.0), send(coordinator, "d01", 181.0)
    assert coordinator.deadline_s == 280.0  # twice its 80 s are more than the round's deadline


def test_without_a_quorum_it_is_waited_for() -> None:
    coordinator, _ = after_a_miss()
    send(coordinator, "d00", 101.0)
    coordinator.failed("d01", 1, "broken", 102.0)
    assert coordinator.deadline_s == 200.0
    (done,) = of(send(coordinator, ASLEEP, 150.0)[1], RoundDone)
    assert done.fused.devices == ("d00", ASLEEP)


def test_who_comes_back_ends_the_hurry() -> None:
    coordinator, _ = after_a_miss()
    coordinator.left("d01", 101.0)
    coordinator.joined("d09", 101.0)
    send(coordinator, "d00", 101.0)
    assert coordinator.deadline_s == 200.0  # one of two is no quorum yet
    coordinator.joined("d01", 102.0)
    assert of(send(coordinator, "d01", 103.0)[1], RoundDone) == []
    assert coordinator.deadline_s == 106.0


def history(coordinator: Coordinator, rounds: int, *, fails: bool = False) -> Iterator[tuple[int, list[Note]]]:
    """The rounds in which the third device is asked, and what is said of it, while it never gives a reply."""
    now_s = 100.0
    for number in range(1, rounds):
        assert coordinator._round is not None
        asked = ASLEEP in coordinator._round.asked
        if fails and asked:
            coordinator.failed(ASLEEP, number, "broken", now_s)
        send(coordinator, "d00", now_s + 1), send(coordinator, "d01", now_s + 1)
        coordinator.tick(now_s + 2)
        now_s += 2
        notes = of(coordinator.begin(now_s), Note)
        assert coordinator.state.round == number + 1  # no round has taken more than twice its time
        if asked:
            yield number, notes


def test_one_that_sleeps_on_is_asked_more_and_more_rarely_and_named_once() -> None:
    coordinator, _ = after_a_miss()
    asked = dict(history(coordinator, 140))
    assert list(asked) == [1, 3, 7, 15, 31, 63, 127]
    text = "no reply that counts in 3 rounds in a row; asked again in 4 rounds"
    assert [note for notes in asked.values() for note in notes] == [Note("passed over", 3, ASLEEP, text)]


def test_so_is_one_that_fails_again_and_again() -> None:
    coordinator = make(*fleet(3), method=Count(200), min_devices=3, quorum=0.6)
    coordinator.failed(ASLEEP, 0, "broken", 1.0)
    send(coordinator, "d00"), send(coordinator, "d01")
    coordinator.begin(100.0)
    assert [number for number, _ in history(coordinator, 140, fails=True)] == [1, 3, 7, 15, 31, 63, 127]


def test_when_it_wakes_up_it_is_asked_in_the_next_round() -> None:
    coordinator, _ = after_a_miss()
    assert [number for number, _ in history(coordinator, 20)] == [1, 3, 7, 15]  # next in round 31
    coordinator.heard(ASLEEP)
    send(coordinator, "d00", 1000.0), send(coordinator, "d01", 1000.0)
    (announce,) = of(coordinator.begin(1000.0), Announce)
    assert (announce.round, announce.trial) == (21, (ASLEEP,))


def test_a_resume_finds_who_is_on_trial() -> None:
    _, first = after_a_miss()
    saved = OpenRound(1, 0, first.devices, first.quorum, trial=first.trial)
    coordinator = Coordinator(
        Count(), State(1, Count().start().tensors), open_with(3)[0].settings, secret="s", resumed=saved
    )
    (again,) = of(coordinator.begin(0.0), Announce)
    assert (again.trial, again.quorum) == ((ASLEEP,), 2)
    send(coordinator, "d00", 1.0), send(coordinator, "d01", 1.0)
    assert coordinator.deadline_s == 2.0


class Epochs(Count):
    """Every fourth round is durable, the three after it are small steps on what it announced."""

    def ask(self, state: State) -> Ask | None:
        return Ask((Task("train"),), state.tensors, durable=state.round % 4 == 0)


def test_a_round_that_begins_anew_asks_whoever_missed_the_small_ones() -> None:
    method = Epochs(40)
    coordinator = make(*fleet(3), method=method, min_devices=3, quorum=0.6)
    asked = []
    for number in range(20):
        assert coordinator._round is not None
        if ASLEEP in coordinator._round.asked:
            asked.append(number)
            coordinator.failed(ASLEEP, number, "the examples before are missing", 0.0)
        for name in ("d00", "d01"):
            coordinator.replied(reply(name, number), coordinator._round.nonce, 0.0)
        coordinator.begin(0.0)
    assert asked == [0, 1, 3, 4, 8, 12, 16]


def test_a_round_without_quorum_soon_asks_others_too() -> None:
    """Two of four are asked, and hang: their connection stands, so nobody says that they are gone."""
    coordinator, first = open_with(4, fraction=0.5, quorum=1.0)
    assert len(first.devices) == 2
    (again,) = of(coordinator.tick(100.0), Announce)
    assert again.devices == tuple(sorted(first.devices))
    (again,) = of(coordinator.tick(200.0), Announce)
    assert again.devices == tuple(fleet(4))
