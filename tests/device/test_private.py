"""What a device keeps for itself from ask to ask: what must be kept, and what its runtime still holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefl.bundle import Bundle
from edgefl.errors import NotFinite
from edgefl.method import Keep, Task
from edgefl.random_numbers import order_of
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Answer, answer, perform
from edgefl_device.work.kept import Buffers
from edgefl_device.work.private import Private
from edgefl_device.work.stopping import Stop, Stopped

OWN = Dataset(np.eye(2, dtype=np.float32), np.array([1, 2], np.float32))
LOOK = Task("evaluate", send=("predicted",))
TRAIN = Task("train", settings={"learning_rate": 0.5})
MINE = Private({"w": np.array([1, 2], np.float32), "moment": np.zeros(2, np.float32), "count": np.array(3)})


class Counting(Runtime):
    """A runtime that notes what is loaded into it."""

    def __init__(self, bundle: Bundle) -> None:
        self.loads: list[list[str]] = []
        super().__init__(bundle)

    def load(self, tensors: Any) -> None:
        if tensors:
            self.loads.append(sorted(tensors))
        super().load(tensors)


@pytest.fixture
def runtime(regression: Bundle) -> Counting:
    return Counting(regression)


def ask(runtime: Runtime, task: Task, private: Private, announced: Any = None) -> Answer:
    return answer(runtime, [task], announced or {}, {"train": OWN}, private, device="pi-1")


def predicted(done: Answer) -> list[float]:
    """With the unit vectors as examples, the weights."""
    return done.outcome.tensors["predicted"].tolist()  # type: ignore[no-any-return]


def test_an_ask_that_changes_nothing_has_nothing_to_keep(runtime: Counting) -> None:
    first = ask(runtime, LOOK, Private())
    assert not first.changed and not first.private.tensors
    trained = ask(runtime, TRAIN, first.private)
    assert trained.changed and trained.private.tensors["w"].tolist() == [0.5, 1]
    looked = ask(runtime, LOOK, trained.private)
    assert not looked.changed and looked.private.tensors is trained.private.tensors
    assert predicted(looked) == [0.5, 1]
    # What is announced takes the place of what the device had: that is a change.
    loaded = ask(runtime, Task("evaluate", load=("w",)), trained.private, {"w": np.array([7, 7], np.float32)})
    assert loaded.changed and sorted(loaded.private.tensors) == ["count", "moment"]
    # An earlier state counts, whatever the runtime holds: its last ask is done again.
    assert predicted(ask(runtime, LOOK, trained.private)) == [0.5, 1]
    assert predicted(ask(runtime, LOOK, first.private)) == [0, 0]


def test_a_version_grows_with_every_change_of_the_state(regression: Bundle) -> None:
    runtime = Runtime(regression)
    seen = [runtime.version]
    batch = {"x": OWN.features, "y": OWN.labels}
    settings = {"learning_rate": np.array(0.5, "f4"), "momentum": np.array(0, "f4")}
    runtime.step("evaluate", batch)
    runtime.load({})
    assert runtime.version == seen[-1]
    for change in (
        lambda: runtime.load({"w": np.ones(2, np.float32)}),
        lambda: runtime.reset(["moment"]),
        lambda: runtime.step("train", batch | settings),
    ):
        change()
        seen.append(runtime.version)
    assert seen == sorted(set(seen))


def test_state_that_the_runtime_still_holds_is_not_loaded_again(runtime: Counting) -> None:
    now = MINE
    for _ in range(3):
        done = ask(runtime, LOOK, now)
        assert predicted(done) == [1, 2]
        now = done.private
    assert runtime.loads == [["count", "moment", "w"]]


def test_what_training_left_is_not_loaded_again(runtime: Counting) -> None:
    trained = ask(runtime, TRAIN, Private())
    runtime.loads.clear()
    again = ask(runtime, TRAIN, trained.private)
    assert again.private.tensors["count"] == 2
    assert runtime.loads == []


def test_state_that_was_changed_behind_its_back_is_loaded_again(runtime: Counting) -> None:
    held = ask(runtime, LOOK, MINE).private
    theirs = {"w": np.array([5, 5], np.float32)}
    perform(runtime, [Task("evaluate", load=("w",))], theirs, {"train": OWN}, device="x")
    assert predicted(ask(runtime, LOOK, held)) == [1, 2]
    ask(runtime, TRAIN, held)  # which moves the weights, and whose reply never counted
    assert predicted(ask(runtime, LOOK, held)) == [1, 2]


def test_another_runtime_never_holds_it(runtime: Counting, regression: Bundle) -> None:
    """Also one that was made and used in the same way, on a device that is given its bundle a second time."""
    trained = ask(runtime, TRAIN, Private()).private
    other = Counting(regression)
    ask(other, Task("train", settings={"learning_rate": 0.25}), Private())
    assert predicted(ask(other, LOOK, trained)) == [0.5, 1]


def test_what_a_later_task_loads_is_the_bundles_until_then(runtime: Counting) -> None:
    """The first task reads `w` before the second loads it: nobody's, so the bundle's, in this ask as in the next."""
    shared = {"w": np.array([7, 7], np.float32)}
    tasks = [LOOK, Task("evaluate", load=("w",))]
    for _ in range(2):
        done = answer(runtime, tasks, shared, {"train": OWN}, Private(), device="pi-1")
        assert predicted(done) == [0, 0]
    assert predicted(ask(runtime, LOOK, MINE)) == [1, 2]


def test_after_an_ask_that_failed_the_private_state_is_what_it_was(runtime: Counting) -> None:
    """What it left in the runtime counts for nothing: the next ask, like this one again, begins where it did."""
    trained = ask(runtime, TRAIN, Private()).private
    with pytest.raises(NotFinite):
        ask(runtime, Task("train", epochs=300, settings={"learning_rate": 1e6}), trained)
    assert predicted(ask(runtime, LOOK, trained)) == [0.5, 1]


def test_what_else_an_ask_comes_with_counts_as_in_any(runtime: Counting, tmp_path: Path) -> None:
    """The device's own settings, its name in the shuffle, its buffers, and who watches and stops it."""
    seen: list[Any] = []
    beside: dict[str, Any] = {"own": {"learning_rate": 0.25}, "progress": lambda *at: seen.append(at)}
    done = answer(runtime, [TRAIN], {}, {"train": OWN}, Private(), device="pi-1", **beside)
    assert done.private.tensors["w"].tolist() == [0.25, 0.5] and [at[:3] for at in seen] == [("train", 1, 1)]

    examples = Dataset(np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10, dtype=np.float32))
    shuffled = Task("evaluate", seed=3, load=("w",), send=("predicted",))
    shown = answer(runtime, [shuffled], {"w": np.array([0.5, 0], "f4")}, {"train": examples}, Private(), device="pi-2")
    assert predicted(shown) == order_of(10, seed=3, device="pi-2", epoch=0).tolist()

    keep = Task("evaluate", feed="announced", keep=Keep("dreams", 2))
    dreams = {"x": OWN.features, "y": OWN.labels}
    answer(runtime, [keep], dreams, {}, Private(), device="pi-1", buffers=Buffers(tmp_path, round=0))
    assert (tmp_path / "dreams/0.safetensors").exists()

    stop = Stop()
    stop.request()
    with pytest.raises(Stopped):
        answer(runtime, [TRAIN], {}, {"train": OWN}, Private(), device="pi-1", stop=stop)
