"""Tasks, carried out: what is loaded, in which order batches come, what is sent and reported, what is refused."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from toy import write_regression

from edgefl.aggregator.checks import most_steps, trained_by
from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract, Feature, Normalisation
from edgefl.errors import DataError, EdgeflError, InputError
from edgefl.manifest import FORMAT, File, Input, Manifest, Parity, Program
from edgefl.method import Ask, Task
from edgefl.random_numbers import order_of, seed_of
from edgefl_device.data.batches import batches
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Outcome, perform
from edgefl_device.work.plan import check_own_settings, plan
from edgefl_device.work.stopping import Stop, Stopped

TWO = Dataset(np.eye(2, dtype=np.float32), np.array([1, 2], np.float32))
# Three examples, one of them alone in the last batch of two.
THREE = Dataset(np.array([[1, 0], [0, 1], [1, 1]], np.float32), np.array([1, 2, 5], np.float32))
LR = {"learning_rate": 0.5}


def run(runtime: Runtime, *tasks: Task, announced: Any = None, data: Dataset = TWO, **options: Any) -> Outcome:
    return perform(runtime, tasks, announced or {}, {"train": data, "test": data}, device="pi-1", **options)


@pytest.fixture
def runtime(regression: Bundle) -> Runtime:
    return Runtime(regression)


def test_fedavg_by_hand(runtime: Runtime) -> None:
    announced = {"w": np.array([1, 0], np.float32)}
    task = Task(program="train", load=("*",), batch_size=0, settings=LR, send=("*",))
    outcome = run(runtime, task, announced=announced)
    # err = [0, -2]; loss = 2; gradient = [0, -2]; w = [1, 0] - 0.5 [0, -2] = [1, 1]
    assert outcome.examples == 2
    assert outcome.metrics == {"train.loss": 2.0, "train.total": 4.0, "train.examples": 2.0}
    # "*" reaches the shared state and the gradient, an array; never the local moment and count.
    assert sorted(outcome.tensors) == ["gradient", "w"]
    np.testing.assert_array_equal(outcome.tensors["w"], [1, 1])
    np.testing.assert_array_equal(announced["w"], [1, 0])


def test_a_delta_is_to_what_was_loaded(runtime: Runtime) -> None:
    task = Task(program="train", load=("w",), batch_size=0, settings=LR, send=("w",), send_as="delta")
    outcome = run(runtime, task, announced={"w": np.array([1, 0], np.float32)})
    np.testing.assert_array_equal(outcome.tensors["w"], [0, 1])


def test_what_is_sent_is_a_copy(runtime: Runtime) -> None:
    task = Task(program="train", batch_size=0, settings=LR, send=("w",))
    sent = run(runtime, task).tensors["w"]
    run(runtime, task)
    np.testing.assert_array_equal(sent, [0.5, 1])


def test_the_short_last_batch_counts_for_what_it_holds(runtime: Runtime) -> None:
    task = Task(program="evaluate", batch_size=2, send=("predicted",))
    outcome = run(runtime, task, data=THREE)
    # w = 0, so the squares are 1, 4, 25: the mean over examples is 10, the mean of batch means would be 13.75
    assert outcome.metrics == {"evaluate.loss": 10.0, "evaluate.examples": 3.0}
    np.testing.assert_array_equal(outcome.tensors["predicted"], [0, 0, 0])


def test_metrics_are_of_the_last_epoch(runtime: Runtime) -> None:
    outcome = run(runtime, Task(program="train", epochs=2, batch_size=0, settings=LR))
    # the first epoch's loss is 2.5; then w = [0.5, 1], err = [-0.5, -1], loss = 0.625
    assert outcome.metrics["train.loss"] == 0.625
    assert outcome.metrics["train.total"] == 1.25
    assert outcome.metrics["train.examples"] == 2


@pytest.mark.parametrize(
    ("task", "examples", "steps"),
    [
        (Task(program="train", epochs=3, batch_size=2, settings=LR), 3, 6),
        (Task(program="train", steps=1, batch_size=2, settings=LR), 2, 1),
        (Task(program="train", steps=5, batch_size=2, settings=LR), 3, 5),
        (Task(program="train", epochs=0, settings=LR), 0, 0),
        (Task(program="train", feed="test", settings=LR), 0, 1),
    ],
)
def test_examples_and_steps(runtime: Runtime, task: Task, examples: int, steps: int) -> None:
    seen: list[tuple[str, int, int, float | None]] = []
    outcome = run(runtime, task, data=THREE, progress=lambda *at: seen.append(at))
    assert outcome.examples == examples
    assert [at[:3] for at in seen] == [("train", i + 1, steps) for i in range(steps)]
    assert all(loss is not None and loss > 0 for *_, loss in seen)
    assert runtime.state()["count"] == steps


@pytest.mark.parametrize(
    ("tasks", "steps"),
    [
        ([Task(program="train", epochs=3, batch_size=2, settings=LR, send=("w",))], 6),
        ([Task(program="train", steps=5, batch_size=2, settings=LR, send=("*",))], 5),
        ([Task(program="train", batch_size=0, settings=LR, send=("w",), send_as="delta")], 1),
        ([Task(program="train", settings=LR)], 0),  # nothing of it is sent
        ([Task(program="train", settings=LR, send=("gradient",))], 0),  # an output, no state
        ([Task(program="train", feed="test", settings=LR, send=("w",))], 0),
        ([Task(program="train", batch_size=1, settings=LR), Task(program="train", settings=LR, send=("w",))], 1),
        ([Task(program="evaluate", feed="test")], 0),
    ],
)
def test_steps_are_those_of_the_tasks_whose_state_is_sent(runtime: Runtime, tasks: list[Task], steps: int) -> None:
    outcome = run(runtime, *tasks, data=THREE)
    assert outcome.steps == steps
    manifest = runtime.manifest
    assert most_steps(trained_by(Ask(tuple(tasks), {}), manifest), len(THREE)) == steps


def test_steps_of_tasks_add_up(runtime: Runtime) -> None:
    """Two in batches of two, three in batches of one: only the sending differs, and each tensor is sent once."""
    tasks = [
        Task(program="train", batch_size=2, settings=LR, send=("w",)),
        Task(program="train", batch_size=1, settings=LR, send=("count",)),
    ]
    plans = [plan(i, t, shared(runtime), {}, {"train": THREE, "test": THREE}, {}) for i, t in enumerate(tasks, 1)]
    assert [one.steps for one in plans] == [2, 3]


def shared(runtime: Runtime) -> Manifest:
    """The manifest, with every tensor of the state shared."""
    state = tuple(replace(tensor, fuse="mean") for tensor in runtime.manifest.state)
    return replace(runtime.manifest, state=state)


def test_reset_and_what_stays(runtime: Runtime) -> None:
    train = Task(program="train", batch_size=0, settings=LR | {"momentum": 0.9})
    run(runtime, train)
    np.testing.assert_array_equal(runtime.state()["moment"], [-1, -2])  # private state stays between asks
    run(
        runtime,
        Task(program="train", reset=("mom*",), load=("w",), batch_size=0, settings=LR | {"momentum": 0.9}),
        announced={"w": np.zeros(2, np.float32)},
    )
    np.testing.assert_array_equal(runtime.state()["moment"], [-1, -2])


def test_what_is_shared_travels_under_the_name_of_its_fusion_group(tmp_path: Path) -> None:
    runtime = Runtime(write_regression(tmp_path / "b", group="head"))
    announced = {"head": np.array([1, 0], np.float32), "other": np.zeros(3, np.float32)}  # other: of another bundle
    for send_as, sent in (("value", [1, 1]), ("delta", [0, 1])):
        task = Task(program="train", load=("*",), batch_size=0, settings=LR, send=("h*",), send_as=send_as)
        outcome = run(runtime, task, announced=announced)
        assert list(outcome.tensors) == ["head"]
        np.testing.assert_array_equal(outcome.tensors["head"], sent)
        np.testing.assert_array_equal(runtime.view("w"), [1, 1])
    for task, why in (
        (Task(program="train", load=("w",), settings=LR), "load 'w' matches no tensor"),
        (Task(program="train", load=("other",), settings=LR), "announced 'other' is no state tensor"),
        (Task(program="train", settings=LR, send=("w",)), "send 'w' matches no tensor"),
    ):
        with pytest.raises(InputError, match=why):
            run(runtime, task, announced=announced)


def test_a_devices_own_settings_count_more_than_a_tasks(runtime: Runtime) -> None:
    train = Task(program="train", batch_size=0, settings=LR, send=("w",))
    evaluate = Task(program="evaluate")  # has no such setting
    assert run(runtime, train, evaluate, own={"learning_rate": 0.25}).tensors["w"].tolist() == [0.25, 0.5]
    check_own_settings({"momentum": 0.5}, runtime.manifest)
    with pytest.raises(
        InputError, match="this device sets 'max_steps', but no program of bundle 'regression'"
    ) as error:
        check_own_settings({"max_steps": 4}, runtime.manifest)
    assert error.value.hint == "there is: learning_rate, momentum"


def test_a_reset_pattern_may_find_nothing(runtime: Runtime) -> None:
    """FedAvg resets "optimizer.*" also where the bundle's SGD has none."""
    run(runtime, Task(program="train", reset=("optimizer.*",), settings=LR))


def test_tasks_in_order(runtime: Runtime) -> None:
    train = Task(program="train", batch_size=0, settings=LR, send=("w",))
    outcome = run(runtime, train, Task(program="evaluate", feed="test", batch_size=0))
    assert outcome.metrics["train.loss"] == 2.5
    assert outcome.metrics["evaluate.loss"] == 0.625


# Announced data


def test_announced_examples(runtime: Runtime) -> None:
    x, y = np.array([[3, 0]], np.float32), np.array([1], np.float32)
    task = Task(program="evaluate", feed="announced", load=("*",), send=("predicted",))
    outcome = run(runtime, task, announced={"x": x, "y": y, "w": np.array([2, 0], np.float32)})
    np.testing.assert_array_equal(outcome.tensors["predicted"], [6])
    assert outcome.metrics["evaluate.loss"] == 25
    assert outcome.examples == 0  # none of them are the device's own


def test_announced_examples_must_fit(runtime: Runtime) -> None:
    task = Task(program="evaluate", feed="announced")
    with pytest.raises(InputError, match="needs the tensor 'x', which was not announced"):
        run(runtime, task)
    with pytest.raises(InputError, match="needs the tensor 'y'"):
        run(runtime, task, announced={"x": np.zeros((1, 2), np.float32)})
    with pytest.raises(DataError, match=r"announced data: an example has shape \[3\]; expected \[2\]"):
        run(runtime, task, announced={"x": np.zeros((1, 3), np.float32), "y": np.zeros(1, np.float32)})
    with pytest.raises(DataError, match="example 0 has a feature that is nan"):
        run(runtime, task, announced={"x": np.full((1, 2), np.nan, np.float32), "y": np.zeros(1, np.float32)})


def test_announced_pixels_are_normalised_and_floats_are_not() -> None:
    """Dreams arrive in the program's input space; as uint8 they are pixels like the device's own."""
    x = Input(name="x", dtype="float32", shape=("batch", 1), source="features")
    soft = Input(name="y", dtype="float32", shape=("batch", 3), source="labels")
    contract = DataContract((Feature((1,), "float32", normalisation=Normalisation((0.5,), (0.25,))),), classes=3)
    nothing = File(path="p", sha256="", size_bytes=0)
    program = Program(nothing, (x, soft), (), (), {}, Parity("by hand", 0.0, {}), nothing)
    manifest = Manifest(FORMAT, "dreams", "codream", "hand", contract, (), {"learn": program}, nothing)
    probabilities = np.array([[0.5, 0.25, 0.25]], np.float32)

    def fed(features: np.ndarray) -> list[Any]:
        task = Task(program="learn", feed="announced")
        one = plan(1, task, manifest, {"x": features, "y": probabilities}, {}, {})
        [(features, labels)] = batches(one.data, one.contract, np.arange(1), 0)
        assert labels.dtype == np.float32
        return [features["x"].item(), labels.tolist()]

    assert fed(np.array([[7]], np.float32)) == [7, [[0.5, 0.25, 0.25]]]
    assert fed(np.array([[255]], np.uint8)) == [2, [[0.5, 0.25, 0.25]]]


# The order of batches


def test_the_seed_of_a_program_differs_by_task_and_device() -> None:
    """The first 8 bytes of SHA-256("3/pi-1/program"), halved."""
    assert seed_of(3, "pi-1") == int.from_bytes(hashlib.sha256(b"3/pi-1/program").digest()[:8], "little") // 2
    assert len({seed_of(3, "pi-1"), seed_of(3, "pi-2"), seed_of(4, "pi-1"), seed_of(None, "pi-1")}) == 4


def test_order_is_a_function_of_seed_device_and_epoch() -> None:
    def order(**changes: Any) -> list[int]:
        return order_of(50, **({"seed": 3, "device": "pi-1", "epoch": 0} | changes)).tolist()

    assert order() == order()
    assert sorted(order()) == list(range(50))
    assert len({tuple(order(**c)) for c in ({}, {"seed": 4}, {"device": "pi-2"}, {"epoch": 1})}) == 4
    assert order(seed=None) == list(range(50))


def test_order_is_the_one_other_languages_must_match() -> None:
    """SplitMix64 in plain integers."""
    import hashlib

    mask = 2**64 - 1
    state = int.from_bytes(hashlib.sha256(b"7/pi-1/2").digest()[:8], "little")
    drawn = []
    for _ in range(20):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        drawn.append(z ^ (z >> 31))
    expected = sorted(range(20), key=lambda i: drawn[i])
    assert order_of(20, seed=7, device="pi-1", epoch=2).tolist() == expected


def test_equal_seeds_equal_bytes(regression: Bundle) -> None:
    rng = np.random.default_rng(1)
    data = Dataset(rng.normal(size=(40, 2)).astype(np.float32), rng.normal(size=40).astype(np.float32))
    task = Task(program="train", epochs=2, batch_size=7, seed=11, settings={"learning_rate": 0.1}, send=("w",))

    def sent(device: str) -> bytes:
        outcome = perform(Runtime(regression), [task], {}, {"train": data}, device=device)
        return outcome.tensors["w"].tobytes()

    assert sent("pi-1") == sent("pi-1") != sent("pi-2")


# float16


def test_half_precision_on_the_wire(runtime: Runtime) -> None:
    task = Task(program="train", batch_size=0, settings=LR, send=("w",), encoding="float16")
    sent = run(runtime, task).tensors["w"]
    assert sent.dtype == np.float16
    np.testing.assert_array_equal(sent, [0.5, 1])


def test_what_half_precision_cannot_hold_is_not_sent(runtime: Runtime) -> None:
    task = Task(program="evaluate", load=("w",), send=("w",), encoding="float16")
    with pytest.raises(EdgeflError, match="'w' holds 70000, too large for float16"):
        run(runtime, task, announced={"w": np.array([70000, 0], np.float32)})
    np.testing.assert_array_equal(runtime.state()["w"], [0, 0])


# Rolled back


def test_divergence_is_reported_and_undone(runtime: Runtime) -> None:
    task = Task(program="train", load=("w",), epochs=200, batch_size=0, settings={"learning_rate": 1e6}, send=("w",))
    with pytest.raises(EdgeflError, match=r"^training diverged: task 1 \('train'\): train.loss is inf") as caught:
        run(runtime, task, announced={"w": np.array([3, 4], np.float32)})
    assert caught.value.hint == "lower learning_rate"
    state = runtime.state()
    np.testing.assert_array_equal(state["w"], [0, 0])
    assert state["count"] == 0


def test_a_state_that_diverged_in_the_last_step(runtime: Runtime) -> None:
    task = Task(program="train", batch_size=0, settings={"learning_rate": 3e38})
    with pytest.raises(EdgeflError, match=r"^training diverged: .*state tensor 'w' is not finite after 1 batches"):
        run(runtime, task)
    assert np.isfinite(runtime.state()["w"]).all()


def test_a_stop_between_batches_undoes_all_tasks(runtime: Runtime) -> None:
    stop = Stop()

    def after_two(program: str, done: int, batches: int, loss: float | None) -> None:
        if done == 2:
            stop.request()

    train = Task(program="train", batch_size=1, settings=LR)
    with pytest.raises(Stopped):
        run(runtime, train, train, stop=stop, progress=after_two)
    assert runtime.state()["count"] == 0


def test_an_interrupt_undoes_too(runtime: Runtime) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(runtime, Task(program="train", settings=LR), progress=interrupt)
    assert runtime.state()["count"] == 0


# Refused before anything runs


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(program="dream"), "task 2 ('dream'): bundle 'regression' has no such program; it has train, evaluate"),
        (Task(program="train", settings=LR | {"rate": 1.0}), "unknown setting 'rate'; the program has learning_rate"),
        (Task(program="train"), "setting 'learning_rate' is missing and has no default"),
        (
            Task(program="train", settings={"learning_rate": math.nan}),
            "setting 'learning_rate' is nan; expected a",
        ),
        (
            Task(program="train", settings={"learning_rate": 1e300}),
            "setting 'learning_rate' is 1e+300; expected",
        ),
        (Task(program="evaluate", feed="train2"), "unknown feed 'train2'; expected 'train', 'test', 'anno"),
        (Task(program="evaluate", feed="kept:dreams"), "task 2 ('evaluate'): nothing can be kept here"),
        (Task(program="evaluate", load=("u*",)), "load 'u*' matches no tensor"),
        (Task(program="evaluate", load=("z",)), "announced 'z' is no state tensor of bundle 'regression'"),
        (Task(program="evaluate", load=("w",)), "announced 'w' is float32 [3]; expected float32 [2]"),
        (Task(program="evaluate", reset=("mom*", "z")), "reset 'z' matches no tensor"),
        (Task(program="evaluate", send=("z",)), "send 'z' matches no tensor"),
        (Task(program="evaluate", send=("moment",)), "'moment' is local: it never leaves the device"),
        (Task(program="evaluate", send=("mom*",)), "send 'mom*' matches no tensor"),
        (Task(program="evaluate", batch_size=-1), "batch_size is -1; expected 0 or more"),
        (Task(program="evaluate", epochs=0, send=("predicted",)), "send 'predicted': the task has no batches"),
    ],
)
def test_tasks_that_do_not_fit(runtime: Runtime, task: Task, message: str) -> None:
    first = Task(program="train", settings=LR)
    announced = {"w": np.zeros(3, np.float32), "z": np.zeros(1, np.float32)}
    with pytest.raises(InputError) as caught:
        run(runtime, first, task, announced=announced)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert runtime.state()["count"] == 0


def test_a_tensor_is_sent_once(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="'w' is already sent by an earlier task"):
        run(runtime, Task(program="evaluate", send=("w",)), Task(program="evaluate", send=("*",)))


@pytest.mark.parametrize("feeds", [{}, {"test": TWO.take(np.zeros(0, np.int64))}])
def test_without_test_data_nothing_is_measured_and_everything_else_is_done(
    runtime: Runtime, feeds: dict[str, Dataset]
) -> None:
    measure = Task(program="evaluate", feed="test", load=("w",), reset=("count",), batch_size=0)
    train = Task(program="train", batch_size=0, settings=LR, send=("w",))
    announced = {"w": np.array([1, 0], np.float32)}
    outcome = perform(runtime, [measure, train], announced, {"train": TWO, **feeds}, device="pi-1")
    np.testing.assert_array_equal(outcome.tensors["w"], [1, 1])  # what was loaded for the first is what trains
    assert outcome.metrics.keys() == {"train.loss", "train.total", "train.examples"}


def test_what_is_to_be_sent_of_test_data_needs_some(runtime: Runtime) -> None:
    with pytest.raises(DataError, match=r"task 1 \('evaluate'\): this device has no 'test' data"):
        task = Task(program="evaluate", feed="test", send=("predicted",))
        perform(runtime, [task], {}, {"train": TWO}, device="pi-1")
