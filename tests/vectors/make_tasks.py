"""Write tasks.json: tasks carried out by devices, step by step, for every language's interpreter.

    python tests/vectors/make_tasks.py        with tests/support on PYTHONPATH

    bundles   name -> path -> content (base64): what a device downloads of a bundle
    stories   one device each: its `bundle`, its name `device`, its `data` ("train", perhaps "test"), `settings` of its
              `class` and its `own`, and `asks` in order, each from the state that the one before left. Of an ask:
              `round`, `nonce`, `before`, `tasks` as in an announcement, `tensors` as announced, and what comes of it:
                  reply    `tensors`, `metrics` and `examples`
                  changed  whether the device's own state may have changed, and has to be durable before the reply
                  private  the device's own state afterwards
              or `refused`: the task fails, and nothing of it counts. The text is what the Python device says; another
              language may say it otherwise.

A tensor is {"dtype", "shape", "values"}, its values in order. The numbers are small binary fractions, so all are exact
in every runtime; but `tolerance`, where a story has one, is how far apart values may be. An ask that comes twice is one
that is done again, as after a crash. `again` of a story is the ask (from 0) after which the device starts anew with
what is on its disk.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper
from toy import NOTHING, write_regression

from edgefl import bundle as bundles
from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract, Feature, Normalisation
from edgefl.errors import EdgeflError
from edgefl.manifest import FORMAT, PORTABLE, Input, Manifest, Output, Parity, Program, StateTensor
from edgefl.method import Task
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import answer
from edgefl_device.work.kept import Buffers
from edgefl_device.work.plan import all_settings
from edgefl_device.work.private import Private

PATH = Path(__file__).parent / "tasks.json"
FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


# --- tensors ------------------------------------------------------------------------------------------------------


def to_json(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.reshape(-1).tolist()}


def from_json(tensor: dict[str, Any]) -> np.ndarray:
    return np.array(tensor["values"], tensor["dtype"]).reshape(tensor["shape"])


def floats(*values: Any, dtype: str = "float32") -> dict[str, Any]:
    return to_json(np.array(values, dtype))


# --- bundles ------------------------------------------------------------------------------------------------------


def write_odd(path: Path) -> Bundle:
    """What the regression has not: pixels, class numbers, a fusion group, state of other dtypes, a fixed batch size, a
    seed, a setting of integers.

    state     shift (shared as "common.shift", float32), half (shared, float16), seen (local, int64)
    show      shown = x + shift
    count     for batches of 4: total = times * (how many examples are present), first = mean of their first feature,
              drawn = seed mod 1000; half' = half + half, seen' = seen + 1
    """
    value, node = helper.make_tensor_value_info, helper.make_node

    def model(nodes: list, inputs: list, outputs: list, constants: list) -> bytes:
        graph = helper.make_graph(nodes, "odd", inputs, outputs, constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return made.SerializeToString()

    show = model(
        [node("Add", ["x", "shift"], ["shown"])],
        [value("shift", FLOAT, [2]), value("x", FLOAT, ["batch", 2])],
        [value("shown", FLOAT, ["batch", 2])],
        [],
    )
    count = model(
        [
            node("ReduceSum", ["present"], ["rows"], keepdims=0),
            node("Cast", ["times"], ["times_float"], to=FLOAT),
            node("Mul", ["rows", "times_float"], ["total"]),
            node("Gather", ["x", "zero"], ["column"], axis=1),
            node("Mul", ["column", "present"], ["firsts"]),
            node("ReduceSum", ["firsts"], ["sum"], keepdims=0),
            node("Div", ["sum", "rows"], ["first"]),
            node("Mod", ["seed", "thousand"], ["drawn"]),
            node("Add", ["half", "half"], ["half_next"]),
            node("Add", ["seen", "one"], ["seen_next"]),
            node("ReduceMax", ["y"], ["greatest"], keepdims=0),
        ],
        [
            value("half", HALF, [2]),
            value("seen", INT, []),
            value("x", FLOAT, [4, 2]),
            value("y", INT, [4]),
            value("present", FLOAT, [4]),
            value("seed", INT, []),
            value("times", INT, []),
        ],
        [
            value("half_next", HALF, [2]),
            value("seen_next", INT, []),
            value("total", FLOAT, []),
            value("first", FLOAT, []),
            value("drawn", INT, []),
            value("greatest", INT, []),
        ],
        [
            helper.make_tensor("zero", INT, [], [0]),
            helper.make_tensor("one", INT, [], [1]),
            helper.make_tensor("thousand", INT, [], [1000]),
        ],
    )
    parity = Parity("by hand", 0.0, {})
    programs = {
        "show": Program(
            NOTHING,
            (Input("x", "float32", ("batch", 2), "features"),),
            (Output("shown", "float32", ("batch", 2), "concat"),),
            ("shift",),
            {},
            parity,
            NOTHING,
        ),
        "count": Program(
            NOTHING,
            (
                Input("x", "float32", (4, 2), "features"),
                Input("y", "int64", (4,), "labels"),
                Input("present", "float32", (4,), "present"),
                Input("seed", "int64", (), "seed"),
                Input("times", "int64", (), "setting", 1.0),
            ),
            (
                Output("total", "float32", (), "sum"),
                Output("first", "float32", (), "mean"),
                Output("drawn", "int64", (), "last"),
                Output("greatest", "int64", (), "last"),
            ),
            ("half", "seen"),
            {"half": "half_next", "seen": "seen_next"},
            parity,
            NOTHING,
        ),
    }
    manifest = Manifest(
        FORMAT,
        "odd",
        "fedavg",
        "hand",
        DataContract((Feature((2,), "float32", normalisation=Normalisation((0.5,), (0.25,))),), classes=4),
        (
            StateTensor("shift", "float32", (2,), "parameter", group="common.shift"),
            StateTensor("half", "float16", (2,), "buffer"),
            StateTensor("seen", "int64", (), "buffer", fuse="local"),
        ),
        programs,
        NOTHING,
    )
    return bundles.write(
        path,
        manifest,
        weights={
            "shift": np.array([0.25, -1], np.float32),
            "half": np.array([1, 0.5], np.float16),
            "seen": np.array(0, np.int64),
        },
        programs={"show": show, "count": count},
        golden={"show": {}, "count": {}},
    )


def packed(bundle: Bundle) -> dict[str, str]:
    """What a device with the portable engine downloads of it."""
    found = {"manifest.json": bundle.manifest_bytes}
    found |= {file.path: bundle.bytes_of(file) for file in bundle.manifest.files(engine=PORTABLE)}
    return {path: base64.b64encode(data).decode() for path, data in found.items()}


def unpacked(files: dict[str, str], folder: Path) -> Bundle:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(base64.b64decode(data))
    return bundles.read(folder, engine=PORTABLE)


# --- stories ------------------------------------------------------------------------------------------------------

TWO = {"x": floats([1, 0], [0, 1]), "y": floats(1, 2)}
THREE = {"x": floats([1, 0], [0, 1], [1, 1]), "y": floats(1, 2, 5)}
DIGITS = {"x": floats(*[[i, 0] for i in range(7)]), "y": floats(*[0] * 7)}
PIXELS = {"x": floats([255, 0], [0, 0], [0, 255], dtype="uint8"), "y": floats(1, 3, 0, dtype="int64")}
W = {"w": floats(1, 10)}  # an example [a, b] is predicted as a + 10 b
LR = {"learning_rate": 0.5}
TRAIN = {"program": "train", "load": ["w"], "batch_size": 0, "settings": LR, "send": ["w"]}
LOOK = {"program": "evaluate", "load": ["w"], "batch_size": 2, "send": ["predicted"]}
FED = LOOK | {"feed": "kept:dreams"}
COUNT = {"program": "count", "batch_size": 4}


def story(name: str, *asks: dict[str, Any], data: Any = TWO, bundle: str = "regression", **more: Any) -> dict[str, Any]:
    given = data if "train" in data else {"train": data}
    about = {"name": name, "bundle": bundle, "device": "pi-1", "data": given, "settings": {"class": {}, "own": {}}}
    numbered = [
        {"round": number, "nonce": _nonce(number), "before": _nonce(number - 1)} | a for number, a in enumerate(asks)
    ]
    return about | more | {"asks": numbered}


def ask(*tasks: dict[str, Any], tensors: dict[str, Any] = W, **more: Any) -> dict[str, Any]:
    return {"tasks": list(tasks), "tensors": tensors, **more}


def _nonce(number: int) -> str:
    return f"{number:016x}" if number >= 0 else ""


def digits(*numbers: int, dtype: str = "float32") -> dict[str, Any]:
    """Examples [digit, 0], labelled with their digit, beside the weights."""
    return W | {"x": floats(*[[n, 0] for n in numbers], dtype=dtype), "y": floats(*numbers)}


def keep(capacity: int, **more: Any) -> dict[str, Any]:
    return {"keep": {"buffer": "dreams", "capacity": capacity, **more}}


def carried_out() -> list[dict[str, Any]]:
    """Stories whose tasks are done."""
    change = W | {"x": floats([0.5, 0], [-1, 2])}
    with_test = {"train": TWO, "test": THREE}
    return [
        story("one epoch, the whole feed in one batch", ask(TRAIN)),
        story("a delta to what was loaded", ask(TRAIN | {"send_as": "delta"})),
        story("float16 on the wire", ask(TRAIN | {"encoding": "float16", "send": ["*"]})),
        story("two epochs of batches, the last of them short", ask(TRAIN | {"epochs": 2, "batch_size": 2}), data=THREE),
        story(
            "steps instead of epochs, into the middle of one", ask(TRAIN | {"steps": 3, "batch_size": 2}), data=THREE
        ),
        story("no epochs at all", ask(TRAIN | {"epochs": 0})),
        story("the order of a seed", ask(LOOK | {"seed": 42, "epochs": 2}), data=DIGITS),
        story("the order of a seed, on another device", ask(LOOK | {"seed": 42}), data=DIGITS, device="pi-2"),
        story("a metric is of the last epoch, and only of it", ask(TRAIN | {"epochs": 2}, LOOK | {"send": ["loss"]})),
        story("a metric is sent by its exact name only", ask(TRAIN | {"send": ["*", "total"]})),
        story("the task's settings, and the bundle's", ask(TRAIN | {"settings": LR | {"momentum": 0.5}, "epochs": 2})),
        story(
            "a device's own settings count more than its class's, these more than the task's",
            ask(TRAIN | {"settings": {"learning_rate": 4.0, "momentum": 4.0}, "epochs": 2}),
            settings={
                "class": {"learning_rate": 2.0, "momentum": 0.5},
                "own": {"learning_rate": 0.25, "of_another": 1.0},
            },
        ),
        story(
            "what is the device's own stays from ask to ask, what is loaded does not",
            ask(TRAIN | {"settings": LR | {"momentum": 0.5}}),
            ask(TRAIN | {"settings": LR | {"momentum": 0.5}}),
            ask(TRAIN | {"settings": LR | {"momentum": 0.5}, "load": [], "send": []}, tensors={}),
            ask(TRAIN | {"settings": LR | {"momentum": 0.5}, "load": []}, tensors={}),
            again=1,
        ),
        story(
            "reset brings back the bundle's values, of local state too",
            ask(TRAIN | {"settings": LR | {"momentum": 0.5}}),
            ask(TRAIN | {"settings": LR | {"momentum": 0.5}, "reset": ["mom*", "count"]}),
            ask(TRAIN | {"reset": ["[!x]*"], "load": []}, tensors={}),
        ),
        story("an ask that changes nothing", ask(TRAIN | {"load": []}), ask(LOOK | {"load": []}, tensors={}), again=0),
        story(
            "the examples are those of the train feed",
            ask(TRAIN, LOOK | {"feed": "test", "load": [], "send": ["loss"]}),
            data=with_test,
        ),
        story(
            "without test data nothing is measured, but what is loaded and reset is",
            ask(LOOK | {"feed": "test", "send": [], "reset": ["count"], "batch_size": 0}, TRAIN | {"load": []}),
        ),
        story("several tasks, one state", ask(TRAIN, TRAIN | {"load": [], "reset": [], "send": ["gradient"]})),
        story(
            "patterns pass over what the bundle has not",
            ask(TRAIN | {"load": ["w", "body.*"], "send": ["?", "head.*"]}),
        ),
        story("what is announced is fed", ask(LOOK | {"feed": "announced"}, tensors=digits(3, 1, 2))),
        story(
            "first in, first out",
            ask(FED | keep(3), tensors=digits(1, 2)),
            ask(FED | keep(3), tensors=digits(3, 4)),
            ask(FED | keep(3), tensors=digits(3, 4), round=1, nonce=_nonce(1), before=_nonce(0)),
            ask(LOOK | {"send": []}, FED, round=5),
            ask(FED | keep(2), tensors=digits(8, 9), round=6),
            again=1,
        ),
        story(
            "a change is added to the newest examples, of the round before",
            ask(FED | keep(9), tensors=digits(1, 2)),
            ask(FED | keep(9, add=True), tensors=change),
            ask(FED | keep(9, add=True), tensors=change),
            ask(FED | keep(9, add=True), tensors=change, round=2, nonce=_nonce(2), before=_nonce(1)),
            ask(FED | keep(9), tensors=digits(5)),
        ),
        story(
            "an aggregator that goes back takes later examples with it",
            ask(FED | keep(9), tensors=digits(1)),
            ask(FED | keep(9), tensors=digits(2)),
            ask(FED | keep(9), tensors=digits(3), round=1, nonce="f" * 16, before="0" * 16),
        ),
        story(
            "noise, which is the same on every device",
            ask(
                {"program": "show", "feed": "noise", "seed": 5, "batch_size": 3, "send": ["shown"], **keep(3)},
                tensors={},
            ),
            ask({"program": "show", "feed": "kept:dreams", "batch_size": 0, "send": ["shown"]}, tensors={}),
            bundle="odd",
            data=PIXELS,
            device="pi-9",
            tolerance=1e-6,
        ),
        story(
            "pixels are divided and normalised",
            ask({"program": "show", "send": ["*"]}, tensors={}),
            bundle="odd",
            data=PIXELS,
        ),
        story(
            "floats are normalised too, but not those that are announced",
            ask({"program": "show", "send": ["shown"]}, tensors={}),
            ask({"program": "show", "feed": "announced", "send": ["shown"]}, tensors={"x": floats([1, 0.5])}),
            ask(
                {"program": "show", "feed": "announced", "send": ["shown"]},
                tensors={"x": floats([255, 0], dtype="uint8")},
            ),
            bundle="odd",
            data={"x": floats([1, 0.5]), "y": floats(0, dtype="int64")},
        ),
        story(
            "a fixed batch is filled up, and a program's own seed",
            ask(COUNT | {"seed": 3, "settings": {"times": 2.0}, "send": ["half"]}, tensors={}),
            ask(COUNT, tensors={}),
            bundle="odd",
            data={"x": floats(*[[i, 0] for i in (1, 2, 3, 4, 6, 8)]), "y": floats(0, 1, 2, 3, 0, 1, dtype="int64")},
        ),
        story(
            "shared state by its group, and a float16 that stays one",
            ask(
                COUNT | {"load": ["*"], "send": ["common.*", "half"], "send_as": "delta"},
                tensors={"common.shift": floats(1, 1), "half": floats(2, 4, dtype="float16")},
            ),
            bundle="odd",
            data=PIXELS,
        ),
    ]


def refused() -> list[dict[str, Any]]:
    """Stories of one task that fails; what was before it stays."""
    tasks: dict[str, dict[str, Any]] = {
        "an unknown program": TRAIN | {"program": "dream"},
        "an unknown setting": TRAIN | {"settings": LR | {"tempo": 1.0}},
        "a setting that nobody gives": TRAIN | {"settings": {}},
        "a setting too large for float32": TRAIN | {"settings": {"learning_rate": 1e39}},
        "a negative number of steps": TRAIN | {"steps": -1},
        "state that is local": TRAIN | {"send": ["moment"]},
        "a pattern of send that nothing matches": TRAIN | {"send": ["v*"]},
        "a pattern of load that nothing matches": TRAIN | {"load": ["v*"]},
        "a plain name to reset that there is not": TRAIN | {"reset": ["velocity"]},
        "a feed that this device has not, where outputs of it are to be sent": LOOK | {"feed": "test"},
        "announced examples that were not announced": LOOK | {"feed": "announced"},
        "an output without a batch": TRAIN | {"epochs": 0, "send": ["gradient"]},
        "training that diverges": TRAIN | {"settings": {"learning_rate": 1e38}, "epochs": 40},
        "a float16 that is too small": TRAIN | {"settings": {"learning_rate": 2.0**17}, "encoding": "float16"},
        "an empty buffer": FED,
        "a change without examples": FED | keep(9, add=True),
        "noise without a seed": LOOK | {"feed": "noise"},
        "a buffer whose name leads elsewhere": FED | {"feed": "kept:../x"},
        "own data that is kept": LOOK | keep(9),
        "a capacity of none": FED | keep(0),
    }
    odd: dict[str, dict[str, Any]] = {
        "a larger batch than the program takes": COUNT | {"batch_size": 5},
        "the whole feed where the batch is fixed": COUNT | {"batch_size": 0},
        "a fraction where the setting is an integer": COUNT | {"settings": {"times": 2.5}},
    }
    found = [story(name, ask(task)) for name, task in tasks.items()]
    found += [story(name, ask(task, tensors={}), bundle="odd", data=PIXELS) for name, task in odd.items()]
    return [
        *found,
        story("one tensor sent twice", ask(TRAIN, TRAIN)),
        story("announced with another shape", ask(TRAIN, tensors={"w": floats(1, 2, 3)})),
        story("announced with another dtype", ask(TRAIN, tensors={"w": floats(1, 2, dtype="float16")})),
        story("announced by a plain name that is no state", ask(TRAIN | {"load": ["v"]}, tensors={"v": floats(1)})),
        story(
            "labels of an unknown class",
            ask(COUNT | {"feed": "announced"}, tensors=_labelled(4)),
            bundle="odd",
            data=PIXELS,
        ),
        story("examples that are not finite", ask(LOOK | {"feed": "announced"}, tensors=_overflowing())),
        story("a first task that is done, a second that fails", ask(TRAIN, TRAIN | {"program": "dream"})),
        story(
            "a setting of the device's own that is not finite",
            ask(TRAIN),
            settings={"class": {}, "own": {"momentum": 1e39}},
        ),
        story(
            "a failed ask leaves the state",
            ask(TRAIN),
            ask(TRAIN | {"program": "dream"}),
            ask(TRAIN | {"load": []}, tensors={}),
        ),
        story(
            "a change of another round's examples",
            ask(FED | keep(9), tensors=digits(1, 2)),
            ask(FED | keep(9, add=True), tensors=W | {"x": floats([1, 0], [1, 0])}, round=2, before=_nonce(1)),
            ask(FED | keep(9, add=True), tensors=W | {"x": floats([1, 0], [1, 0])}, round=1, before="e" * 16),
        ),
    ]


def _labelled(label: int) -> dict[str, Any]:
    return {"x": floats([0, 0]), "y": floats(label, dtype="int64")}


def _overflowing() -> dict[str, Any]:
    return W | {"x": floats([1e300, 0], dtype="float64"), "y": floats(0)}


# --- carrying out -------------------------------------------------------------------------------------------------


def play(told: dict[str, Any], files: dict[str, str]) -> list[dict[str, Any]]:
    """What comes of each ask of a story: a device that reads nothing but the vectors."""
    with tempfile.TemporaryDirectory() as place:
        bundle = unpacked(files, Path(place) / "bundle")
        runtime, private = Runtime(bundle), Private()
        data = {
            feed: fit_to_contract(
                Dataset(from_json(part["x"]), from_json(part["y"])), bundle.manifest.data, f"{feed} data"
            )
            for feed, part in told["data"].items()
        }
        found: list[dict[str, Any]] = []
        for number, one in enumerate(told["asks"]):
            try:
                done = answer(
                    runtime,
                    msgspec.convert(one["tasks"], tuple[Task, ...]),
                    {name: from_json(tensor) for name, tensor in one["tensors"].items()},
                    data,
                    private,
                    device=told["device"],
                    own=all_settings(own=told["settings"]["own"], of_class=told["settings"]["class"]),
                    buffers=Buffers(Path(place) / "kept", round=one["round"], ask=one["nonce"], before=one["before"]),
                )
            except EdgeflError as error:
                found.append({"refused": error.message})
                continue
            private = done.private
            if told.get("again") == number:
                runtime, private = Runtime(bundle), Private(private.tensors)
            reply = {
                "tensors": {name: to_json(tensor) for name, tensor in sorted(done.outcome.tensors.items())},
                "metrics": dict(sorted(done.outcome.metrics.items())),
                "examples": done.outcome.examples,
                "steps": done.outcome.steps,
            }
            kept = {name: to_json(tensor) for name, tensor in sorted(private.tensors.items())}
            found.append({"reply": reply, "changed": done.changed, "private": kept})
        return found


def vectors() -> dict[str, Any]:
    """What tasks.json holds."""
    with tempfile.TemporaryDirectory() as place:
        made = {
            "regression": packed(write_regression(Path(place) / "regression.bundle")),
            "odd": packed(write_odd(Path(place) / "odd.bundle")),
        }
    stories = []
    for told in (*carried_out(), *refused()):
        came = play(told, made[told["bundle"]])
        stories.append(told | {"asks": [one | outcome for one, outcome in zip(told["asks"], came, strict=True)]})
    return {"bundles": made, "stories": stories}


def text() -> str:
    """The file: one file of a bundle, and one ask, a line."""
    made = vectors()
    packs = [
        f'  "{name}": {{\n   ' + ",\n   ".join(f"{json.dumps(path)}: {json.dumps(data)}" for path, data in pack.items())
        for name, pack in made["bundles"].items()
    ]
    stories = []
    for told in made["stories"]:
        about = json.dumps({name: value for name, value in told.items() if name != "asks"})
        stories.append(f'  {about[:-1]}, "asks": [\n   ' + ",\n   ".join(map(json.dumps, told["asks"])) + "\n  ]}")
    return (
        '{\n "bundles": {\n'
        + "\n  },\n".join(packs)
        + '\n  }\n },\n "stories": [\n'
        + ",\n".join(stories)
        + "\n ]\n}\n"
    )


if __name__ == "__main__":
    PATH.write_text(text())
