"""Who is asked after rounds without a reply that counts: soon at first, then more and more rarely."""

from __future__ import annotations

import pytest

from edgefl.aggregator.attendance import LONGEST_PAUSE, Attendance, pause
from edgefl.aggregator.rounds import Note


def there(*names: str) -> Attendance:
    attendance = Attendance(seed=0, replied=())
    for name in names:
        attendance.arrived(name)
    return attendance


def rounds_asked(attendance: Attendance, name: str, rounds: range) -> list[int]:
    """In which rounds a device is on trial that lapses in every one of them; the others always reply."""
    asked = []
    for round in rounds:
        devices = attendance.sample(9, round)
        assert name not in devices
        trial = attendance.on_trial(9, round, but=devices, afresh=False)
        asked += [round] if name in trial else []
        attendance.closed(round, counted=devices, lapsed=trial)
    return asked


def test_pauses_double_up_to_64_rounds() -> None:
    assert [pause(lapses) for lapses in range(1, 10)] == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert pause(10**9) == LONGEST_PAUSE


def test_who_lapses_again_and_again_is_asked_more_and_more_rarely_and_never_forgotten() -> None:
    attendance = there("a", "b")
    attendance.closed(0, counted="a", lapsed="b")
    assert rounds_asked(attendance, "b", range(1, 300)) == [1, 3, 7, 15, 31, 63, 127, 191, 255]


def test_a_reply_that_counts_ends_it() -> None:
    attendance = there("a", "b")
    for round in (0, 1, 3):
        attendance.closed(round, counted="a", lapsed="b")
    attendance.closed(7, counted="ab", lapsed="")
    assert set(attendance.sample(9, 8)) == {"a", "b"}
    attendance.closed(8, counted="a", lapsed="b")
    assert attendance.on_trial(9, 9, but="a", afresh=False) == ("b",)  # the pauses begin anew


def test_somebody_hears_of_it_once_and_of_its_end() -> None:
    attendance = there("a", "b")
    said = [attendance.closed(round, counted="a", lapsed="b") for round in range(6)]
    text = "no reply that counts in 3 rounds in a row; asked again in 4 rounds"
    assert said == [[], [], [Note("passed over", 2, "b", text)], [], [], []]
    text = "replies again, after 6 rounds without a reply that counts"
    assert attendance.closed(6, counted="ab", lapsed="") == [Note("back", 6, "b", text)]
    attendance.closed(7, counted="a", lapsed="b")
    assert attendance.closed(8, counted="ab", lapsed="") == []  # once is nothing


@pytest.mark.parametrize(("lapses", "asked"), [(1, False), (2, True), (7, True)])
def test_who_was_silent_and_speaks_is_asked_in_the_next_round(lapses: int, asked: bool) -> None:
    attendance = there("a", "b")
    for round in range(100, 100 + lapses):
        attendance.closed(round, counted="a", lapsed="b")
    attendance.heard("b")
    assert (attendance.on_trial(9, 100, but="a", afresh=False) == ("b",)) == asked


def test_who_speaks_in_every_round_and_never_replies_is_no_less_rare_for_it() -> None:
    attendance = there("a", "b")
    for round in range(100, 105):
        attendance.closed(round, counted="a", lapsed="b")
        attendance.heard("b")  # that it failed, or gave up
    assert attendance.on_trial(9, 104 + 15, but="a", afresh=False) == ()
    assert attendance.on_trial(9, 104 + 16, but="a", afresh=False) == ("b",)


def test_who_was_away_and_comes_back_is_asked_in_the_next_round() -> None:
    attendance = there("a", "b")
    for round in range(100, 105):
        attendance.closed(round, counted="a", lapsed="b")
    attendance.arrived("b")  # it is there already: that is a word like others, the first one since
    attendance.closed(105, counted="a", lapsed="b")
    attendance.arrived("b")
    assert attendance.on_trial(9, 106, but="a", afresh=False) == ()
    attendance.left("b", 0.0)
    attendance.arrived("b")
    assert attendance.on_trial(9, 106, but="a", afresh=False) == ("b",)


def test_no_more_are_tried_than_may_be_asked_and_who_waits_longest_is_first() -> None:
    attendance = there(*"abcde")
    attendance.closed(0, counted="a", lapsed="e")
    attendance.closed(1, counted="a", lapsed="bcd")
    assert attendance.on_trial(2, 9, but="a", afresh=False) == ("e", "b")


def test_who_is_gone_is_not_tried() -> None:
    attendance = there("a", "b")
    attendance.closed(0, counted="a", lapsed="b")
    attendance.left("b", 0.0)
    assert attendance.on_trial(9, 9, but="a", afresh=False) == ()


def test_where_all_have_lapsed_all_may_be_asked_as_ever() -> None:
    attendance = there("a", "b")
    for round in range(9):
        attendance.closed(round, counted="", lapsed="ab")
    assert set(attendance.sample(9, 9)) == {"a", "b"}
    assert attendance.on_trial(9, 9, but="ab", afresh=True) == ()


def test_a_round_that_begins_anew_is_for_everybody() -> None:
    """A change of dreams is of no use to who has not the dreams: only a whole announcement brings it back."""
    attendance = there("a", "b")
    for round in range(9):
        attendance.closed(round, counted="a", lapsed="b")
    assert attendance.on_trial(9, 9, but="a", afresh=False) == ()
    assert attendance.on_trial(9, 9, but="a", afresh=True) == ("b",)


def test_on_trial_a_device_has_twice_the_time_of_the_others_or_its_own() -> None:
    attendance = there("a", "b", "c")
    assert attendance.grace_s("b", 3.0) == 6.0  # it has never replied
    attendance.replied("b", 2.0)
    assert attendance.grace_s("b", 3.0) == 6.0
    attendance.replied("b", 5.0)
    assert attendance.grace_s("bc", 3.0) == 10.0
    assert attendance.grace_s("c", 0.02) == 0.02 + 0.1  # the smallest packet needs a moment
