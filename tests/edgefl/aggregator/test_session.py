"""Aggregator and devices joined in memory: whatever the network does, the weights are those of a clean run.

The problem is the linear regression of tests/support/toy.py. With one epoch, all of a device's data in one batch, and
everybody in every round, FedAvg is gradient descent on the union of the data. The numbers are small binary fractions
(8 examples in all, 1, 2 and 4 on the devices times two, a learning rate of 1/4), so float32 holds them exactly and "the
same weights" means the same bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import Devices
from memory import AGGREGATOR, RUN, Broker, Killed, Node, World, with_tensors
from toy import write_regression

from edgefl import protocol
from edgefl.aggregator.classes import DeviceClass, parse_condition
from edgefl.aggregator.coordinator import Announce, RoundSettings
from edgefl.bundle import Bundle
from edgefl.manifest import parse_manifest
from edgefl.method import Ask, Fused, State, Task
from edgefl.methods.fedavg import FedAvg
from edgefl.methods.lg_fedavg import LgFedAvg
from edgefl.methods.scaffold import Scaffold
from edgefl.protocol import (
    AggregatorStatus,
    Announcement,
    BlobChunk,
    BlobRequest,
    Offer,
    Presence,
    Receipt,
    TaskFailed,
    UploadChunk,
)
from edgefl.random_numbers import order_of
from edgefl_device.data.dataset import Dataset
from edgefl_device.work.interpreter import Outcome
from edgefl_device.work.journal import Journal

ROUNDS = 3
RATE = 0.25
SIZES = {"pi-1": 2, "pi-2": 4, "pi-3": 2}
WIDE = 40_000  # weights of 160 kB: a blob of three chunks down, an upload of three chunks up


def make_data(width: int) -> dict[str, Dataset]:
    """Features -1, 0 or 1 (of many, only the first three are not 0), labels -2 ... 2."""
    rng = np.random.default_rng(7)
    data = {}
    for name, size in SIZES.items():
        features = np.zeros((size, width), np.float32)
        features[:, :3] = rng.integers(-1, 2, (size, min(3, width)))
        data[name] = Dataset(features, rng.integers(-2, 3, size).astype(np.float32))
    return data


def gradient_descent(data: dict[str, Dataset], rounds: int = ROUNDS) -> Any:
    """w <- w - rate * 2/n X^T (X w - y) on all examples together."""
    x = np.concatenate([d.features for d in data.values()]).astype(np.float64)
    y = np.concatenate([d.labels for d in data.values()]).astype(np.float64)
    w = np.zeros(x.shape[1])
    for _ in range(rounds):
        w = w - RATE * 2 / len(x) * x.T @ (x @ w - y)
    return w


def fedavg(bundle: Bundle, **settings: Any) -> FedAvg:
    initial = {t.name: bundle.weights()[t.name] for t in bundle.manifest.shared()}
    chosen = {"rounds": ROUNDS, "batch_size": 0, "learning_rate": RATE} | settings
    return FedAvg(initial, **chosen)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_regression(tmp_path_factory.mktemp("bundles") / "wide.bundle", WIDE)


@pytest.fixture(params=["narrow", "wide"])
def bundle(request: pytest.FixtureRequest, regression: Bundle, wide: Bundle) -> Bundle:
    """Weights that travel inside one message, and weights that travel in chunks."""
    return regression if request.param == "narrow" else wide


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """A run on a bundle: FedAvg and a clean network, unless options say otherwise."""
    made: list[World] = []

    def make(bundle: Bundle, **options: Any) -> World:
        data = make_data(bundle.manifest.data.features[0])
        given, method = options.pop("classes", bundle), options.pop("method", None) or fedavg(bundle)
        made.append(World(tmp_path, given, method, data, **options))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


def assert_exact(world: World) -> None:
    """Every round counted every device once, and the weights are gradient descent's, bit for bit."""
    assert [number for number, _ in world.rounds] == list(range(ROUNDS))
    assert all(devices == tuple(sorted(SIZES)) for _, devices in world.rounds)
    state = world.coordinator.state
    assert state.round == ROUNDS
    w = gradient_descent(make_data(world.classes[0].bundle.manifest.tensor("w").shape[0]))
    assert np.abs(w).max() > 0.1
    np.testing.assert_array_equal(state.tensors["w"], w)
    assert world.coordinator.finished
    assert world.store.load_state().tensors["w"].tobytes() == state.tensors["w"].tobytes()


def trained_once_a_round(world: World) -> bool:
    return all(
        [round for round, _ in node.jobs] == list(range(ROUNDS)) and len(set(node.jobs)) == ROUNDS
        for node in world.nodes.values()
    )


# --- a network that works -----------------------------------------------------------------------------------------


def test_a_clean_network(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle)
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)
    assert world.now_s < 1  # nobody waited for a repetition
    assert {note.event for note in world.notes} == {"joined", "replied"}


def test_several_epochs_in_batches_are_numpys(make_world: MakeWorld, regression: Bundle) -> None:
    """Algorithm 1 of the paper, written out: E = 2, B = 3, so that a batch is short."""
    world = make_world(regression, method=fedavg(regression, epochs=2, batch_size=3, seed=5))
    world.run()
    data = make_data(2)
    taken = {name: 2 * math.ceil(len(own) / 3) for name, own in data.items()}
    assert len(set(taken.values())) > 1 and [record.steps for record in world.records] == [taken] * ROUNDS
    w = np.zeros(2)
    for number in range(ROUNDS):
        total = np.zeros(2)
        for name, own in data.items():
            local = w.copy()
            for epoch in range(2):
                order = order_of(len(own), seed=5 + number, device=name, epoch=epoch)
                for start in range(0, len(own), 3):
                    x, y = own.features[order[start : start + 3]], own.labels[order[start : start + 3]]
                    local -= RATE * 2 / len(x) * x.T @ (x @ local - y)
            total += len(own) * local
        w = total / 8
    np.testing.assert_allclose(world.coordinator.state.tensors["w"], w, rtol=1e-5, atol=1e-6)


def test_deltas_give_the_weights_that_values_give(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle, method=fedavg(bundle, send_as="delta"))
    world.run()
    assert_exact(world)


def test_what_is_announced_is_published_once_for_all_devices(make_world: MakeWorld, wide: Bundle) -> None:
    world = make_world(wide)
    world.run()
    chunks = Counter((c.sha256, c.index) for c in world.broker.said(BlobChunk))  # type: ignore[union-attr]
    assert set(chunks.values()) == {1}
    tensors = {a.tensors.sha256: a.tensors.size_bytes for a in world.broker.said(protocol.Announcement)}  # type: ignore[union-attr]
    assert len(tensors) == ROUNDS
    for sha256, size_bytes in tensors.items():
        assert size_bytes > protocol.CHUNK_BYTES
        assert sum(1 for blob, _ in chunks if blob == sha256) == 3


def test_small_tensors_need_no_blob_and_no_upload(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    world.run()
    files = {f.sha256 for f in regression.manifest.files()} | {regression.sha256}
    assert {c.sha256 for c in world.broker.said(BlobChunk)} <= files  # type: ignore[union-attr]
    assert world.broker.said(UploadChunk) == []
    assert len(world.broker.said(Offer)) == 3 * ROUNDS


def test_where_the_broker_takes_it_all_travels_in_two_messages(make_world: MakeWorld, wide: Bundle) -> None:
    world = make_world(wide, inline_bytes=protocol.INLINE_BYTES)
    world.run()
    assert_exact(world)
    assert world.broker.said(UploadChunk) == []
    weights = {a.tensors.sha256 for a in world.broker.said(Announcement)}
    assert not any(request.sha256 in weights for request in world.broker.said(BlobRequest))
    assert trained_once_a_round(world)


def test_what_few_of_many_are_asked_for_they_fetch(make_world: MakeWorld, wide: Bundle) -> None:
    """Everybody hears an announcement: weights for one device in three are no part of it."""
    settings = RoundSettings(fraction=0.3, min_devices=3, quorum=1.0, deadline_s=60.0)
    world = make_world(wide, inline_bytes=protocol.INLINE_BYTES, settings=settings)
    world.run()
    said = [m for m in world.broker.published if m.topic == protocol.round_topic(RUN)]
    assert len(said) == ROUNDS
    assert all(len(message.payload) < 2000 for message in said)
    assert world.broker.said(UploadChunk) == []


@pytest.mark.parametrize(
    ("devices", "allowed"), [(3, protocol.INLINE_BYTES), (300, 223696), (9000, protocol.CHUNK_BYTES)]
)
def test_replies_that_nobody_permits_are_together_no_more_than_the_budget(
    make_world: MakeWorld, regression: Bundle, devices: int, allowed: int
) -> None:
    world = make_world(regression, inline_bytes=protocol.INLINE_BYTES)
    world.run(lambda: len(world.coordinator.present) == len(SIZES) and not world.broker.pending)
    names = tuple(f"d{i}" for i in range(devices))
    ask = world.method.ask(world.method.start())
    world.aggregator._announce(Announce(0, 0, "0" * 16, ask, names, 60.0))
    _, announced = world.aggregator._take_actions()
    assert protocol.decode(announced.payload)[0].inline_bytes == allowed


def test_private_tensors_never_travel(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    seen: list[bytes] = []
    for node in world.nodes.values():

        def remember(outcome: Outcome, node: Node = node) -> Outcome:
            assert node.runtime is not None
            seen.append(node.runtime.view("moment").tobytes())
            return outcome

        node.tamper = remember
    world.run()
    wire = b"".join(message.payload for message in world.broker.published)
    assert len(seen) == 3 * ROUNDS and all(any(np.frombuffer(moment, "f4")) for moment in seen)
    assert not any(moment in wire for moment in seen)
    assert world.coordinator.state.tensors["w"].tobytes() not in wire  # the last weights are announced to nobody
    uploads = [protocol.decode(m.payload) for m in world.broker.published if "/up/" in m.topic]
    offered = [protocol.bytes_to_tensors(bytes(body), "it") for message, body in uploads if isinstance(message, Offer)]
    assert offered and all(list(tensors) == ["w"] for tensors in offered)
    assert all(tensors["w"].tobytes() in wire for tensors in offered)


# --- a network that does not --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_third_of_all_messages_is_lost(make_world: MakeWorld, bundle: Bundle, seed: int) -> None:
    """A link that loses so much is cut now and then; connecting again brings back what is retained."""
    world = make_world(bundle, broker=Broker(drop=0.3, seed=seed))
    next_cut_s = [10.0 + i for i in range(4)]

    def finished() -> bool:
        for i, node in enumerate(world.nodes.values()):
            if world.now_s >= next_cut_s[i]:
                next_cut_s[i] += 17.0
                node.reconnect()
        if world.now_s >= next_cut_s[3]:
            next_cut_s[3] += 29.0
            world.broker.forget(AGGREGATOR)
            for pattern in world.aggregator.subscriptions():
                world.broker.subscribe(AGGREGATOR, pattern)
            world.carry_out(world.aggregator.reconnected())
        return all(node.done for node in world.nodes.values())

    world.run(finished)
    assert_exact(world)
    assert trained_once_a_round(world)


def test_every_message_comes_twice(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle, broker=Broker(duplicate=1.0))
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)


@pytest.mark.parametrize("seed", range(5))
def test_messages_overtake_each_other(make_world: MakeWorld, bundle: Bundle, seed: int) -> None:
    world = make_world(bundle, broker=Broker(reorder=True, seed=seed))
    world.run()
    assert_exact(world)


@pytest.mark.parametrize("seed", range(5))
def test_all_at_once(make_world: MakeWorld, bundle: Bundle, seed: int) -> None:
    """Lost, doubled, reordered, devices and the aggregator killed now and then."""
    world = make_world(bundle, broker=Broker(drop=0.1, duplicate=0.2, reorder=True, seed=seed))
    next_kill_s = [7.0]
    kills = [0]

    def finished() -> bool:
        if world.now_s >= next_kill_s[0]:
            next_kill_s[0] += 11.0
            kills[0] += 1
            victims: list[Callable[[], None]] = [node.start for node in world.nodes.values()]
            [*victims, world.restart_aggregator][kills[0] % 4]()
        return all(node.done for node in world.nodes.values())

    world.run(finished)
    assert_exact(world)


# --- many bundles -------------------------------------------------------------------------------------------------


MEMORY = {"pi-1": {"memory_mb": 8000}, "pi-2": {"memory_mb": 500}, "pi-3": {"memory_mb": 500}}


@pytest.fixture
def two_classes(tmp_path: Path) -> list[DeviceClass]:
    """Bundles of two classes that share w, under the name of its group in one of them."""
    return [
        DeviceClass("large", write_regression(tmp_path / "large", name="large"), parse_condition("memory_mb >= 4000")),
        DeviceClass("small", write_regression(tmp_path / "small", name="little", group="w")),
    ]


def classes_run(make_world: MakeWorld, classes: list[DeviceClass], **options: Any) -> World:
    method = options.pop("method", None) or fedavg(classes[0].bundle)
    return make_world(classes[0].bundle, classes=classes, method=method, capabilities=MEMORY, **options)


def bundle_of(node: Node) -> list[str]:
    """The names of the bundles that a device has downloaded."""
    paths = sorted(node.directory.glob("bundles/*/manifest.json"))
    return [parse_manifest(path.read_bytes(), where=str(path)).name for path in paths]


def test_every_device_has_the_bundle_of_its_class_and_all_fuse_what_they_share(
    make_world: MakeWorld, two_classes: list[DeviceClass]
) -> None:
    world = classes_run(make_world, two_classes)
    world.run()
    assert_exact(world)
    assert {name: bundle_of(node) for name, node in world.nodes.items()} == {
        "pi-1": ["large"],
        "pi-2": ["little"],
        "pi-3": ["little"],
    }


def test_a_device_keeps_its_class_whatever_it_states_later(
    make_world: MakeWorld, two_classes: list[DeviceClass]
) -> None:
    """Its private state fits no other bundle. Kills of both sides change nothing about it."""
    world = classes_run(make_world, two_classes)
    world.run(lambda: len(world.rounds) == 1)
    for node in world.nodes.values():
        node.capabilities["memory_mb"] = 8500 - int(node.capabilities["memory_mb"])
        node.start()
    world.run(lambda: len(world.rounds) == 2)
    world.restart_aggregator()
    world.run()
    assert_exact(world)
    assert bundle_of(world.nodes["pi-1"]) == ["large"] and bundle_of(world.nodes["pi-2"]) == ["little"]
    assert world.store.classes() == {"pi-1": "large", "pi-2": "small", "pi-3": "small"}


@pytest.mark.parametrize("seed", range(3))
def test_many_bundles_on_a_bad_network(make_world: MakeWorld, two_classes: list[DeviceClass], seed: int) -> None:
    world = classes_run(make_world, two_classes, broker=Broker(drop=0.3, duplicate=0.2, reorder=True, seed=seed))
    world.run(lambda: world.coordinator.finished)
    assert_exact(world)


def test_a_device_without_a_bundle_is_told_and_the_run_goes_on(
    make_world: MakeWorld, two_classes: list[DeviceClass]
) -> None:
    settings = RoundSettings(min_devices=1, quorum=1.0, deadline_s=60.0)
    world = classes_run(make_world, two_classes[:1], settings=settings)
    world.run(lambda: world.nodes["pi-1"].done)
    assert [devices for _, devices in world.rounds] == [("pi-1",)] * ROUNDS
    text = "no [[bundle]] of the run file is for memory_mb 500, cores 0"
    assert {device for device, said in world.events("no bundle") if text in said} == {"pi-2", "pi-3"}
    assert any(f"waiting: {text}" in line for line in world.nodes["pi-2"].log)
    assert world.store.classes() == {"pi-1": "large"}


def test_the_settings_of_a_class_count_more_than_a_tasks(make_world: MakeWorld, two_classes: list[DeviceClass]) -> None:
    """A class that trains at rate 0 leaves the weights as they were."""
    still = [replace(one, settings={"learning_rate": 0.0}) for one in two_classes]
    world = classes_run(make_world, still)
    world.run()
    assert world.coordinator.state.tensors["w"].tolist() == [0, 0]


def test_an_assignment_that_is_lost_is_asked_for_again(make_world: MakeWorld, regression: Bundle) -> None:
    lost: list[str] = []

    def is_lost(client: str, topic: str) -> bool:
        if topic == protocol.down_topic(RUN, "pi-2") and not lost:
            lost.append(topic)
            return True
        return False

    world = make_world(regression, broker=Broker(lost=is_lost))
    world.run()
    assert_exact(world)
    said = [p for p in world.broker.said(Presence) if p.device == "pi-2"]
    assert len(lost) == 1 and len(said) == 3  # the last asks whether the run is finished


# --- a process that is killed -------------------------------------------------------------------------------------


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


# --- a device that misbehaves -------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Outcome], Outcome], str]] = {
    "NaN": (
        lambda o: with_tensors(o, w=o.tensors["w"] * np.float32(np.nan)),
        "sent 'w' with a value that is not finite",
    ),
    "wrong shape": (
        lambda o: with_tensors(o, w=o.tensors["w"][:-1]),
        "sent 'w' as float32",
    ),
    "wrong dtype": (
        lambda o: with_tensors(o, w=o.tensors["w"].astype("f2")),
        "sent 'w' as float16",
    ),
    "a tensor too many": (
        lambda o: with_tensors(o, b=np.zeros(1, "f4")),
        "sent 'b', which was not asked for",
    ),
    "no tensor": (
        lambda o: replace(o, tensors={}),
        "did not send 'w'",
    ),
    "too large": (
        lambda o: with_tensors(o, w=np.zeros(1_000_000, "f4")),
        "an upload of 40000",
    ),
    "no examples": (
        lambda o: replace(o, examples=0, steps=0),
        "weight rule 'examples' gives 0.0; expected above 0",
    ),
    "too many steps": (
        lambda o: replace(o, steps=o.steps + 1),
        "2 steps of the optimizer; with 2 examples the tasks have at most 1",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_refused_by_name_and_the_round_goes_on(make_world: MakeWorld, bundle: Bundle, kind: str) -> None:
    change, says = BAD[kind]
    # Two of three are a quorum, so rounds need not wait for the bad one.
    world = make_world(bundle, settings=RoundSettings(min_devices=3, quorum=0.5, deadline_s=60.0))
    world.nodes["pi-3"].tamper = change
    world.run()
    assert all(devices == ("pi-1", "pi-2") for _, devices in world.rounds) and len(world.rounds) == ROUNDS
    failures = world.events("failed")
    assert len(failures) == ROUNDS
    assert all(device == "pi-3" and says in text for device, text in failures)
    refused = [r for r in world.broker.said(Receipt) if r.status == "refused"]  # type: ignore[union-attr]
    assert refused and all(says in r.reason for r in refused)  # type: ignore[union-attr]
    # Without pi-3 it is gradient descent on the six examples of the others: n_k / 6, not n_k / 8.
    data = make_data(bundle.manifest.tensor("w").shape[0])
    expected = gradient_descent({name: data[name] for name in ("pi-1", "pi-2")})
    np.testing.assert_allclose(world.coordinator.state.tensors["w"], expected, rtol=1e-6, atol=1e-7)
    assert world.now_s < 60  # no deadline was needed


def test_a_claimed_size_is_checked_before_anything_is_kept(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    world.run(lambda: world.coordinator.deadline_s is not None)
    announcement = world.broker.said(protocol.Announcement)[0]
    offer = Offer("pi-1", 0, announcement.nonce, "a" * 64, 2**31, 2**20, 5, {})  # type: ignore[union-attr]
    (answer,) = world.receive(protocol.up_topic(RUN, "pi-1"), protocol.encode(offer), world.now_s)
    receipt, _ = protocol.decode(answer.payload)
    assert isinstance(receipt, Receipt)
    assert receipt.status == "refused"
    assert "an upload of 2147483648 bytes; the asked tensors have at most" in receipt.reason


def test_noise_is_noted_and_changes_nothing(make_world: MakeWorld, regression: Bundle) -> None:
    world = make_world(regression)
    world.run(lambda: world.coordinator.present == set(SIZES))
    up = protocol.up_topic(RUN, "pi-1")
    somebody = Presence("pi-2", 9, "down")
    for topic, payload in [
        (up, b"hello aggregator"),
        (up, b"efl\x02" + bytes(20)),
        (up, protocol.encode(somebody)),  # names another device than its topic
        (up, protocol.encode(AggregatorStatus(99, "finished"))),
        (up, protocol.encode(UploadChunk("a" * 64, 0), b"x")),
        ("edgefl/9/toy/up/0/pi-1", protocol.encode(somebody)),
    ]:
        assert world.receive(topic, payload, 0.0) == []
    says = [text for _, text in world.events("protocol error")]
    assert [text.split(": ", 1)[1][:30] for text in says] == [
        "not an edgefl frame: it begins",
        "a frame of protocol version 2;",
        "a message that names another d",
        "device 'pi-1' sent a Aggregato",
        "a message on the foreign topic",
    ]
    for node in world.nodes.values():
        assert node.session.receive(protocol.round_topic(RUN), b"hello", 0.0) == []
    world.run()
    assert_exact(world)


def test_an_announcement_that_was_overtaken_is_ignored(make_world: MakeWorld, regression: Bundle) -> None:
    """Round 0 is said again when round 1 is open: the device goes on with round 1, and offers its reply to it."""
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1 and not world.broker.pending)
    first, second = [m for m in world.broker.published if m.topic == protocol.round_topic(RUN)]
    for node in world.nodes.values():
        assert node.busy
        assert node.session.receive(first.topic, first.payload, world.now_s) == []
        assert node.session.receive(second.topic, second.payload, world.now_s) == []  # nor is twice more than once
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)


def test_requests_that_come_together_are_answered_by_one_publication(make_world: MakeWorld, wide: Bundle) -> None:
    world = make_world(wide)
    world.run(lambda: world.coordinator.present == set(SIZES))
    world.restart_aggregator()
    assert not world.coordinator.present
    now_s = world.now_s
    program = wide.manifest.program("train").file
    request = protocol.encode(protocol.BlobRequest(program.sha256, []))
    for name in SIZES:
        sent = world.receive(protocol.up_topic(RUN, name), request, now_s)
        assert not [message for message in sent if "/blob/" in message.topic]
    # Who speaks is there, even if its presence was lost on the way.
    assert world.coordinator.present == set(SIZES)
    assert world.tick(now_s + 0.001) == []
    assert world.aggregator.wake_s(now_s + 0.001) == now_s + 0.005
    (answer,) = world.tick(now_s + 0.006)
    message, body = protocol.decode(answer.payload)
    assert answer.topic == protocol.blob_topic(RUN, program.sha256)
    assert message == BlobChunk(program.sha256, program.size_bytes, protocol.CHUNK_BYTES, 0)
    assert bytes(body) == wide.bytes_of(program)
    assert world.tick(1.012) == []


def test_an_announcement_of_an_older_aggregator_is_ignored(make_world: MakeWorld, regression: Bundle) -> None:
    """Epoch 1 was replaced by epoch 2; what it still says comes late."""
    world = make_world(regression)
    world.run(lambda: bool(world.broker.said(protocol.Announcement)))
    old = [m for m in world.broker.published if m.topic == protocol.round_topic(RUN)]
    world.restart_aggregator()
    world.run(lambda: len(world.rounds) == 2)
    for node in world.nodes.values():
        jobs = len(node.jobs)
        assert node.session.receive(old[0].topic, old[0].payload, world.now_s) == []
        assert len(node.jobs) == jobs
    world.run()
    assert_exact(world)


# --- presence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("twin", "stays"), [("a second pi-1", "the first"), ("the other pi-1", "the second")])
def test_two_devices_with_one_name_are_a_conflict_for_one_of_them(
    make_world: MakeWorld, regression: Bundle, twin: str, stays: str
) -> None:
    """The broker knows a client by its name: the second throws the first out, which connects again, and so on."""
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1)
    first = world.nodes["pi-1"]
    world.broker.forget("pi-1")
    world.broker.publish(first.will)
    second = world.nodes["twin"] = Node(world, "pi-1", make_data(2)["pi-1"], client=twin, directory="elsewhere")
    world.run(lambda: not world.broker.pending)
    first.reconnect()
    world.run()
    assert (first.conflict, second.conflict) == (stays == "the second", stays == "the first")
    assert_exact(world)


def test_a_restarted_device_is_no_conflict_with_its_own_retained_presence(
    make_world: MakeWorld, regression: Bundle
) -> None:
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1)
    for node in world.nodes.values():
        node.start()
    world.run()
    assert not any(node.conflict for node in world.nodes.values())
    assert_exact(world)


@pytest.mark.parametrize("replaced_by", ["reconnect", "start"])
def test_a_late_will_of_an_older_connection_is_ignored(
    make_world: MakeWorld, regression: Bundle, replaced_by: str
) -> None:
    world = make_world(regression)
    world.run(lambda: len(world.rounds) == 1)
    device = world.nodes["pi-1"]
    old = device.will
    getattr(device, replaced_by)()
    world.run(lambda: not world.broker.pending)
    assert world.receive(old.topic, old.payload, world.now_s) == []
    assert "pi-1" in world.coordinator.present
    assert world.receive(device.will.topic, device.will.payload, world.now_s) == []
    assert "pi-1" not in world.coordinator.present
    device.reconnect()
    world.run()
    assert_exact(world)


def test_a_device_that_sleeps_in_the_middle_of_a_round_and_comes_back(make_world: MakeWorld, bundle: Bundle) -> None:
    world = make_world(bundle)
    device = world.nodes["pi-2"]
    world.run(lambda: bool(device.jobs))
    world.broker.forget("pi-2")
    world.broker.pending = [p for p in world.broker.pending if p[1] != protocol.up_topic(RUN, "pi-2")]
    world.broker.publish(device.session.leave())
    del world.nodes["pi-2"]
    world.run(lambda: world.now_s > 200, within_s=300)  # quorum is everybody: the round is asked again, and waits
    assert world.rounds == []
    assert world.events("asked again")
    world.nodes["pi-2"] = device
    device.start()
    world.run()
    assert_exact(world)
    assert trained_once_a_round(world)
