"""A task against a bundle, before anything runs: what it becomes, and each refusal in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefl.data_contract import DataContract, Feature, Normalisation
from edgefl.errors import EdgeflError
from edgefl.manifest import FORMAT, File, Input, Manifest, Output, Parity, Program, StateTensor
from edgefl.method import Keep, Task
from edgefl_device.data.dataset import Dataset
from edgefl_device.work.kept import Buffers
from edgefl_device.work.plan import Plan, changes_nothing, check_own_settings, own_state, plan

NOTHING = File("", "0" * 64, 0)
X = Input("x", "float32", ("batch", 2), "features")
Y = Input("y", "int64", ("batch",), "labels")
RATE = Input("learning_rate", "float32", (), "setting", 0.1)
MICRO = Input("micro_batches", "float32", (), "setting", 1.0)
WHERE = "task 1 ('train')"
FOUR = Dataset(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
SAME_BUNDLE = "does the aggregator use the same bundle?"
# Of three classes; 0 and 255 of pixels are -1 and 1.
CONTRACT = DataContract(
    (Feature((2,), "float32", range=(-1.0, 1.0), normalisation=Normalisation((0.5,), (0.25,))),),
    classes=3,
    class_names=("cat", "dog", "owl"),
)
STATE = (
    StateTensor("w", "float32", (2,), "parameter", group="head"),
    StateTensor("seen", "bool", (2,), "buffer"),
    StateTensor("pixels", "uint8", (2,), "buffer"),
    StateTensor("moment", "float32", (2,), "optimizer", "local"),
)


def program(*inputs: Input, outputs: tuple[Output, ...] = (), writes: Mapping[str, str] | None = None) -> Program:
    return Program(NOTHING, inputs, outputs, (), dict(writes or {}), Parity("by hand", 0.0, {}), NOTHING)


def manifest(*inputs: Input, contract: DataContract = CONTRACT, **others: Program) -> Manifest:
    return Manifest(FORMAT, "toy", "fedavg", "hand", contract, STATE, {"train": program(*inputs), **others}, NOTHING)


def planned(
    made: Manifest,
    *,
    announced: Mapping[str, Any] | None = None,
    feeds: Mapping[str, Dataset] | None = None,
    buffers: Buffers | None = None,
    **task: Any,
) -> Plan:
    """The plan of a task of "train" on four examples, unless it says otherwise."""
    asked = Task(**({"program": "train", "batch_size": 1} | task))
    return plan(1, asked, made, announced or {}, {"train": FOUR} if feeds is None else feeds, {}, buffers)


def refused(call: Callable[[], object]) -> tuple[str, str | None]:
    with pytest.raises(EdgeflError) as caught:
        call()
    return caught.value.message, caught.value.hint


# --- the program and its batches --------------------------------------------------------------------------------------


def test_a_program_that_is_not_there() -> None:
    message = "task 1 ('dream'): bundle 'toy' has no such program; it has train, evaluate"
    assert refused(lambda: planned(manifest(evaluate=program()), program="dream")) == (message, SAME_BUNDLE)


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_takes_up_to_its_size(size: int) -> None:
    assert planned(manifest(Input("x", "float32", (4, 2), "features")), batch_size=size).batches == 4 // size


@pytest.mark.parametrize("size", [0, 5])
def test_a_fixed_batch_takes_no_other(size: int) -> None:
    assert refused(lambda: planned(manifest(Input("x", "float32", (4, 2), "features")), batch_size=size)) == (
        f"{WHERE}: batch_size is {size}, but the program was exported for batches of 4",
        "ask with batch_size = 4, or export with --batch dynamic",
    )


def test_gradients_that_are_added_up_need_as_many_batches() -> None:
    """Four batches are four steps, or two of two, or one of four."""

    def steps(micro: float) -> int:
        return planned(manifest(X, MICRO), settings={"micro_batches": micro}, send=("head",)).steps

    assert [steps(1), steps(2), steps(3), steps(4)] == [4, 2, 1, 1]
    assert refused(lambda: steps(5)) == (
        f"{WHERE}: 4 batches, but a step needs 5, so nothing would train",
        "set a smaller batch_size or micro_batches in [method], or more epochs",
    )
    whole = {"settings": {"micro_batches": 2.0}, "batch_size": 0}
    assert refused(lambda: planned(manifest(X, MICRO), **whole))[0].startswith(f"{WHERE}: 1 batches")


@pytest.mark.parametrize("how", [{"steps": 3}, {"epochs": 2}, {"epochs": 1}])
def test_where_there_are_no_test_data_a_task_that_only_measures_has_no_batches(how: dict[str, int]) -> None:
    one = planned(manifest(X, MICRO), feed="test", settings={"micro_batches": 2.0}, **how)
    assert (one.batches, one.examples, len(one.data)) == (0, 0, 0)
    assert planned(manifest(X), feed="test", feeds={"test": FOUR}).batches == 4


def test_a_device_without_the_data_that_it_is_to_learn_from() -> None:
    message = f"{WHERE}: this device has no 'train' data", "give the device a source that holds it"
    assert refused(lambda: planned(manifest(X), feeds={})) == message
    assert refused(lambda: planned(manifest(X), feeds={"train": FOUR.take(np.arange(0))})) == message
    assert planned(manifest(X), feeds={"train": FOUR.take(np.arange(1))}).examples == 1


# --- examples that are announced, drawn or kept -----------------------------------------------------------------------


def announced(made: Manifest, **tensors: Any) -> Plan:
    return planned(made, feed="announced", announced={name: np.asarray(value) for name, value in tensors.items()})


def test_pixels_keep_the_contracts_range_and_normalisation_and_floats_have_none() -> None:
    """Dreams are made in the input space of a program."""
    y = np.array([2], np.int64)
    pixels = announced(manifest(X, Y), x=np.array([[0, 255]], np.uint8), y=y).contract.feature
    assert (pixels.range, pixels.normalisation) == ((-1.0, 1.0), Normalisation((0.5,), (0.25,)))
    floats = announced(manifest(X, Y), x=np.array([[7, -7]], np.float32), y=y).contract.feature
    assert (floats.range, floats.normalisation) == (None, Normalisation())


def test_examples_are_of_the_programs_shape_and_dtype() -> None:
    wide = manifest(Input("x", "float16", ("batch", "length", 3), "features"))
    one = announced(wide, x=np.zeros((4, 5, 3), np.float32))
    assert (one.contract.feature.shape, one.contract.feature.dtype) == ((5, 3), "float16")
    assert one.data.features.dtype == np.float16 and one.data.labels.tolist() == [0, 0, 0, 0]
    message, _ = refused(lambda: announced(wide, x=np.zeros((4, 3), np.float32)))
    assert message == f"{WHERE}: announced data: an example has shape [3]; expected [0, 3]"


def test_a_program_without_features_is_fed_by_the_contract() -> None:
    feature = announced(manifest(), x=np.zeros((4, 2), np.float32)).contract.feature
    assert (feature.shape, feature.dtype) == ((2,), "float32")


def test_the_feature_that_a_program_takes() -> None:
    sound = Feature((2,), "float32", name="sound", normalisation=Normalisation((3.0,)))
    both = DataContract((CONTRACT.feature, sound), classes=3)
    taking = manifest(Input("x", "float32", ("batch", 2), "features", feature="sound"), contract=both)
    assert announced(taking, x=np.zeros((4, 2), np.uint8)).contract.feature.normalisation.mean == (3.0,)


def test_one_array_is_not_two_features() -> None:
    two = manifest(X, Input("z", "float32", ("batch", 2), "features"))
    assert refused(lambda: announced(two, x=np.zeros((4, 2), np.float32)))[0] == (
        f"{WHERE}: feed 'announced' is one array, and the program takes 2 features"
    )


def test_labels_are_classes_where_they_are_numbers_of_the_contract() -> None:
    x = np.zeros((1, 2), np.float32)
    hard = announced(manifest(X, Y), x=x, y=np.array([2], np.int64)).contract
    assert (hard.classes, hard.labels, hard.class_names) == (3, (), ())
    soft = announced(manifest(X, Input("y", "float32", ("batch", 3), "labels")), x=x, y=np.ones((1, 3), np.float32))
    assert (soft.contract.classes, soft.contract.labels) == (None, (3,))
    none = announced(manifest(X), x=x).contract
    assert (none.classes, none.labels, none.labels_dtype) == (None, (), "int64")
    message, _ = refused(lambda: announced(manifest(X, Y), x=x, y=np.array([3], np.int64)))
    assert message == f"{WHERE}: announced data: label 0 is 3; expected 0..2"


def test_noise_is_for_features_of_a_known_shape() -> None:
    noise = {"feed": "noise", "seed": 1, "batch_size": 3}
    assert planned(manifest(X), **noise).data.features.shape == (3, 2)
    no_floats = f"{WHERE}: feed 'noise': the program takes no floating-point features"
    assert refused(lambda: planned(manifest(), **noise))[0] == no_floats
    assert refused(lambda: planned(manifest(Input("x", "int64", ("batch", 2), "features")), **noise))[0] == no_floats
    free = manifest(Input("x", "float32", ("batch", "length", 2), "features"))
    message = f"{WHERE}: feed 'noise': the shape of an example is ['length', 2], not fixed"
    assert refused(lambda: planned(free, **noise))[0] == message
    no_labels = f"{WHERE}: feed 'noise' needs the tensor 'y', which was not announced"
    assert refused(lambda: planned(manifest(X, Y), **noise))[0] == no_labels


def test_nothing_is_kept_without_buffers() -> None:
    message = f"{WHERE}: nothing can be kept here", "only a device in a run has buffers"
    assert refused(lambda: planned(manifest(X), feed="kept:dreams")) == message
    assert refused(lambda: planned(manifest(X), feed="announced", keep=Keep("dreams", 1))) == message


def test_what_is_wrong_with_what_is_kept_names_the_task(tmp_path: Path) -> None:
    buffers = Buffers(tmp_path, round=0)
    keep = {"feed": "announced", "keep": Keep("dreams", 1), "buffers": buffers}
    assert refused(lambda: planned(manifest(X), **keep))[0].startswith(f"{WHERE}: ")
    wide = np.zeros((1, 3), np.float32)
    message = "data: an example has shape [3]; expected [2]"
    found, _ = refused(lambda: planned(manifest(X), announced={"x": wide, "y": np.zeros(1)}, **keep))
    assert found == f"{WHERE}: announced {message}"
    found, _ = refused(lambda: planned(manifest(X), feed="kept:dreams", buffers=buffers))
    assert found == f"{WHERE}: kept:dreams {message}"


# --- what is loaded, reset and sent -----------------------------------------------------------------------------------


def test_what_is_announced_must_be_of_the_bundle() -> None:
    head = np.zeros(2, np.float32)
    assert planned(manifest(X), load=("h*",), announced={"head": head}).load == {"head": "w"}
    for wrong, what in ((np.zeros(3, np.float32), "float32 [3]"), (np.zeros(2), "float64 [2]")):
        message = f"{WHERE}: announced 'head' is {what}; expected float32 [2]"
        found = refused(lambda wrong=wrong: planned(manifest(X), load=("head",), announced={"head": wrong}))  # type: ignore[misc]
        assert found == (message, SAME_BUNDLE)


@pytest.mark.parametrize("what", ["load", "reset", "send"])
def test_a_name_that_matches_nothing(what: str) -> None:
    assert (
        refused(lambda: planned(manifest(X), **{what: ("eXtra",)}))[0] == f"{WHERE}: {what} 'eXtra' matches no tensor"
    )


@pytest.mark.parametrize("name", ["seen", "pixels"])
def test_what_can_be_no_difference_is_sent_as_it_is(name: str) -> None:
    dtype = {"seen": "bool", "pixels": "uint8"}[name]
    assert planned(manifest(X), send=(name,)).send_state == {name: name}
    assert planned(manifest(X), send=("head",), send_as="delta").send_state == {"head": "w"}
    assert refused(lambda: planned(manifest(X), send=(name,), send_as="delta"))[0] == (
        f"{WHERE}: {name!r} is {dtype}, which has no delta; send it as value"
    )


def test_local_state_is_not_sent_and_the_task_is_named() -> None:
    assert refused(lambda: planned(manifest(X), send=("moment",)))[0] == (
        f"{WHERE}: 'moment' is local: it never leaves the device"
    )


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_have_the_shape_and_dtype_of_their_inputs() -> None:
    rates, one = Input("rates", "float32", (3,), "setting", 0.5), Input("one", "float32", ("n",), "setting", 2.0)
    found = planned(manifest(X, RATE, rates, one, Input("count", "int64", (), "setting", 4))).settings
    assert found["learning_rate"] == np.float32(0.1) and found["learning_rate"].shape == ()
    assert found["rates"].tolist() == [0.5, 0.5, 0.5] and found["one"].tolist() == [2.0]
    assert found["count"] == 4 and found["count"].dtype == np.int64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.5, 1e300])
def test_a_setting_that_is_no_whole_number(value: float) -> None:
    counted = manifest(X, Input("count", "int64", (), "setting", 4))
    message = f"{WHERE}: setting 'count' is {value}; expected a finite int64"
    assert refused(lambda: planned(counted, settings={"count": value}))[0] == message


def test_an_unknown_setting_names_those_that_there_are() -> None:
    unknown = {"settings": {"rate": 1.0}}
    message = f"{WHERE}: unknown setting 'rate'; the program has "
    assert refused(lambda: planned(manifest(X, RATE, MICRO), **unknown))[0] == message + "learning_rate, micro_batches"
    assert refused(lambda: planned(manifest(X), **unknown))[0] == message + "none"


def test_a_device_has_no_settings_of_its_own_where_no_program_has_any() -> None:
    assert refused(lambda: check_own_settings({"rate": 1.0}, manifest(X)))[1] == "there is: none"


# --- what is the device's own -----------------------------------------------------------------------------------------

TRAINING = manifest(X, evaluate=program(X), step=program(X, writes={"w": "next.w"}))
HEAD = {"head": np.zeros(2, np.float32), "other": np.zeros(1, np.float32)}


def test_what_no_task_loads_is_the_devices_own() -> None:
    tasks = [Task("evaluate"), Task("evaluate", load=("h*",)), Task("evaluate", load=("seen",))]
    assert own_state(TRAINING, tasks, HEAD) == ["seen", "pixels", "moment"]  # "seen" was not announced
    assert own_state(TRAINING, tasks[:1], HEAD) == ["w", "seen", "pixels", "moment"]


@pytest.mark.parametrize(
    ("task", "private", "nothing"),
    [
        (Task("evaluate"), ("w", "moment"), True),
        (Task("evaluate", load=("head",)), ("moment",), True),
        (Task("evaluate", load=("head",)), ("w", "moment"), False),
        (Task("evaluate", reset=("moment",)), ("moment",), False),
        (Task("step"), ("moment",), False),
    ],
)
def test_tasks_change_nothing_that_load_reset_and_write_nothing_of_the_devices(
    task: Task, private: tuple[str, ...], nothing: bool
) -> None:
    kept = {name: np.zeros(2, np.float32) for name in private}
    assert changes_nothing(TRAINING, [task], HEAD, kept) is nothing
    assert changes_nothing(TRAINING, [task, Task("evaluate")], HEAD, kept) is nothing
