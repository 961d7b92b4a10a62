"""Buffers of examples on a device's disk: what is fed, what leaves, what is refused, and that doing an ask again or an
aggregator that goes back changes nothing."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from toy import NOTHING

from edgefl import bundle as bundles
from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract, Feature
from edgefl.errors import DataError, EdgeflError, InputError
from edgefl.manifest import FORMAT, Input, Manifest, Output, Parity, Program
from edgefl.method import Keep, Task
from edgefl.random_numbers import normals
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Outcome, perform
from edgefl_device.work.kept import Buffers

OWN = Dataset(np.eye(2, dtype=np.float32), np.array([1, 2], np.float32))
W = np.array([1, 10], np.float32)  # an example [a, b] is predicted as a + 10 b, so a prediction shows its example
FEED = Task(program="evaluate", feed="kept:dreams", batch_size=2, load=("w",), send=("predicted",))


def keeping(capacity: int, **changes: Any) -> Task:
    return Task(**{f: getattr(FEED, f) for f in FEED.__struct_fields__} | {"keep": Keep("dreams", capacity, **changes)})


def examples(*digits: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Examples [digit, 0], labelled with their digit."""
    x = np.zeros((len(digits), 2), dtype)
    x[:, 0] = digits
    return {"x": x, "y": np.array(digits, np.float32)}


class Device:
    """A device with a folder; each call is one ask of one round."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.runtime, self.folder = Runtime(bundle), folder

    def do(self, round: int, *tasks: Task, announced: Any = None, life: str = "") -> Outcome:
        """`life`: of the aggregator, whose asks have other nonces in each."""
        tensors = {"w": W} | (announced or {})
        buffers = Buffers(self.folder, round=round, ask=f"{round}{life}", before=f"{round - 1}{life}")
        return perform(self.runtime, tasks, tensors, {"train": OWN}, device="pi-1", buffers=buffers)

    def fed(self, round: int, task: Task = FEED, announced: Any = None, life: str = "") -> list[float]:
        outcome = self.do(round, task, announced=announced, life=life)
        predicted: list[float] = outcome.tensors["predicted"].tolist()
        return predicted

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def device(regression: Bundle, tmp_path: Path) -> Device:
    return Device(regression, tmp_path / "toy.kept")


# First in, first out


def test_the_newest_are_fed_oldest_first(device: Device) -> None:
    assert device.fed(0, keeping(5), examples(1, 2)) == [1, 2]
    assert device.fed(1, keeping(5), examples(3, 4)) == [1, 2, 3, 4]
    assert device.fed(2, keeping(5), examples(5, 6)) == [2, 3, 4, 5, 6]  # a part of the oldest file
    assert device.files() == ["dreams/0.safetensors", "dreams/1.safetensors", "dreams/2.safetensors"]
    assert device.fed(3) == [2, 3, 4, 5, 6]
    assert device.fed(4, keeping(5), examples(7)) == [3, 4, 5, 6, 7]
    assert device.files() == ["dreams/1.safetensors", "dreams/2.safetensors", "dreams/4.safetensors"]
    assert device.fed(9, keeping(2), examples(8, 9)) == [8, 9]  # the capacity is the newest task's
    assert device.files() == ["dreams/9.safetensors"]


def test_more_than_the_capacity_at_once(device: Device) -> None:
    assert device.fed(0, keeping(2), examples(1, 2, 3)) == [2, 3]
    assert device.fed(1) == [2, 3]


def test_a_task_may_keep_what_it_is_fed(device: Device) -> None:
    announced = Task(program="evaluate", feed="announced", load=("w",), send=("predicted",), keep=Keep("dreams", 9))
    assert device.fed(0, announced, examples(1, 2)) == [1, 2]
    assert device.fed(1, announced, examples(3)) == [3]
    assert device.fed(2) == [1, 2, 3]


def test_a_later_task_is_fed_what_an_earlier_one_keeps(device: Device) -> None:
    first = Task(program="evaluate", feed="announced", load=("w",), keep=Keep("dreams", 9))
    assert device.do(0, first, FEED, announced=examples(4, 5)).tensors["predicted"].tolist() == [4, 5]


def test_examples_stay_as_they_were_announced(device: Device) -> None:
    """Pixels stay bytes on disk and are normalised when they are fed, like the device's own."""
    fed = device.fed(0, keeping(4), examples(255, 51, dtype="uint8"))
    assert fed == pytest.approx([1.0, 0.2])
    assert len((device.folder / "dreams/0.safetensors").read_bytes()) < 300


def test_two_buffers_know_nothing_of_each_other(device: Device) -> None:
    device.fed(0, keeping(4), examples(1))
    other = Task(program="evaluate", feed="announced", load=("w",), keep=Keep("others", 4))
    device.do(1, other, announced=examples(2))
    assert device.fed(2) == [1]


# Again, and back


def test_an_ask_done_again_changes_nothing(device: Device) -> None:
    device.fed(0, keeping(3), examples(1, 2))
    first = device.fed(1, keeping(3), examples(3, 4))
    before = {name: (device.folder / name).read_bytes() for name in device.files()}
    assert device.fed(1, keeping(3), examples(3, 4)) == first == [2, 3, 4]
    assert {name: (device.folder / name).read_bytes() for name in device.files()} == before


def test_what_an_aggregator_goes_back_behind_is_forgotten(device: Device) -> None:
    for number, digit in enumerate((1, 2, 3)):
        device.fed(number, keeping(9), examples(digit))
    assert device.fed(1, life="b") == [1]
    assert device.fed(1, keeping(9), examples(7), life="b") == [1, 7]
    assert device.files() == ["dreams/0.safetensors", "dreams/1.safetensors"]
    assert device.fed(5, life="b") == [1, 7]


# Changes


def test_changes_take_the_place_of_what_they_change(device: Device) -> None:
    device.fed(0, keeping(4), examples(1, 2))
    device.fed(1, keeping(4), examples(3, 4))
    change = {"x": np.array([[0.5, 0], [0.25, 0]], np.float16)}
    assert device.fed(2, keeping(4, add=True), change) == [1, 2, 3.5, 4.25]
    assert device.fed(3, keeping(4, add=True), change) == [1, 2, 4, 4.5]
    assert device.fed(3, keeping(4, add=True), change) == [1, 2, 4, 4.5]  # done again
    assert device.files() == ["dreams/0.safetensors", "dreams/3.safetensors"]


def test_a_crash_before_the_old_file_is_removed(device: Device) -> None:
    device.fed(1, keeping(4), examples(3, 4))
    path = device.folder / "dreams/1.safetensors"
    old = path.read_bytes()
    change = {"x": np.ones((2, 2), np.float32)}
    assert device.fed(2, keeping(4, add=True), change) == [14, 15]
    path.write_bytes(old)
    assert device.fed(2, keeping(4, add=True), change) == [14, 15]
    assert device.fed(3, keeping(4, add=True), change) == [25, 26]


@pytest.mark.parametrize(
    ("round", "life", "message"),
    [
        (4, "", "the announced change is of the examples of round 4, but buffer 'dreams' is of round 2"),
        (2, "b", "buffer 'dreams' is of round 2 of before a restart"),
        (1, "b", "buffer 'dreams' is of round 2 of before a restart"),
        (0, "", "buffer 'dreams' is empty"),
    ],
)
def test_a_change_of_what_the_device_has_not(device: Device, round: int, life: str, message: str) -> None:
    device.fed(1, keeping(4), examples(3, 4))
    with pytest.raises(InputError) as caught:
        device.fed(round, keeping(4, add=True), {"x": np.ones((2, 2), np.float32)}, life=life)
    assert message in caught.value.message
    assert caught.value.hint == "the device takes part again when examples are announced as a whole"
    assert device.files() == ["dreams/1.safetensors"]


def test_a_change_must_fit(device: Device) -> None:
    device.fed(0, keeping(4), examples(3, 4, dtype="uint8"))
    with pytest.raises(InputError, match=r"a change of float32 \[2, 2\] cannot be added to uint8 \[2, 2\]"):
        device.fed(1, keeping(4, add=True), {"x": np.ones((2, 2), np.float32)})


# Refused


def test_an_empty_buffer(device: Device) -> None:
    with pytest.raises(DataError, match=r"^task 1 \('evaluate'\): buffer 'dreams' is empty$"):
        device.fed(0)


def test_examples_of_two_kinds(device: Device) -> None:
    device.fed(0, keeping(9), examples(1))
    with pytest.raises(
        DataError, match=r"holds 'x' float32 \[2\] with 'y' float32 \[\] of round 1 and 'x' uint8 \[2\]"
    ):
        device.fed(1, keeping(9), examples(2, dtype="uint8"))
    assert device.files() == ["dreams/0.safetensors"]


def test_what_is_refused_is_not_kept(device: Device) -> None:
    with pytest.raises(DataError, match="example 0 has a feature that is nan"):
        device.fed(0, keeping(9), {"x": np.full((1, 2), np.nan, np.float32), "y": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match=r"announced were 'x' \[1, 2\] and 'y' \[3\]; expected one entry per example"):
        device.fed(0, keeping(9), {"x": np.zeros((1, 2), np.float32), "y": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="keep needs the tensor 'x', which was not announced"):
        device.fed(0, keeping(9))
    assert device.files() == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:40], lambda data: b"", lambda data: data.replace(b"since", b"sinca")]
)
def test_a_damaged_file_is_named(device: Device, damage: Any) -> None:
    device.fed(0, keeping(9), examples(1))
    path = device.folder / "dreams/0.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"dreams/0\.safetensors cannot be read: ") as caught:
        device.fed(1)
    assert caught.value.hint == "delete it; the examples in it are lost"
    assert "\n" not in caught.value.message


def test_a_disk_that_takes_no_more(device: Device) -> None:
    device.folder.write_text("a file where a folder should be")
    with pytest.raises(EdgeflError, match=r"^cannot keep examples in buffer 'dreams': .* \(.*toy\.kept\)$") as caught:
        device.fed(0, keeping(9), examples(1))
    assert caught.value.hint == "does the device's disk have room?"


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "", ".", "A", "x" * 37, "a\n"])
def test_a_buffer_is_no_path(device: Device, name: str) -> None:
    for task in (
        Task(program="evaluate", feed=f"kept:{name}"),
        Task(program="evaluate", feed="announced", keep=Keep(name, 4)),
    ):
        with pytest.raises(InputError, match="a buffer cannot be called"):
            device.do(0, task, announced=examples(1))
    assert not device.folder.exists()


KEEP = Keep("dreams", 4)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([Task("evaluate", feed="noise", batch_size=2)], "feed 'noise' needs a seed"),
        ([Task("evaluate", feed="noise", seed=1, batch_size=0)], "batch_size examples, and batch_size is 0"),
        ([Task("evaluate", feed="announced", keep=Keep("dreams", 0))], "capacity is 0; expected 1 or more"),
        ([Task("evaluate", feed="train", keep=KEEP)], "own 'train' data is not kept a second time"),
        ([Task("evaluate", feed="kept:others", keep=KEEP)], "into 'dreams', but the task is fed 'others'"),
        (
            [Task("evaluate", feed="announced", keep=Keep("dreams", 4, True))],
            "is a change, not examples; feed 'kept:dreams'",
        ),
        (
            [keeping(4), keeping(4)],
            "task 2 ('evaluate'): keep: an earlier task of this ask keeps into 'dreams' already",
        ),
        ([FEED, keeping(4)], "an earlier task of this ask is fed 'dreams'; keep first"),
    ],
)
def test_tasks_that_no_device_does(device: Device, tasks: list[Task], message: str) -> None:
    with pytest.raises(InputError) as caught:
        device.do(0, *tasks, announced=examples(1))
    assert message in caught.value.message
    assert not device.folder.exists()


# Noise


def test_noise_is_the_one_other_languages_must_match() -> None:
    """SplitMix64 and Box-Muller in plain numbers."""
    mask = 2**64 - 1
    state = int.from_bytes(hashlib.sha256(b"7/noise").digest()[:8], "little")
    drawn = []
    for _ in range(12):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        drawn.append(((z ^ (z >> 31)) >> 11) / 2**53)
    expected = [math.sqrt(-2 * math.log(1 - drawn[i])) * math.cos(2 * math.pi * drawn[i + 1]) for i in range(0, 12, 2)]
    made = normals(7, [3, 2])
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, np.array(expected, np.float32).reshape(3, 2))


def test_noise_is_standard_normal() -> None:
    z = normals(3, [100_000]).astype(np.float64)
    assert abs(z.mean()) < 4 / math.sqrt(len(z))
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / len(z))
    assert abs((np.abs(z) < 1).mean() - 0.6827) < 0.006
    assert np.abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / math.sqrt(len(z))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A program `predict` without labels, that shows its input."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["shown"])],
        "predict",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [value("shown", TensorProto.FLOAT, ["batch", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = Input("x", "float32", ("batch", 2), "features")
    shown = Output("shown", "float32", ("batch", 2), "concat")
    program = Program(NOTHING, (x,), (shown,), (), {}, Parity("by hand", 0.0, {}), NOTHING)
    contract = DataContract((Feature((2,), "float32"),))
    manifest = Manifest(FORMAT, "shown", "codream", "hand", contract, (), {"predict": program}, NOTHING)
    place = tmp_path_factory.mktemp("bundles") / "shown.bundle"
    programs = {"predict": model.SerializeToString()}
    return bundles.write(place, manifest, weights={}, programs=programs, golden={"predict": {}})


def test_every_device_is_fed_the_same_noise(unlabelled: Bundle, tmp_path: Path) -> None:
    task = Task("predict", feed="noise", seed=5, batch_size=3, send=("shown",), keep=Keep("dreams", 3))
    shown = []
    for name in ("pi-1", "pi-2"):
        buffers = Buffers(tmp_path / name, round=0)
        outcome = perform(Runtime(unlabelled), [task], {}, {}, device=name, buffers=buffers)
        shown.append(outcome.tensors["shown"])
        assert outcome.examples == 0
    np.testing.assert_array_equal(shown, [normals(5, [3, 2])] * 2)
    again = Task("predict", feed="kept:dreams", send=("shown",))
    outcome = perform(Runtime(unlabelled), [again], {}, {}, device="pi-2", buffers=Buffers(tmp_path / "pi-2", round=1))
    np.testing.assert_array_equal(outcome.tensors["shown"], normals(5, [3, 2]))


def test_noise_has_no_labels(device: Device) -> None:
    with pytest.raises(InputError, match="feed 'noise' needs the tensor 'y'"):
        device.do(0, Task("evaluate", feed="noise", seed=5))
