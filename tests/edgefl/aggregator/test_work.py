"""A method with a model of its own on the aggregator: its work comes between a round's fusion and its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Action, Announce, Note, RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.method import Ask, Fused, Reply, State, Task, WithModel, Work, Worked


@dataclass(frozen=True)
class Taught:
    """Two rounds; what devices send is doubled by a model, as often as `lessons` says."""

    lessons: int = 1

    def start(self) -> State:
        return State(0, {"x": np.zeros(1, np.float32)}, {"lessons": 0})

    def ask(self, state: State) -> Ask | None:
        return Ask((Task("train"),), state.tensors) if state.round < 2 else None

    def advance(self, state: State, fused: Fused) -> State:
        return State(state.round + 1, dict(fused.tensors), {"lessons": self.lessons})

    def work(self, state: State) -> Work | None:
        return Work((Task("double", feed="announced"),), state.tensors, {}) if state.numbers["lessons"] else None

    def worked(self, state: State, done: Worked) -> State:
        return State(state.round, done.tensors, {"lessons": state.numbers["lessons"] - 1})


def doubled(work: Work) -> Worked:
    assert [task.program for task in work.tasks] == ["double"]
    return Worked({name: 2 * value for name, value in work.tensors.items()}, work.state)


@pytest.fixture
def coordinator() -> Coordinator:
    return begun(Taught())


def begun(method: Taught) -> Coordinator:
    settings = RoundSettings(min_devices=2, quorum=0.5, deadline_s=100.0)
    coordinator = Coordinator(method, method.start(), settings, secret="s")
    coordinator.joined("a", 0.0)
    coordinator.joined("b", 0.0)
    return coordinator


def send(coordinator: Coordinator, device: str, value: float) -> list[Action]:
    reply = Reply(device, coordinator.state.round, 1, {"x": np.array([value], np.float32)}, {})
    return coordinator.replied(reply, coordinator._nonce(), 1.0)[1]


def of(actions: list[Action], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def test_a_round_ends_when_its_work_is_done(coordinator: Coordinator) -> None:
    """2 * mean(1, 3) = 4, which the next round announces."""
    send(coordinator, "a", 1.0)
    _, work = send(coordinator, "b", 3.0)
    assert isinstance(work, Work) and work.tensors["x"] == [2]
    (done,) = coordinator.worked(doubled(work), 9.0)
    assert isinstance(done, RoundDone)
    assert (done.state.tensors["x"], done.fused.tensors["x"], done.seconds) == ([4], [2], 1.0)
    (announce,) = coordinator.begin(9.0)
    assert isinstance(announce, Announce)
    assert (announce.round, announce.ask.tensors["x"]) == (1, [4])


def test_work_may_lead_to_more_work() -> None:
    coordinator = begun(Taught(lessons=3))
    send(coordinator, "a", 1.0)
    actions, lessons = send(coordinator, "b", 1.0), 0
    while works := of(actions, Work):
        actions, lessons = coordinator.worked(doubled(works[0]), 2.0), lessons + 1
    (done,) = actions
    assert isinstance(done, RoundDone)
    assert (lessons, done.state.tensors["x"]) == (3, [8])


def test_nothing_else_happens_meanwhile(coordinator: Coordinator) -> None:
    send(coordinator, "a", 1.0)
    (work,) = coordinator.tick(100.0)
    assert isinstance(work, Work)
    assert coordinator.judge("a", 0, coordinator._nonce()).status == "duplicate"
    assert coordinator.judge("b", 0, coordinator._nonce()).status == "late"
    assert coordinator.joined("c", 101.0) == [Note("joined", 0, "c")]
    assert coordinator.tick(1000.0) == coordinator.stop(1000.0) == []
    assert of(coordinator.worked(doubled(work), 1000.0), RoundDone)


def test_a_model_that_diverges_undoes_the_round(coordinator: Coordinator) -> None:
    """The larger of the two changes is to blame."""
    for value in (math.nan, None):
        send(coordinator, "a", 1.0)
        (work,) = of(send(coordinator, "b", 3.0), Work)
        if value is None:
            undone, again = coordinator.undo("train.loss is nan", 2.0)
        else:
            undone, again = coordinator.worked(Worked({"x": np.array([value], np.float32)}, {}), 2.0)
        why = "train.loss is nan" if value is None else "'x' would not be finite"
        assert undone == Note("undone", 0, text=f"{why}; asked again without b")
        assert isinstance(again, Announce) and again.round == 0
        (work,) = of(send(coordinator, "a", 1.0), Work)
        (done,) = coordinator.worked(doubled(work), 3.0)
        assert isinstance(done, RoundDone) and done.state.tensors["x"] == [2]
        coordinator = begun(Taught())


def test_a_method_without_a_model_is_asked_for_no_work() -> None:
    assert isinstance(Taught(), WithModel)
    assert not isinstance(Silent(), WithModel)


class Silent:
    start, ask, advance = Taught.start, Taught.ask, Taught.advance
