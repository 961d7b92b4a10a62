"""One reply owns no run and ends none: hostile devices among honest ones, in memory and as real processes.

Honest devices hold 2, 4 and 2 examples; "mallory" holds 2 as well, and says and sends what it likes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from memory import Broker, Killed, World, with_tensors
from records import record

from edgefl import protocol
from edgefl.aggregator.classes import Examples
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.errors import NotFinite
from edgefl.method import State
from edgefl.methods import METHODS
from edgefl.protocol import Announcement, Offer, Receipt
from edgefl_device.data.dataset import Dataset
from edgefl_device.work.interpreter import Outcome

SIZES = {"mallory": 2, "pi-1": 2, "pi-2": 4, "pi-3": 2}
HONEST = ("pi-1", "pi-2", "pi-3")
ROUNDS = 3
Tamper = Callable[[Outcome], Outcome]
MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(regression: Bundle, tmp_path: Path) -> Iterator[MakeWorld]:
    """A run of FedAvg, or of `method`, with mallory unless `devices` says otherwise."""
    made: list[World] = []

    def make(
        *,
        devices: tuple[str, ...] = tuple(SIZES),
        states: int = 2,
        method: str = "fedavg",
        deadline_s: float = 60.0,
        broker: Broker | None = None,
        limits: Mapping[str, float] = MappingProxyType({}),
        **settings: Any,
    ) -> World:
        rng = np.random.default_rng(7)
        data = {}
        for name, size in SIZES.items():
            x = rng.integers(-1, 2, (size, 2)).astype(np.float32)
            data[name] = Dataset(x, rng.integers(-2, 3, size).astype(np.float32))
        chosen = {"initial": regression.shared_weights(), "rounds": ROUNDS, "batch_size": 0, "learning_rate": 0.25}
        world = World(
            tmp_path / str(len(made)),
            regression,
            msgspec.convert(chosen | settings, METHODS[method]),
            {name: data[name] for name in devices},
            settings=RoundSettings(min_devices=len(devices), quorum=0.5, deadline_s=deadline_s, **limits),
            capabilities={"mallory": {"train_examples": states}},
            broker=broker,
        )
        made.append(world)
        return world

    yield make
    for world in made:
        world.store.close()


def times(factor: float) -> Tamper:
    """The reply, so many times as large."""
    return lambda outcome: with_tensors(outcome, w=(outcome.tensors["w"] * np.float32(factor)).astype(np.float32))


def holding(value: float) -> Tamper:
    return lambda outcome: with_tensors(outcome, w=np.full(2, value, np.float32))


def run(world: World, tamper: Tamper | None = None) -> np.ndarray:
    """The weights at the end."""
    if tamper is not None:
        world.nodes["mallory"].tamper = tamper
    world.run()
    assert world.coordinator.finished
    w: np.ndarray = world.coordinator.state.tensors["w"]
    return w


def once_a_round(world: World) -> bool:
    """Whether honest devices trained once in each round, however often it was done again."""
    return all([round for round, _ in world.nodes[name].jobs] == list(range(ROUNDS)) for name in HONEST)


# --- how much a reply counts --------------------------------------------------------------------------------------


def test_more_examples_than_the_device_has_are_refused(make_world: MakeWorld) -> None:
    world = make_world()
    got = run(world, lambda outcome: replace(outcome, examples=2**53))
    assert world.events("failed")[0] == (
        "mallory",
        "9007199254740992 examples; device 'mallory' stated 2 when it joined",
    )
    np.testing.assert_array_equal(got, run(make_world(devices=HONEST)))


@pytest.mark.parametrize("weight", ["examples", "equal"])
def test_a_billion_examples_count_three_times_the_median(make_world: MakeWorld, weight: str) -> None:
    """Examples of 2, 2, 4 and a billion: the median is 2, so mallory counts 6 of 14, and w follows."""
    world = make_world(states=10**9, rounds=1, weight=weight)
    got = run(world, lambda outcome: replace(holding(3.0)(outcome), examples=10**9))
    honest = run(make_world(devices=HONEST, rounds=1, weight=weight))
    share = 6 / 14 if weight == "examples" else 1 / 4
    np.testing.assert_allclose(got, share * 3.0 + (1 - share) * honest, rtol=1e-6)
    said = [("mallory", "counts as 6 of 1e+09")] if weight == "examples" else []
    assert world.events("clipped") == said


def test_who_is_clipped_is_said_once_a_round(make_world: MakeWorld) -> None:
    """Also where the round is done again, here for somebody else's reply."""
    world = make_world(states=100)
    world.nodes["pi-1"].tamper = times(1000)
    run(world, lambda outcome: replace(outcome, examples=100))
    said = [("mallory", f"counts as {most} of 100") for most in (6, 6, 12)]  # pi-1 is not asked in the third round
    assert world.events("undone") and world.events("clipped") == said


def test_with_no_limit_examples_count_as_they_are(make_world: MakeWorld) -> None:
    world = make_world(states=10**9, rounds=1, limits={"max_share": 0})
    got = run(world, lambda outcome: replace(holding(3.0)(outcome), examples=10**9))
    np.testing.assert_allclose(got, 3.0, rtol=1e-6)


def test_a_device_that_says_more_when_the_round_is_open_counts_no_more(make_world: MakeWorld) -> None:
    world = make_world(rounds=1)
    node = world.nodes["mallory"]
    node.tamper = lambda outcome: replace(holding(3.0)(outcome), examples=10**9)
    world.run(lambda: len(node.jobs) == 1 or world.broker.said(Announcement) != [])
    node.capabilities["train_examples"] = 10**9
    node.start()
    world.run()
    assert world.events("clipped") == [("mallory", "counts as 6 of 1e+09")]


def test_what_a_device_stated_is_known_after_a_kill_though_it_says_nothing_again(make_world: MakeWorld) -> None:
    """Its presence is lost to the second aggregator; its reply comes."""
    world = make_world(rounds=1)
    node = world.nodes["mallory"]
    node.tamper = lambda outcome: replace(outcome, examples=3)
    world.run(lambda: bool(world.broker.said(Announcement)))
    world.broker.lost = lambda client, topic: topic.endswith("/device/mallory")
    world.restart_aggregator()
    world.run()
    assert "3 examples; device 'mallory' stated 2 when it joined" in [text for _, text in world.events("failed")]
    assert world.store.examples()["mallory"] == Examples(2, 2)


def test_what_a_new_process_states_takes_the_place_of_what_was_stated(make_world: MakeWorld) -> None:
    world = make_world(rounds=1)
    node = world.nodes["mallory"]
    world.run(lambda: bool(world.broker.said(Announcement)))
    node.capabilities["train_examples"] = 5
    node.start()
    world.run()
    assert world.store.examples()["mallory"] == Examples(5, 2)
    assert world.store.classes()["mallory"] == "all"


# --- a reply that is far larger than others -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "fedadam"])
@pytest.mark.parametrize("send_as", ["value", "delta"])
@pytest.mark.parametrize("tamper", [times(-1000), holding(3e38), holding(-3e38)], ids=["-1000", "3e38", "-3e38"])
def test_a_reply_that_is_far_too_large_moves_nothing(
    make_world: MakeWorld, method: str, send_as: str, tamper: Tamper
) -> None:
    """In the first round, where nothing is known of what is usual, as in every later one."""
    world = make_world(method=method, send_as=send_as)
    got = run(world, tamper)
    np.testing.assert_array_equal(got, run(make_world(method=method, send_as=send_as, devices=HONEST)))
    assert [devices for _, devices in world.rounds] == [HONEST] * ROUNDS
    ((_, undone), *_) = world.events("undone")
    assert "beside a median of" in undone and undone.endswith("; asked again without mallory")
    assert once_a_round(world)


def test_nobody_is_told_that_a_reply_counts_which_does_not(make_world: MakeWorld) -> None:
    """Whoever is the last to reply hears what became of it: an offender that it is refused, an honest device nothing,
    for its reply is not counted any more and it will offer it again."""
    for offender, wanted in (("pi-3", ["refused", "late"]), ("mallory", ["accepted"])):
        world = make_world(rounds=1)
        world.nodes[offender].tamper = holding(3e38)
        world.run()
        to_the_last = [protocol.decode(m.payload)[0] for m in world.broker.published if m.topic.endswith("down/pi-3")]
        assert [receipt.status for receipt in to_the_last if isinstance(receipt, Receipt)] == wanted


def test_once_in_the_middle_of_a_run_it_is_refused_when_it_comes(make_world: MakeWorld) -> None:
    """After a round it is known what is usual, so nothing has to be undone; and nobody is refused for ever."""
    world = make_world()
    sent: list[Outcome] = []

    def in_the_second(outcome: Outcome) -> Outcome:
        sent.append(outcome)
        return times(-1000)(outcome) if len(sent) == 2 else outcome

    run(world, in_the_second)
    assert [devices for _, devices in world.rounds] == [tuple(SIZES), HONEST, tuple(SIZES)]
    ((device, reason),) = world.events("failed")
    assert device == "mallory" and "more than 100 times the usual" in reason
    assert not world.events("undone")


def test_a_run_may_take_replies_of_any_size(make_world: MakeWorld) -> None:
    world = make_world(rounds=1, limits={"max_norm": 0})
    assert np.abs(run(world, times(-1000))).max() > 50
    assert not world.events("undone")


@pytest.mark.parametrize("reorder", range(4))
def test_the_order_of_arrival_decides_nothing(make_world: MakeWorld, reorder: int) -> None:
    world = make_world(broker=Broker(reorder=True, seed=reorder))
    got = run(world, times(-1000))
    np.testing.assert_allclose(got, run(make_world(devices=HONEST)), rtol=2**-23)


@pytest.mark.parametrize("moment", ["undone", "asked again", "second"])
def test_killed_in_an_undone_round_a_run_comes_to_the_same_end(make_world: MakeWorld, moment: str) -> None:
    world = make_world(states=50)
    node = world.nodes["mallory"]
    node.tamper = lambda outcome: replace(times(-1000)(outcome), examples=50)
    killed = []

    def kill_at_the_end_of_the_round(when: str) -> None:
        if moment == "second" and not killed:
            killed.append(when)
            raise Killed

    world.kill = kill_at_the_end_of_the_round
    if moment != "second":
        world.run(lambda: bool(world.events("undone")))
        offers = len(world.broker.said(Offer))
        if moment == "asked again":  # one honest device has offered again
            world.run(lambda: len(world.broker.said(Offer)) > offers)
        world.restart_aggregator()
    world.run()
    unbroken = run(make_world(devices=HONEST))
    np.testing.assert_array_equal(world.coordinator.state.tensors["w"], unbroken)
    assert [devices for _, devices in world.rounds][-ROUNDS:] == [HONEST] * ROUNDS
    assert once_a_round(world)


def test_a_limit_is_that_of_the_first_announcement_after_a_kill_too(make_world: MakeWorld) -> None:
    world = make_world(states=10**9, rounds=1)
    node = world.nodes["mallory"]
    node.tamper = lambda outcome: replace(holding(3.0)(outcome), examples=10**9)
    world.run(lambda: bool(world.broker.said(Announcement)))
    for other in HONEST:  # after the kill, all of them say that they have more
        world.nodes[other].capabilities["train_examples"] = 10**9
        world.nodes[other].start()
    world.restart_aggregator()
    world.run()
    assert world.events("clipped")[-1] == ("mallory", "counts as 6 of 1e+09")


# --- a state that is no use ---------------------------------------------------------------------------------------


def test_what_cannot_be_evaluated_is_not_saved_and_done_again(make_world: MakeWorld) -> None:
    """The driver finds it: the state of the round before stays on disk until there is a good one."""
    world = make_world(limits={"max_norm": 0})
    saved: list[int | None] = []

    def evaluate(state: State) -> dict[str, float]:
        if np.abs(state.tensors["w"]).max() > 50:
            kept = world.store.load_state()
            saved.append(kept and kept.round)
            raise NotFinite("evaluate.loss is nan")
        return {"evaluate.loss": 0.5}

    world.evaluate = evaluate
    got = run(world, times(-1000))
    alone = make_world(devices=HONEST)
    np.testing.assert_array_equal(got, run(alone))
    honest = alone.records[1].bytes_up_by_device["pi-1"]  # of an offer
    assert saved == [None, 1]  # mallory is not asked a third time in a row
    offers = [message for message in world.broker.said(Offer) if message.device == "pi-1"]
    assert len(offers) == 2 + 2 + 1
    first, second, _ = (kept.bytes_up_by_device["pi-1"] for kept in world.records)
    assert min(first, second) > 1.9 * honest  # both offers, in one record
    assert world.events("undone") == [("", "evaluate.loss is nan; asked again without mallory")] * 2
    assert once_a_round(world)
    refused = [text for device, text in world.events("refused") if device == "mallory"]
    assert refused == [f"round {n + 1} was undone: evaluate.loss is nan" for n in range(2)]


def test_a_held_out_loss_that_is_no_number_is_found_before_anything_is_kept(make_world: MakeWorld) -> None:
    world = make_world(limits={"max_norm": 0})
    kept: list[State | None] = []

    def evaluate(state: State) -> dict[str, float]:
        kept.append(world.store.load_state())
        return {"evaluate.loss": math.nan if np.abs(state.tensors["w"]).max() > 50 else 0.5}

    world.evaluate = evaluate
    np.testing.assert_array_equal(run(world, times(-1000)), run(make_world(devices=HONEST)))
    assert world.events("undone") == [("", "the held-out loss would be nan; asked again without mallory")] * 2
    assert [state and state.round for state in kept] == [None, None, 1, 1, 2]
    assert [record.loss for record in world.store.records()] == [0.5] * ROUNDS


def test_an_honest_divergence_is_said_and_waits(make_world: MakeWorld) -> None:
    """A step that is far too long: what all send is equally bad. In an hour of deadlines of a minute the aggregator
    says so a few times each, spins never, keeps the last good state and is there."""
    world = make_world(devices=HONEST, method="fedadam", server_learning_rate=1e40)
    world.run(lambda: world.now_s > 3600, within_s=4000)
    undone = world.events("undone")
    assert 30 <= len(undone) <= 3 * 60
    assert all("would not be finite; asked again without pi-" in text for _, text in undone)
    assert world.store.load_state() is None and world.coordinator.state.round == 0
    assert len(world.broker.said(Announcement)) <= 4 * 60


# --- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_that_cannot_be_are_left_out_and_the_reply_counts(make_world: MakeWorld) -> None:
    bad = {"train.loss": 1e308, "train.total": -1.7e308, "train.examples": -3.0}
    world = make_world(rounds=1)
    run(world, lambda outcome: replace(outcome, metrics=bad))
    assert world.rounds == [(0, tuple(sorted(SIZES)))]
    assert world.records[0].measured["mallory"] == {}
    assert all(math.isfinite(value) for value in world.records[0].metrics.values())


def test_infinity_never_reaches_a_file(make_world: MakeWorld) -> None:
    store = make_world().store
    state = State(1, {"w": np.zeros(1, np.float32)})
    store.save_round(state, record(1, accuracy=math.inf, measured={"a": {"b": math.nan}}, metrics={"c.d": 1.5}))

    def no_such_word(word: str) -> None:
        raise AssertionError(word)

    line = json.loads((store.path / "metrics.jsonl").read_text(), parse_constant=no_such_word)
    assert (line["accuracy"], line["measured"], line["metrics"]) == (None, {"a": {"b": None}}, {"c.d": 1.5})
    (read,) = store.records()
    assert (read.accuracy, read.measured, read.metrics) == (None, {"a": {"b": None}}, {"c.d": 1.5})
