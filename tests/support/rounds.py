"""Rounds, by hand: events and a clock in, actions out. A device's reply is its number; a fused round is their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.fusion import Fusing, fusing
from edgefl.aggregator.rounds import Action, Announce, OpenRound, Verdict
from edgefl.aggregator.settings import RoundSettings
from edgefl.method import Ask, Fused, Reply, State, Task


@dataclass(frozen=True)
class Count:
    """A method whose state is the fused number of the last round."""

    rounds: int = 3
    weight: str = "examples"

    def start(self) -> State:
        return State(0, {"x": np.zeros(1, np.float32)})

    def ask(self, state: State) -> Ask | None:
        return Ask((Task("train"),), state.tensors, weight=self.weight) if state.round < self.rounds else None

    def advance(self, state: State, fused: Fused) -> State:
        return State(state.round + 1, dict(fused.tensors))


def make(
    *present: str,
    method: Count = Count(),
    seed: int = 0,
    resumed: OpenRound | None = None,
    fusing: Fusing = fusing,
    **settings: Any,
) -> Coordinator:
    """A coordinator that has begun at 0 s and been told of some devices. Deadline 100 s, quorum one half."""
    chosen = RoundSettings(**({"deadline_s": 100.0} | settings))
    coordinator = Coordinator(method, method.start(), chosen, seed=seed, secret="s", resumed=resumed, fusing=fusing)
    coordinator.begin(0.0)
    for name in present:
        coordinator.joined(name, 0.0)
    return coordinator


def fleet(count: int) -> list[str]:
    return [f"d{i:02}" for i in range(count)]


def reply(name: str, round: int = 0, value: float = 1.0, examples: int = 1) -> Reply:
    return Reply(name, round, examples, {"x": np.array([value], np.float32)}, {})


def send(coordinator: Coordinator, name: str, now_s: float = 1.0, **changed: Any) -> tuple[Verdict, list[Action]]:
    """A reply to the open round."""
    answer = reply(name, changed.pop("round", coordinator.state.round), **changed)
    return coordinator.replied(answer, nonce_of(coordinator), now_s)


def nonce_of(coordinator: Coordinator) -> str:
    return coordinator._nonce()  # it is also in every Announce; a round that nobody was told of has one too


def of(actions: list[Action], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def open_with(count: int, **settings: Any) -> tuple[Coordinator, Announce]:
    """`count` devices that are all there when the round opens."""
    coordinator = Coordinator(
        Count(), Count().start(), RoundSettings(**({"deadline_s": 100.0, "min_devices": count} | settings)), secret="s"
    )
    actions: list[Action] = []
    for name in fleet(count):
        actions = coordinator.joined(name, 0.0)
    (announce,) = of(actions, Announce)
    return coordinator, announce


def asked(actions: list[Action]) -> list[tuple[str, ...]]:
    return [action.devices for action in actions if isinstance(action, Announce)]


def stating(**examples: int) -> Coordinator:
    """Devices that say how many examples they have. Quorum one half."""
    coordinator = make(min_devices=len(examples))
    for name, count in examples.items():
        coordinator.joined(name, 0.0, examples=count)
    return coordinator
