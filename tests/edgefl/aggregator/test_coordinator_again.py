"""Rounds that are asked again: who is asked then, what a person reads of it, and which rounds are durable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from rounds import Count, asked, fleet, make, nonce_of, of, open_with, send

from edgefl.aggregator.attendance import Attendance
from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Announce, Note, RoundDone, Verdict
from edgefl.method import Ask, State

# --- who is asked too -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round", [0, 1])
def test_others_are_drawn_by_seed_round_and_attempt(round: int) -> None:
    """A resume draws the same. Of ten devices three are asked, and one of them leaves."""
    coordinator, announce = open_with(10, fraction=0.3, quorum=1.0)
    for _ in range(round):
        for name in announce.devices:
            send(coordinator, name)
        (announce,) = of(coordinator.begin(1.0), Announce)
    gone, *rest = announce.devices
    coordinator.left(gone, 2.0)
    for name in rest:
        actions = send(coordinator, name, 3.0)[1]
    alone = Attendance(seed=0, replied=())
    alone.present |= set(fleet(10)) - {gone}
    (other,) = alone.sample(1, round, 1, but=announce.devices)
    assert asked(actions) == [tuple(sorted((*announce.devices, other)))]


def test_who_failed_is_not_waited_for_when_a_round_is_done_again() -> None:
    """d00 failed, d01 and d02 reply, d03 is far too large; d04 says nothing until the deadline."""
    coordinator, _ = open_with(5, quorum=0.4)
    coordinator.failed("d00", 0, "no space", 1.0)
    send(coordinator, "d01"), send(coordinator, "d02"), send(coordinator, "d03", value=1e9)
    (again,) = of(coordinator.tick(100.0), Announce)
    assert again.attempt == 1
    send(coordinator, "d01", 101.0)
    (done,) = of(send(coordinator, "d02", 101.0)[1], RoundDone)
    assert done.fused.devices == ("d01", "d02")


def test_each_undoing_is_one_more_attempt() -> None:
    coordinator, _ = open_with(8, quorum=0.5)
    attempts = []
    for _ in range(2):
        for name in fleet(8):
            if coordinator.judge(name, 0, nonce_of(coordinator)).status == "accepted":
                send(coordinator, name)
        (again,) = of(coordinator.undo("no use", 2.0), Announce)
        attempts.append(again.attempt)
    assert attempts == [1, 2]


def close(coordinator: Coordinator) -> Announce:
    """The round without d02; the next."""
    for name in ("d00", "d01"):
        _, actions = send(coordinator, name, 1e4 * coordinator.state.round)
    if not of(actions, RoundDone):
        assert coordinator.deadline_s is not None
        coordinator.tick(coordinator.deadline_s)
    (announce,) = of(coordinator.begin(1e4 * (coordinator.state.round + 1)), Announce)
    return announce  # type: ignore[no-any-return]


@pytest.mark.parametrize("speaks", ["fails", "replies late", ""])
def test_a_device_that_speaks_again_is_asked_in_the_next_round(speaks: str) -> None:
    """d02 misses rounds 0, 1 and 3, so it would be asked in the seventh; a failure is a word of it, and so is a reply
    that comes too late."""
    coordinator = make(*fleet(3), method=Count(20), min_devices=3, quorum=0.6)
    asked_in = [round for round in range(1, 5) if "d02" in close(coordinator).devices]
    assert asked_in == [1, 3]
    if speaks == "fails":
        assert coordinator.failed("d02", 3, "no space", 5e4) == []
    elif speaks:
        assert send(coordinator, "d02", 5e4, round=3)[0].status == "late"
    assert ("d02" in close(coordinator).devices) is bool(speaks)


def test_nobody_replies_to_a_round_that_is_not_open_yet() -> None:
    assert make().judge("a", 0, "0" * 16) == Verdict("late", "round 0 is closed")


# --- what is said of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offenders", "names"),
    [
        (2, "d09, d10"),
        (5, "d09, d10, d11, d12, d13"),
        (6, "d09, d10, d11, d12, d13 and 1 more"),
        (7, "d09, d10, d11, d12, d13 and 2 more"),
    ],
)
def test_a_few_names_and_how_many_more(offenders: int, names: str) -> None:
    """Nine devices send 1, the others a thousand million times as much."""
    coordinator, _ = open_with(9 + offenders)
    for number, name in enumerate(fleet(9 + offenders)):
        _, actions = send(coordinator, name, value=1.0 if number < 9 else 1e9)
    (undone,) = [note for note in of(actions, Note) if note.event == "undone"]
    assert undone.text.endswith(f"; asked again without {names}")


# --- what need not be durable -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small(Count):
    """The asks of its rounds are durable as this says."""

    durable: tuple[bool, ...] = ()

    def ask(self, state: State) -> Ask | None:
        asked = super().ask(state)
        return asked and with_durable(asked, self.durable[state.round])


def with_durable(ask: Ask, durable: bool) -> Ask:
    return Ask(ask.tasks, ask.tensors, weight=ask.weight, durable=durable)


DURABLE = (False, False, True, False, False)


def test_a_round_is_durable_where_its_ask_is_or_the_next_and_the_last_is() -> None:
    """An announcement says whether the state is that the round begins with, and which round was before."""
    coordinator = Coordinator(Small(5, durable=DURABLE), Count().start(), secret="s")
    (announce,) = of(coordinator.joined("a", 0.0), Announce)
    before = ""
    for durable, kept in zip((False, True, True, False, True), (True, False, True, True, False), strict=True):
        assert (announce.durable, announce.before) == (kept, before)
        (done,) = of(send(coordinator, "a")[1], RoundDone)
        assert done.durable is durable
        before, (announce, *_) = announce.nonce, coordinator.begin(2.0)
    assert coordinator.finished


def test_a_nonce_is_the_same_in_another_life_where_the_rounds_state_is_on_disk() -> None:
    """Rounds 1 and 4 begin with a state that is not: what devices did for them may be of another ask. A resume by a
    later edgefl makes the same nonces."""

    def nonces(epoch: int) -> list[str]:
        coordinator = Coordinator(Small(5, durable=DURABLE), Count().start(), secret="s", epoch=epoch)
        found, actions = [], coordinator.joined("a", 0.0)
        while not coordinator.finished:
            found += [announce.nonce for announce in of(actions, Announce)]
            send(coordinator, "a")
            actions = coordinator.begin(2.0)
        return found

    first, second = nonces(1), nonces(2)
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True, True, False]
    assert first[0] == hashlib.sha256(b"s/0").hexdigest()[:16]


# --- replies that come again, or while a round closes -----------------------------------------------------------------


def test_what_is_said_to_a_reply_that_does_not_count() -> None:
    coordinator, announce = open_with(3, quorum=0.6)
    send(coordinator, "d00")
    assert coordinator.judge("d00", 0, announce.nonce) == Verdict("duplicate", "this device's reply is counted already")
    send(coordinator, "d01")
    coordinator.tick(100.0)  # fused, and not kept yet
    assert coordinator.judge("d02", 0, announce.nonce) == Verdict("late", "round 0 is closed")


def test_who_is_on_trial_may_take_twice_as_long_as_its_last_reply_took() -> None:
    """All reply in the first round; in the second, of 1,000 s on, d02 takes 5 s, in the third it is silent. On trial
    in the fourth it has 10 s, for the others take one."""
    coordinator = make(*fleet(3), method=Count(20), min_devices=3, quorum=0.6)
    for asked_s, took_s in ((0.0, 1.0), (1000.0, 5.0)):
        for name in ("d00", "d01", "d02"):
            send(coordinator, name, asked_s + took_s)
        coordinator.begin(1000.0)
    for name in ("d00", "d01"):
        send(coordinator, name, 1001.0)
    coordinator.tick(1100.0)
    coordinator.begin(2000.0)
    for name in ("d00", "d01"):
        send(coordinator, name, 2001.0)
    assert coordinator.deadline_s == 2010.0


def test_a_round_says_how_far_each_reply_moved_and_who_was_missing() -> None:
    """Announced was 0."""
    coordinator, _ = open_with(3, quorum=0.6)
    send(coordinator, "d00", value=3.0), send(coordinator, "d01", value=-4.0)
    (done,) = of(coordinator.tick(100.0), RoundDone)
    assert done.norms == {"d00": 3.0, "d01": 4.0} and done.missed == ("d02",)
