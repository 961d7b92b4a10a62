"""In which order an aggregator wants things done, and what it does with frames while a round is being evaluated.

Two devices of FedAvg on the two weights of toy.py, frame by frame: no broker, no store. A device replies with weights
that are all `value`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dreaming import Dreaming
from records import record

from edgefl import protocol
from edgefl.aggregator.actions import Action, Evaluate, SaveDevice, SaveOpenRound, SaveRound
from edgefl.aggregator.classes import DeviceClass, Examples
from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Note
from edgefl.aggregator.session import Aggregator
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.files import sha256_hex
from edgefl.method import State, Work, Worked
from edgefl.methods.fedavg import FedAvg
from edgefl.protocol import Announcement, Offer, Outgoing, Presence, Receipt, TaskFailed

RUN = "toy"
START_S = 100.0  # on any clock
Make = Callable[..., Aggregator]


@pytest.fixture
def make(regression: Bundle) -> Make:
    def make(*, method: Any = None, deadline_s: float = 60.0, **options: Any) -> Aggregator:
        chosen = method or FedAvg(regression.shared_weights(), rounds=2, batch_size=0)
        settings = RoundSettings(min_devices=2, quorum=0.5, deadline_s=deadline_s)
        coordinator = Coordinator(chosen, chosen.start(), settings, secret="s")
        given: dict[str, Any] = {"epoch": 1, "assigned": {}, "examples": {}} | options
        return Aggregator(RUN, [DeviceClass("all", regression)], coordinator, **given)

    return make


def arrive(aggregator: Aggregator, device: str, now_s: float = START_S, status: Any = "up") -> list[Action]:
    presence = Presence(device, 1, status, f"{device}, life 1", train_examples=2)
    return aggregator.receive(protocol.device_topic(RUN, device), protocol.encode(presence), now_s)


def begun(aggregator: Aggregator) -> Announcement:
    """Both devices are there: the first round."""
    aggregator.start(START_S)
    arrive(aggregator, "a")
    return announced(arrive(aggregator, "b"))[0]


def announced(actions: list[Action]) -> list[Announcement]:
    messages = [protocol.decode(action.payload)[0] for action in actions if isinstance(action, Outgoing)]
    return [message for message in messages if isinstance(message, Announcement)]


def reply(aggregator: Aggregator, device: str, value: float) -> list[Action]:
    """A reply to the round that is open, or is being evaluated, one second after the start."""
    return send(aggregator, device, {"w": np.full(2, value, np.float32)})


def send(aggregator: Aggregator, device: str, tensors: dict[str, Any]) -> list[Action]:
    coordinator = aggregator.coordinator
    body = protocol.tensors_to_bytes(tensors)
    offer = Offer(device, coordinator.state.round, coordinator._nonce(), sha256_hex(body), len(body), 65536, 2, {})
    return aggregator.receive(protocol.up_topic(RUN, device), protocol.encode(offer, body), START_S + 1)


def kinds(actions: list[Action]) -> list[str]:
    """What is wanted, in order, notes left out: the names of actions, of messages for what is to be said."""
    wanted = [action for action in actions if not isinstance(action, Note)]
    return [type(protocol.decode(a.payload)[0] if isinstance(a, Outgoing) else a).__name__ for a in wanted]


def receipts(actions: list[Action]) -> list[str]:
    messages = [protocol.decode(action.payload)[0] for action in actions if isinstance(action, Outgoing)]
    return [message.status for message in messages if isinstance(message, Receipt)]


# --- what is durable before what ----------------------------------------------------------------------------------


def test_a_place_is_durable_before_the_device_hears_of_it(make: Make) -> None:
    aggregator = make()
    aggregator.start(START_S)
    actions = arrive(aggregator, "a")
    assert kinds(actions) == ["SaveDevice", "Assignment"]
    assert actions[0] == SaveDevice("a", "all", Examples(2, 0))
    assert kinds(arrive(aggregator, "a")) == ["Assignment"]  # known already


def test_an_open_round_is_durable_before_it_is_announced(make: Make) -> None:
    aggregator = make()
    aggregator.start(START_S)
    arrive(aggregator, "a")
    actions = arrive(aggregator, "b")
    assert kinds(actions) == ["SaveDevice", "Assignment", "SaveOpenRound", "Announcement"]
    (saved,) = [action for action in actions if isinstance(action, SaveOpenRound)]
    assert (saved.announce.round, saved.announce.devices) == (0, ("a", "b"))


def test_a_round_is_evaluated_and_durable_before_the_next_is_announced(make: Make) -> None:
    """The mean of 2 and 4 is 3."""
    aggregator = make()
    begun(aggregator)
    reply(aggregator, "a", 2.0)
    actions = reply(aggregator, "b", 4.0)
    assert kinds(actions) == ["Receipt", "Evaluate"]
    (evaluate,) = [action for action in actions if isinstance(action, Evaluate)]
    assert evaluate.state.tensors["w"].tolist() == [3, 3]

    following = aggregator.evaluated({"evaluate.loss": 0.5}, START_S + 7)
    assert kinds(following) == ["SaveRound", "SaveOpenRound", "Announcement"]
    kept = following[0]
    assert isinstance(kept, SaveRound) and kept.state is evaluate.state
    assert (kept.record.round, kept.record.loss, kept.record.seconds, kept.record.elapsed_s) == (1, 0.5, 1.0, 7.0)


def test_a_round_that_need_not_be_durable_is_not_evaluated(make: Make) -> None:
    """Of three rounds the first and the last are durable."""
    aggregator = make(method=Dreaming(epochs=1, steps=2))
    begun(aggregator)
    send(aggregator, "a", {})
    assert kinds(send(aggregator, "b", {})) == ["Receipt", "Evaluate"]
    aggregator.evaluated({}, START_S + 1)
    predicted = {"predicted": np.zeros(4, np.float32)}
    send(aggregator, "a", predicted)
    actions = send(aggregator, "b", predicted)
    assert kinds(actions) == ["Receipt", "SaveRound", "SaveOpenRound", "Announcement"]
    assert [action.record.durable for action in actions if isinstance(action, SaveRound)] == [False]
    send(aggregator, "a", predicted)
    assert kinds(send(aggregator, "b", predicted)) == ["Receipt", "Evaluate"]


def test_the_work_of_a_methods_own_model_comes_before_the_evaluation(make: Make, regression: Bundle) -> None:
    class Learned(FedAvg, frozen=True):
        """Its model gives -w in place of w."""

        def work(self, state: State) -> Work | None:
            return Work((), state.tensors, {}) if state.tensors["w"][0] > 0 else None

        def worked(self, state: State, done: Worked) -> State:
            return State(state.round, done.tensors)

    aggregator = make(method=Learned(regression.shared_weights(), rounds=2, batch_size=0))
    begun(aggregator)
    reply(aggregator, "a", 2.0)
    actions = reply(aggregator, "b", 4.0)
    assert kinds(actions) == ["Receipt", "Work"]
    assert receipts(reply(aggregator, "b", 4.0)) == ["duplicate"]
    assert kinds(aggregator.failed("the loss is nan", START_S)) == ["SaveOpenRound", "Announcement"]
    (work,) = [action for action in reply(aggregator, "a", 2.0) if isinstance(action, Work)]
    (evaluate,) = aggregator.worked(Worked({"w": -work.tensors["w"]}, {}), START_S)
    assert isinstance(evaluate, Evaluate) and evaluate.state.tensors["w"].tolist() == [-2, -2]


# --- frames while a round is being evaluated ----------------------------------------------------------------------


@pytest.fixture
def pending(make: Make) -> Aggregator:
    """Only a has replied, with 2, when the deadline has passed: its state is being evaluated."""
    aggregator = make()
    begun(aggregator)
    assert kinds(reply(aggregator, "a", 2.0)) == ["Receipt"]
    assert kinds(aggregator.tick(START_S + 60)) == ["AggregatorStatus", "Evaluate"]
    return aggregator


def test_replies_to_a_round_that_is_evaluated_are_duplicates_or_late(pending: Aggregator) -> None:
    assert receipts(reply(pending, "a", 2.0)) == ["duplicate"]
    assert receipts(reply(pending, "b", 100.0)) == ["late"]
    kept = pending.evaluated({}, START_S + 61)[0]
    assert isinstance(kept, SaveRound)
    assert kept.state.tensors["w"].tolist() == [2, 2] and kept.record.devices == ["a"]


def test_no_round_is_opened_or_asked_again_before_the_state_is_kept(pending: Aggregator) -> None:
    failed = TaskFailed("b", 0, pending.coordinator._nonce(), "no space")
    for actions in (
        arrive(pending, "c"),
        arrive(pending, "a", status="down"),
        pending.receive(protocol.up_topic(RUN, "b"), protocol.encode(failed), START_S + 3),
        pending.tick(START_S + 1000),  # long after the deadline
    ):
        assert not set(kinds(actions)) & {"Announcement", "SaveOpenRound", "SaveRound", "Evaluate"}
    assert pending.wake_s(START_S + 1000) == START_S + 1001  # nobody turns in circles
    (announcement,) = announced(pending.evaluated({}, START_S + 1000))
    assert (announcement.round, announcement.devices) == (1, ["b", "c"])  # who came meanwhile, without who left


def test_a_round_that_is_undone_goes_on_where_it_was(pending: Aggregator) -> None:
    """a, the only one that replied, is barred; b replies in the second attempt, as if nothing had been."""
    first = pending.coordinator._nonce()
    reply(pending, "b", 5.0)
    following = pending.failed("the loss is nan", START_S + 61)
    assert kinds(following) == ["SaveOpenRound", "Announcement"]
    (announcement,) = announced(following)
    assert (announcement.round, announcement.attempt, announcement.nonce) == (0, 1, first)
    assert receipts(reply(pending, "a", 2.0)) == ["refused"]
    assert kinds(reply(pending, "b", 5.0)) == ["Receipt", "Evaluate"]
    kept = pending.evaluated({}, START_S + 10)[0]
    assert isinstance(kept, SaveRound) and kept.state.tensors["w"].tolist() == [5, 5]
    assert (kept.record.attempts, kept.record.devices) == (2, ["b"])


def test_who_left_while_a_round_was_evaluated_is_not_waited_for_when_it_is_done_again(make: Make) -> None:
    aggregator = make()
    begun(aggregator)
    reply(aggregator, "a", 2.0)
    reply(aggregator, "b", 4.0)
    arrive(aggregator, "b", status="down")
    aggregator.failed("the loss is nan", START_S + 9)  # without b, whose change was larger
    assert kinds(reply(aggregator, "a", 2.0)) == ["Receipt", "Evaluate"]


def test_what_an_undone_round_has_cost_is_in_its_record(make: Make) -> None:
    """a offers three times: once before, once while the round is evaluated, once when it is done again."""
    aggregator = make()
    begun(aggregator)
    reply(aggregator, "a", 2.0)
    offer_bytes = aggregator._traffic.up["a"]
    reply(aggregator, "b", 4.0)
    assert receipts(reply(aggregator, "a", 2.0)) == ["duplicate"]
    aggregator.failed("the loss is nan", START_S + 9)
    reply(aggregator, "a", 2.0)
    kept = aggregator.evaluated({}, START_S + 10)[0]
    assert isinstance(kept, SaveRound)
    assert kept.record.bytes_up_by_device["a"] == 3 * offer_bytes


def test_a_loss_that_is_no_number_undoes_the_round(pending: Aggregator) -> None:
    following = pending.evaluated({"evaluate.loss": float("nan")}, START_S + 9)
    assert Note("undone", 0, text="the held-out loss would be nan; asked again without a") in following
    assert kinds(following) == ["SaveOpenRound", "Announcement"]


def test_a_run_that_stops_keeps_the_round_and_announces_nothing(make: Make) -> None:
    aggregator = make()
    begun(aggregator)
    reply(aggregator, "a", 2.0)
    assert kinds(aggregator.stop(START_S + 2)) == ["Evaluate"]
    assert kinds(aggregator.evaluated({}, START_S + 3)) == ["SaveRound"]
    assert not aggregator.finished


# --- the end of a run ---------------------------------------------------------------------------------------------


def test_the_target_ends_the_run_and_is_remembered(make: Make) -> None:
    aggregator = make(target_accuracy=0.9)
    begun(aggregator)
    reply(aggregator, "a", 2.0)
    reply(aggregator, "b", 4.0)
    metrics = {"evaluate.loss": 0.1, "evaluate.correct": 9.0, "evaluate.examples": 10.0}
    assert kinds(aggregator.evaluated(metrics, START_S)) == ["SaveRound", "AggregatorStatus"]
    assert aggregator.finished
    resumed = make(target_accuracy=0.9, last=record(1, accuracy=0.9))
    assert kinds(resumed.start(START_S)) == ["AggregatorStatus", "AggregatorStatus"] and resumed.finished
    more = make(target_accuracy=0.95, last=record(1, accuracy=0.9))
    assert kinds(more.start(START_S)) == ["AggregatorStatus"] and not more.finished


def test_time_goes_on_where_an_earlier_start_ended(make: Make) -> None:
    aggregator = make(last=record(1, elapsed_s=50.0))
    begun(aggregator)
    reply(aggregator, "a", 2.0)
    reply(aggregator, "b", 4.0)
    kept = aggregator.evaluated({}, START_S + 7)[0]
    assert isinstance(kept, SaveRound) and kept.record.elapsed_s == 57.0
