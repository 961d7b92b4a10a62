"""No single reply owns a round, or ends a run."""

from __future__ import annotations

import numpy as np
import pytest
from rounds import Count, asked, fleet, make, nonce_of, of, open_with, send, stating

from edgefl.aggregator.fusion import WeightedMean
from edgefl.aggregator.rounds import Announce, Note, OpenRound, RoundDone, Verdict
from edgefl.aggregator.weights import Rule
from edgefl.errors import ConfigError, EdgeflError
from edgefl.method import Fused, State


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
    assert note == Note("asked again", 0, text="1 of 2 needed replied; no reply of d01 is refused unseen any more")
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
