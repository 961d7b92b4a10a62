"""A device or an aggregator that is killed anywhere: nobody trains twice, and nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from descent import (
    RATE,
    ROUNDS,
    SIZES,
    MakeWorld,
    assert_exact,
    fedavg,
    gradient_descent,
    make_data,
    trained_once_a_round,
)
from emulated import Devices
from memory import AGGREGATOR, RUN, Killed, World

from edgefl import protocol
from edgefl.bundle import Bundle
from edgefl.method import Ask, Fused, State, Task
from edgefl.methods.lg_fedavg import LgFedAvg
from edgefl.methods.scaffold import Scaffold
from edgefl.protocol import TaskFailed, UploadChunk
from edgefl_device.work.journal import Journal


@pytest.mark.parametrize("lost", ["the offer", "the receipt"])
def test_a_device_killed_before_its_receipt_trains_once_and_is_counted_once(
    make_world: MakeWorld, bundle: Bundle, lost: str
) -> None:
    world = make_world(bundle)
    device = world.nodes["pi-2"]
    up, down = protocol.up_topic(RUN, "pi-2"), protocol.down_topic(RUN, "pi-2")

    def is_lost(client: str, topic: str) -> bool:
        return bool(device.jobs) and topic == (up if lost == "the offer" else down) and device.lives == 1

    world.broker.lost = is_lost
    world.run(lambda: bool(device.jobs) and not world.broker.pending)
    if lost == "the offer":
        assert world.coordinator.replies == (2, 3)
    else:  # chunks need a permit, which is lost as well
        assert world.coordinator.replies == ((2, 3) if bundle.manifest.tensor("w").size_bytes > 8 else (0, 3))
    device.start()
    world.run()
    assert device.lives == 2
    assert_exact(world)
    assert trained_once_a_round(world)
    assert device.session.private.tensors["count"] == ROUNDS  # private state, one more by each step of training


def run_with_kills(world: World) -> list[dict[str, Any]]:
    """To the end: every device is killed after its work in every round, the aggregator in the second. What each device
    kept after each round."""
    kept: list[dict[str, Any]] = []
    for round in range(1, ROUNDS + 1):
        world.run(lambda: all(len(node.jobs) == round for node in world.nodes.values()))  # noqa: B023
        kept += [dict(node.session.private.tensors) for node in world.nodes.values()]
        for node in world.nodes.values():
            node.start()
        if round == 2:
            world.restart_aggregator()
    world.run()
    assert trained_once_a_round(world)
    return kept


def test_what_is_not_shared_survives_kills_and_is_never_on_the_wire(
    make_world: MakeWorld, make_bundle: Callable[[str], Bundle]
) -> None:
    """LG-FedAvg: each body lives on its device alone, and ends as in a run where nothing happened."""
    bundle = make_bundle("layers")
    method = LgFedAvg(bundle.shared_weights(), share=("head.*",), rounds=ROUNDS, batch_size=0, learning_rate=RATE)
    clean = Devices(bundle, make_data(2))
    clean.carry_on(method, method.start(), ROUNDS)

    world = make_world(bundle, method=method)
    bodies = {kept["body.weight"].tobytes() for kept in run_with_kills(world)}
    assert len(bodies) == ROUNDS * len(SIZES)
    for name, node in world.nodes.items():
        kept = Journal(node.directory, RUN).read()
        assert kept is not None
        for tensor, value in clean.kept[name].items():
            np.testing.assert_array_equal(kept.private[tensor], value)
    said = b"".join(message.payload for message in world.broker.published)
    assert not any(body in said for body in bodies)


def test_every_change_of_a_control_variate_counts_once(
    make_world: MakeWorld, make_bundle: Callable[[str], Bundle]
) -> None:
    """SCAFFOLD: were one reply lost or counted twice, c would not be the mean of what the devices have kept."""
    bundle = make_bundle("controlled")
    method = Scaffold(bundle.shared_weights(), devices=len(SIZES), rounds=ROUNDS, batch_size=1, learning_rate=0.1)
    clean = Devices(bundle, make_data(2))
    want = clean.carry_on(method, method.start(), ROUNDS)
    world = make_world(bundle, method=method)
    run_with_kills(world)
    got = world.coordinator.state.tensors
    for tensor, value in want.tensors.items():
        np.testing.assert_allclose(got[tensor], value, rtol=1e-5, atol=1e-6)
    journals = [Journal(node.directory, RUN).read() for node in world.nodes.values()]
    for name in ("body.weight", "head.bias"):
        own = [journal.private[f"own_control.{name}"] for journal in journals if journal is not None]
        assert len(own) == len(SIZES)
        np.testing.assert_allclose(got[f"control.{name}"], np.mean(own, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("replies", [0, 1, 2])
def test_an_aggregator_killed_in_the_middle_of_a_round(make_world: MakeWorld, bundle: Bundle, replies: int) -> None:
    """The replies it had counted are offered again, from the journals; nobody trains twice."""
    world = make_world(bundle)
    world.run(lambda: world.rounds != [] and world.coordinator.replies[0] == replies)
    before = world.coordinator
    world.restart_aggregator()
    assert world.coordinator is not before
    assert world.coordinator.replies[0] == 0
    world.run()
    assert world.store.epoch == 2
    assert_exact(world)
    assert trained_once_a_round(world)
    assert world.now_s < 1  # nobody waited for a deadline


@pytest.mark.parametrize("moment", ["before the round is durable", "after the round is durable"])
def test_an_aggregator_killed_while_it_closes_a_round(make_world: MakeWorld, bundle: Bundle, moment: str) -> None:
    world = make_world(bundle)
    kills: list[str] = []

    def kill(now: str) -> None:
        if now == moment and len(kills) < 2:
            kills.append(now)
            raise Killed

    world.kill = kill
    world.run()
    assert kills == [moment] * 2
    assert world.store.epoch == 3
    assert_exact(world)
    assert trained_once_a_round(world)


class Looking:
    """FedAvg with a round between any two of its own, in which devices only measure what they are announced."""

    def __init__(self, bundle: Bundle) -> None:
        self.inner = fedavg(bundle)

    def start(self) -> State:
        return self.inner.start()

    def ask(self, state: State) -> Ask | None:
        if state.round % 2:
            return Ask((Task("evaluate", load=("w",), batch_size=0),), state.tensors)
        return self.inner.ask(State(state.round // 2, state.tensors))

    def advance(self, state: State, fused: Fused) -> State:
        if state.round % 2:
            return State(state.round + 1, state.tensors)
        return State(state.round + 1, self.inner.advance(State(state.round // 2, state.tensors), fused).tensors)


def test_an_ask_that_changes_nothing_leaves_the_journal_as_it_was(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle, method=Looking(bundle))
    world.run()
    w = gradient_descent(make_data(bundle.manifest.tensor("w").shape[0]))
    np.testing.assert_array_equal(world.coordinator.state.tensors["w"], w)
    assert [number for number, _ in world.rounds] == list(range(2 * ROUNDS))
    for node in world.nodes.values():
        kept = Journal(node.directory, RUN).read()
        assert kept is not None and kept.round == 2 * ROUNDS - 2  # the last round that trained
        assert kept.private["count"] == node.session.private.tensors["count"] == ROUNDS


@pytest.mark.parametrize("killed", ["a device", "the aggregator"])
def test_a_reply_that_was_never_on_disk_is_made_again(make_world: MakeWorld, regression: Bundle, killed: str) -> None:
    """A device that restarts does the ask again; while it lives, it offers what it has to a new aggregator."""
    world = make_world(regression, method=Looking(regression))
    world.run(lambda: len(world.rounds) == 3 and world.coordinator.replies[0] == 2)
    ready = [node for node in world.nodes.values() if node.jobs[-1][0] == 3]
    if killed == "a device":
        for node in ready:
            node.start()
    world.restart_aggregator()
    world.run()
    w = gradient_descent(make_data(2))
    np.testing.assert_array_equal(world.coordinator.state.tensors["w"], w)
    for node in world.nodes.values():
        done = [round for round, _ in node.jobs]
        assert done.count(3) == (2 if killed == "a device" and node in ready else 1)
        assert [r for r in done if r % 2 == 0] == [0, 2, 4]
        assert node.session.private.tensors["count"] == ROUNDS


@pytest.mark.parametrize("order", ["status first", "announcement first"])
def test_a_restart_is_noticed_in_whichever_message_comes_first(
    make_world: MakeWorld, regression: Bundle, order: str
) -> None:
    """Retained messages of several topics come in any order. What the old aggregator had accepted is offered again."""
    world = make_world(regression)
    slow = world.nodes["pi-3"]
    world.broker.lost = lambda client, topic: bool(slow.jobs) and topic == protocol.up_topic(RUN, "pi-3")
    world.run(lambda: world.coordinator.replies[0] == 2 and not world.broker.pending)
    world.restart_aggregator()
    device_messages = [p for p in world.broker.pending if p[0] == "pi-1"]
    kinds = [type(protocol.decode(payload)[0]).__name__ for _, _, payload, _ in device_messages]
    assert kinds[-2:] == ["AggregatorStatus", "Announcement"]
    if order == "announcement first":
        world.broker.pending = [p for p in world.broker.pending if p not in device_messages] + device_messages[::-1]
    world.run(lambda: world.coordinator.replies[0] == 2)
    world.broker.lost = lambda client, topic: False
    world.run()
    assert_exact(world)
    assert world.now_s < 60  # nobody waited for the deadline


def test_a_damaged_bundle_on_a_devices_disk_is_downloaded_again(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    device = world.nodes["pi-1"]
    world.run(lambda: bool(device.jobs))
    (program,) = device.directory.glob("bundles/*/programs/train.onnx")
    program.write_bytes(b"?" + program.read_bytes()[1:])
    device.start()
    world.run()
    assert_exact(world)
    assert any("downloading the bundle again" in line and "train.onnx was changed" in line for line in device.log)
    assert program.read_bytes() == regression.bytes_of(regression.manifest.program("train").file)


def test_a_bundle_without_files_for_the_devices_engine_is_answered_and_said(
    make_world: MakeWorld, regression: Bundle
) -> None:
    world = make_world(regression)
    device = world.nodes["pi-1"]
    device.engine = "onnxruntime-training"
    device.start()
    world.run(lambda: bool(world.broker.said(TaskFailed)))
    why = "bundle 'regression' has no files for onnxruntime-training"
    answer = world.broker.said(TaskFailed)[0]
    assert isinstance(answer, TaskFailed) and (answer.device, answer.reason) == ("pi-1", why)
    assert device.unfit is not None and device.unfit.message == why
    assert device.unfit.hint == "export it with --target onnxruntime-training, or start the device without --engine"


def test_a_short_cut_keeps_the_chunks_that_came(make_world: MakeWorld, wide: Bundle) -> None:
    """The will marks the device as gone; the upload goes on where it was."""
    world = make_world(wide)
    device = world.nodes["pi-2"]
    up = protocol.up_topic(RUN, "pi-2")

    def sent() -> list[int]:
        messages = [protocol.decode(m.payload)[0] for m in world.broker.published if m.topic == up]
        return [m.index for m in messages if isinstance(m, UploadChunk)]

    world.run(lambda: sent() == [0, 1, 2])
    arriving = [p for p in world.broker.pending if p[:2] == (AGGREGATOR, up)]
    assert len(arriving) == 3
    world.broker.pending = [p for p in world.broker.pending if p not in arriving[1:]]  # the cut took two of three
    world.broker.publish(device.will)
    world.run(lambda: not world.broker.pending)
    assert world.events("left") == [("pi-2", "")]
    device.reconnect()
    world.run(lambda: len(world.rounds) == 1)
    assert sent() == [0, 1, 2, 1, 2]
    world.run()
    assert_exact(world)
