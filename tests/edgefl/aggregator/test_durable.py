"""Rounds that need not be durable: what is on disk when, and that an interrupted run comes to the same end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dreaming import Dreaming
from memory import RUN, Node, World
from records import record

from edgefl.aggregator.checks import check_ask
from edgefl.aggregator.coordinator import Coordinator
from edgefl.aggregator.rounds import Announce, RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.method import Ask, Reply, State, Task
from edgefl_device.data.dataset import Dataset
from edgefl_device.work.journal import Journal

ROUNDS = 12  # two epochs of one round that is durable and five that are not


def make_data() -> dict[str, Dataset]:
    rng = np.random.default_rng(5)
    return {
        name: Dataset(rng.integers(-1, 2, (2, 2)).astype(np.float32), rng.integers(-2, 3, 2).astype(np.float32))
        for name in ("pi-1", "pi-2", "pi-3")
    }


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Any]:
    made: list[World] = []

    def make(bundle: Bundle, method: Dreaming, **options: Any) -> World:
        made.append(World(tmp_path / str(len(made)), bundle, method, make_data(), **options))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


def end_of(world: World) -> dict[str, bytes]:
    """The examples of the run and the weights of each device."""
    assert world.coordinator.finished
    stored = world.store.load_state()
    assert stored is not None and stored.round == ROUNDS
    end = {"x": stored.tensors["x"].tobytes()}
    for name, node in world.nodes.items():
        kept = Journal(node.directory, RUN).read()
        assert kept is not None
        assert kept.private["count"] == 4  # learned twice in each epoch, and never once more
        end[name] = kept.private["w"].tobytes()
    return end


# Who says what is durable


def test_the_state_before_a_durable_ask_and_the_last_are_durable(regression: Bundle, worlds: Any) -> None:
    world = worlds(regression, Dreaming())
    durable: set[int] = set()

    def on_disk() -> bool:
        state = world.store.load_state()
        durable.update({state.round} if state is not None else {})
        return world.coordinator.finished

    world.run(on_disk)
    world.run()
    assert durable == {1, 6, 7, 12}
    assert len({end for end in end_of(world).values()}) == 4
    assert [record.round for record in world.store.records()] == list(range(1, ROUNDS + 1))


def test_a_stop_among_small_steps_leaves_the_last_durable_state() -> None:
    """A resume may begin only where a durable ask does: what devices keep of changes would not fit."""
    coordinator = Coordinator(Dreaming(), State(2, Dreaming().start().tensors), RoundSettings(), secret="s")
    actions = coordinator.begin(0.0) + coordinator.joined("pi-1", 0.0)
    announce = next(a for a in actions if isinstance(a, Announce))
    reply = Reply("pi-1", 2, 0, {"predicted": np.zeros(4, np.float32)}, {"evaluate.loss": 0.5})
    coordinator.stopping = True
    _, actions = coordinator.replied(reply, announce.nonce, 1.0)
    [done] = [a for a in actions if isinstance(a, RoundDone)]
    assert not done.durable
    assert done.fused.measured == {"pi-1": {"evaluate.loss": 0.5}}


def test_what_is_not_on_disk_is_asked_with_a_nonce_of_this_start_alone() -> None:
    def nonces(epoch: int) -> list[str]:
        coordinator = Coordinator(Dreaming(), Dreaming().start(), RoundSettings(), secret="s", epoch=epoch)
        actions = coordinator.joined("pi-1", 0.0)
        found = []
        while announce := next((a for a in actions if isinstance(a, Announce)), None):
            found.append(announce.nonce)
            tensors = {"predicted": np.zeros(4, np.float32)} if announce.round % 6 else {}
            coordinator.replied(Reply("pi-1", announce.round, 2, tensors, {}), announce.nonce, 1.0)
            actions = coordinator.begin(1.0)
        return found

    same = [a == b for a, b in zip(nonces(1), nonces(2), strict=True)]
    assert same == [True, True, False, False, False, False] * 2


def test_an_ask_that_changes_what_devices_keep_must_be_durable(regression: Bundle) -> None:
    ask = Ask((Task("train", load=("w",)),), {"w": np.zeros(2, np.float32)}, durable=False)
    with pytest.raises(ConfigError, match="changes 'moment', which a device keeps, in an ask that is not durable"):
        check_ask(ask, regression.manifest)
    reset = Ask((Task("evaluate", reset=("count",)),), {}, durable=False)
    with pytest.raises(ConfigError, match="changes 'count'"):
        check_ask(reset, regression.manifest)
    check_ask(Ask((Task("evaluate", load=("w",)),), {"w": np.zeros(2, np.float32)}, durable=False), regression.manifest)


# On disk


def test_records_after_the_last_durable_round_are_dropped(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", "")
    tensors = {"x": np.ones(2, np.float32)}
    store.save_round(State(1, tensors), record(1))
    store.save_round(State(2, tensors), record(2, durable=False))
    store.save_round(State(3, tensors), record(3))
    store.save_round(State(4, tensors), record(4, durable=False))
    announced = Announce(4, 0, "n", Ask((), {}), ("pi-1",), 60.0, durable=False)
    store.save_open_round(announced)
    assert [r.round for r in store.records()] == [1, 2, 3, 4]
    assert store.open_round() is None
    store.close()
    again = Store.open(tmp_path / "run")
    state = again.load_state()
    assert state is not None and state.round == 3
    assert [r.round for r in again.records()] == [1, 2, 3]
    again.close()


def test_a_run_that_was_never_durable_begins_anew(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", "")
    store.save_round(State(1, {}), record(1, durable=False))
    store.close()
    again = Store.open(tmp_path / "run")
    assert again.load_state() is None
    assert again.records() == []
    again.close()


def test_a_power_cut_may_lose_records_of_rounds_that_were_not_durable(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", "")
    store.save_round(State(1, {}), record(1))
    store.save_round(State(4, {}), record(4))
    store.close()
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    again = Store.open(tmp_path / "run")
    assert [r.round for r in again.records()] == [1, 4]
    again.close()


# Interrupted


@pytest.mark.parametrize("told", ["examples", "changes"])
@pytest.mark.parametrize("killed_in", range(ROUNDS))
def test_an_aggregator_killed_in_any_round_comes_to_the_same_end(
    regression: Bundle, worlds: Any, told: str, killed_in: int
) -> None:
    unbroken = worlds(regression, Dreaming(told=told))
    unbroken.run()
    world = worlds(regression, Dreaming(told=told))
    world.run(lambda: world.coordinator.state.round == killed_in and world.coordinator.replies[0] == 2)
    world.restart_aggregator()
    back = world.coordinator.state.round
    assert back == max(r for r in (0, 1, 6, 7) if r <= killed_in)
    world.run()
    assert end_of(world) == end_of(unbroken)
    assert world.now_s < 5  # nobody waited for a deadline
    assert [record.round for record in world.store.records()] == list(range(1, ROUNDS + 1))


@pytest.mark.parametrize("told", ["examples", "changes"])
def test_devices_and_aggregator_are_killed_together(regression: Bundle, worlds: Any, told: str) -> None:
    unbroken = worlds(regression, Dreaming(told=told))
    unbroken.run()
    world = worlds(regression, Dreaming(told=told))
    for killed_in in (4, 6, 9):
        world.run(lambda at=killed_in: world.coordinator.state.round == at and world.coordinator.replies[0] == 1)
        nodes: list[Node] = list(world.nodes.values())
        for node in nodes:
            node.start()
        world.restart_aggregator()
    world.run()
    assert end_of(world) == end_of(unbroken)
