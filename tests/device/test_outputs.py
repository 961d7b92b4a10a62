"""What a program gives for each batch, and what a task makes of it: on an engine whose programs a test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from edgefl.data_contract import DataContract, Feature
from edgefl.errors import EdgeflError, NotFinite
from edgefl.manifest import FORMAT, File, Input, Manifest, Output, Parity, Program, StateTensor
from edgefl.method import Task
from edgefl.tensors import Array
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.engine import next_version
from edgefl_device.work.interpreter import Outcome, perform
from edgefl_device.work.stopping import Stop, Stopped

NOTHING = File("", "0" * 64, 0)
X = Input("x", "float32", ("batch", 1), "features")
STATE = (StateTensor("w", "float32", (2,), "parameter"), StateTensor("empty", "float32", (0,), "parameter"))
# Examples 1, 2 and 3: in batches of two the last is short.
THREE = Dataset(np.array([[1], [2], [3]], np.float32), np.zeros(3, np.int64))

Answers = Callable[[Mapping[str, Array]], dict[str, Any]]


class ByHand:
    """An engine with one program, "p", that is a function of its inputs; "next.w" is the next "w"."""

    def __init__(self, answers: Answers, *outputs: Output, writes: bool = False) -> None:
        made = Program(
            NOTHING, (X,), outputs, (), {"w": "next.w"} if writes else {}, Parity("by hand", 0.0, {}), NOTHING
        )
        contract = DataContract((Feature((1,), "float32"),))
        self.manifest = Manifest(FORMAT, "toy", "fedavg", "hand", contract, STATE, {"p": made}, NOTHING)
        self.bundle: Any = None
        self.version = next_version()
        self.stops: list[object] = []  # of each step
        self._answers = answers
        self._state = {"w": np.zeros(2, np.float32), "empty": np.zeros(0, np.float32)}

    def state(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        return {name: self._state[name].copy() for name in (self._state if names is None else names)}

    def view(self, name: str) -> Array:
        return self._state[name]

    def load(self, tensors: Mapping[str, Array]) -> None:
        self._state |= tensors

    def reset(self, names: Iterable[str]) -> None:
        self._state |= {name: np.zeros_like(self._state[name]) for name in names}

    def step(self, program: str, inputs: Mapping[str, Array], stop: object = None) -> dict[str, Array]:
        self.stops.append(stop)
        found = {name: np.asarray(value) for name, value in self._answers(inputs).items()}
        if "next.w" in found:
            self._state["w"] = found["next.w"]
        return found


def done(engine: ByHand, **task: Any) -> Outcome:
    asked = Task(**({"program": "p", "batch_size": 2} | task))
    return perform(engine, [asked], {}, {"train": THREE}, device="pi-1")


def output(over_batches: str, dtype: str = "float32", shape: tuple[int | str, ...] = (2,)) -> Output:
    return Output("y", dtype, shape, over_batches)  # type: ignore[arg-type]


def both(inputs: Mapping[str, Array], dtype: str) -> Array:
    """[mean, count] of the batch: [1.5, 2], then [3, 1]."""
    return np.array([inputs["x"].mean(), len(inputs["x"])], dtype)


@pytest.mark.parametrize(
    ("over_batches", "values"),
    [("mean", [2, 5 / 3]), ("sum", [4.5, 3]), ("last", [3, 1]), ("concat", [1.5, 2, 3, 1])],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_array_is_reduced_over_batches_in_its_own_dtype(over_batches: str, values: list[float], dtype: str) -> None:
    """The mean is over examples: (2 * 1.5 + 1 * 3) / 3 and (2 * 2 + 1 * 1) / 3."""
    shape = ("batch",) if over_batches == "concat" else (2,)
    engine = ByHand(lambda inputs: {"y": both(inputs, dtype)}, output(over_batches, dtype, shape))
    sent = done(engine, send=("y",)).tensors["y"]
    assert sent.dtype == dtype
    np.testing.assert_array_equal(sent, np.array(values, dtype))


def test_a_mean_of_whole_numbers_is_no_whole_number() -> None:
    """Of lengths 2 and 1: (2 * 2 + 1 * 1) / 3. It travels as float32."""
    engine = ByHand(lambda inputs: {"y": np.array([len(inputs["x"])] * 2)}, output("mean", "int64"))
    sent = done(engine, send=("y",)).tensors["y"]
    assert sent.dtype == np.float32 and sent.tolist() == [np.float32(5 / 3)] * 2


def test_a_metric_keeps_the_digits_that_float32_has_not() -> None:
    """2^24 + 1 is no float32, but the sum of two that are."""
    parts = iter([np.float32(2**24), np.float32(1)])
    engine = ByHand(lambda inputs: {"y": next(parts)}, output("sum", shape=()))
    assert done(engine).metrics["p.y"] == 2**24 + 1


def test_progress_says_the_loss_of_each_batch_and_the_metrics_are_of_the_last_epoch() -> None:
    seen: list[Any] = []
    loss, most = Output("loss", "float32", (), "mean"), Output("most", "float32", (), "last")
    engine = ByHand(lambda inputs: {"loss": np.float32(inputs["x"].sum()), "most": inputs["x"].max()}, loss, most)
    task = Task("p", batch_size=2, epochs=2)
    outcome = perform(engine, [task], {}, {"train": THREE}, device="pi-1", progress=lambda *at: seen.append(at))
    assert seen == [("p", 1, 4, 3.0), ("p", 2, 4, 3.0), ("p", 3, 4, 3.0), ("p", 4, 4, 3.0)]
    assert outcome.metrics == {"p.loss": 3.0, "p.most": 3.0, "p.examples": 3.0}


@pytest.mark.parametrize(
    ("bad", "got"), [(float("nan"), "nan"), (float("-inf"), "-inf"), ([1.0, float("inf")], "not finite")]
)
@pytest.mark.parametrize("writes", [False, True])
def test_an_output_that_is_not_finite_says_where(bad: Any, got: str, writes: bool) -> None:
    """The second batch is the one with a 3."""
    shape = () if isinstance(bad, float) else (2,)

    def answers(inputs: Mapping[str, Array]) -> dict[str, Any]:
        value = np.array(bad if 3 in inputs["x"] else np.zeros(shape), np.float32)
        return {"y": value} | ({"next.w": np.ones(2, np.float32)} if writes else {})

    engine = ByHand(answers, output("mean", shape=shape), writes=writes)
    with pytest.raises(NotFinite) as caught:
        done(engine)
    what = f"task 1 ('p'): p.y is {got} at batch 2"
    assert caught.value.message == (f"training diverged: {what}" if writes else what)
    assert caught.value.hint == ("lower learning_rate" if writes else "the announced state may have diverged")
    assert engine.view("w").tolist() == [0, 0]


def test_a_state_that_is_not_finite_at_the_end() -> None:
    engine = ByHand(lambda inputs: {"next.w": np.array([1, np.nan], np.float32)}, writes=True)
    with pytest.raises(NotFinite) as caught:
        done(engine)
    assert caught.value.message == "training diverged: task 1 ('p'): state tensor 'w' is not finite after 2 batches"
    assert engine.view("w").tolist() == [0, 0]


def test_a_step_knows_who_may_stop_it_and_none_follows_a_request() -> None:
    stop = Stop()
    engine = ByHand(lambda inputs: {})

    def after_one(*at: object) -> None:
        stop.request()

    with pytest.raises(Stopped, match="^stopped on request$"):
        perform(engine, [Task("p", batch_size=1)], {}, {"train": THREE}, device="a", stop=stop, progress=after_one)
    assert engine.stops == [stop]


@pytest.mark.parametrize("far", [70_000.0, -70_000.0])
def test_float16_holds_up_to_65504(far: float) -> None:
    engine = ByHand(lambda inputs: {"next.w": np.array([1, far], np.float32)}, writes=True)
    with pytest.raises(EdgeflError) as caught:
        done(engine, send=("w",), encoding="float16")
    assert caught.value.message == "task 1 ('p'): 'w' holds 70000, too large for float16"
    assert caught.value.hint == "ask with encoding float32"
    engine = ByHand(lambda inputs: {"y": np.array([1, far], np.float32)}, output("last"))
    with pytest.raises(EdgeflError, match=r"^task 1 \('p'\): 'y' holds 70000, too large for float16"):
        done(engine, send=("y",), encoding="float16")


def test_what_is_small_or_empty_travels_in_float16() -> None:
    engine = ByHand(lambda inputs: {"next.w": np.array([-65504, 0.5], np.float32)}, writes=True)
    sent = done(engine, send=("w", "empty"), encoding="float16").tensors
    assert sent["w"].dtype == sent["empty"].dtype == np.float16
    assert sent["w"].tolist() == [-65504, 0.5] and sent["empty"].tolist() == []


def test_what_is_no_float_travels_as_it_is() -> None:
    engine = ByHand(lambda inputs: {"y": np.array([1, 2])}, output("last", "int64"))
    assert done(engine, send=("y",), encoding="float16").tensors["y"].dtype == np.int64
