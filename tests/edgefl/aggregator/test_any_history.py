"""Whatever happens in whatever order: what must hold at every step."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rounds import Count, nonce_of, reply

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Action, Announce, OpenRound, RoundDone
from edgefl.aggregator.settings import RoundSettings

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
        self.lapsed: set[str] = set()  # asked in a round that was closed without them, and never counted since
        self.carry_out(self.coordinator.begin(self.now_s))
        for name in sorted(self.present):  # retained presence
            self.carry_out(self.coordinator.joined(name, self.now_s))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Announce):
                if self.saved is None or self.saved.round != action.round:
                    self.first = action.devices
                    self.quorum = max(1, int(np.ceil(self.settings.quorum * (len(action.devices) - len(action.trial)))))
                    assert set(action.trial) <= self.lapsed and len(action.trial) < len(action.devices)
                self.saved = OpenRound(action.round, action.attempt, action.devices, action.quorum, trial=action.trial)
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
                self.lapsed = (self.lapsed | set(self.saved.devices if self.saved else ())) - set(self.counted)
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
