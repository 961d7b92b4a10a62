"""Write data.json: what becomes of a device's own data before it trains, for every language.

    python tests/vectors/make_data.py

Each case has

    about       what it shows
    contract    `data` of a manifest
    parts       what a device has, "train" and perhaps "test": `x` and `y`, each with dtype, shape and values in
                row-major order; and perhaps `names`, [[label, name], ...]
    as_is       true where its owner lets data pass that are far outside the range; else left out
    fed         what a program is given of the training part, all at once: `x` and `y`
    note        what the device says in the `data` of its presence
    refused     in place of both: what Python says

The rules are in docs/protocol.md, "Examples".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgefl.data_contract import DataContract, Feature, Normalisation
from edgefl.errors import DataError
from edgefl_device.data import Dataset, batches, fit_all

PATH = Path(__file__).parent / "data.json"
UNIT, RAW = (0.0, 1.0), (0.0, 255.0)


def _contract(shape: tuple[int, ...] = (2,), **more: Any) -> DataContract:
    """Of one float32 feature and three classes; what is of the feature goes to it."""
    of_feature = {key: more.pop(key) for key in ("range", "normalisation", "dtype") if key in more}
    feature = Feature(shape, **{"dtype": "float32", **of_feature})
    return DataContract((feature,), **{"classes": 3, **more})


def _array(values: Any, dtype: str) -> dict[str, Any]:
    array = np.array(values, dtype)
    return {"dtype": dtype, "shape": list(array.shape), "values": array.reshape(-1).tolist()}


def _part(x: Any, y: Any = (0,), *, dtype: str = "float32", names: dict[int, str] | None = None) -> dict[str, Any]:
    part = {"x": _array(x, dtype), "y": _array(y, "int64")}
    return part if names is None else {**part, "names": sorted(map(list, names.items()))}


NAMED = {"class_names": ("cat", "dog", "owl")}
RATED = {"class_names": ("1", "2", "3")}
CASES: tuple[tuple[str, DataContract, dict[str, Any], bool], ...] = (
    ("pixels are divided by 255", _contract(), {"train": _part([[0, 51]], dtype="uint8")}, False),
    ("pixels in -1..1", _contract(range=(-1.0, 1.0)), {"train": _part([[0, 255]], dtype="uint8")}, False),
    ("a model that takes raw pixels", _contract(range=RAW), {"train": _part([[0, 255]], dtype="uint8")}, False),
    (
        "one mean for each channel",
        _contract((2, 1, 1), range=UNIT, normalisation=Normalisation((0.5, 0.25), (0.5, 0.25))),
        {"train": _part([[[[255]], [[0]]]], dtype="uint8")},
        False,
    ),
    ("whole numbers are pixels where the range is 0..1", _contract(range=UNIT), {"train": _part([[0, 255]])}, False),
    (
        "both parts are judged together",
        _contract(range=UNIT),
        {"train": _part([[0, 1]]), "test": _part([[0, 255]], dtype="int64")},
        False,
    ),
    (
        "fractions in one of the parts: no pixels",
        _contract(range=UNIT),
        {"train": _part([[0, 255]]), "test": _part([[0.5, 1]])},
        False,
    ),
    ("at most ten times outside", _contract(range=UNIT), {"train": _part([[-2.5, 9.5]])}, False),
    ("far outside", _contract(range=UNIT), {"train": _part([[-3, 8841]])}, False),
    ("far outside, as it is", _contract(range=UNIT), {"train": _part([[-3, 8841]])}, True),
    ("far from a narrow range", _contract(range=(270.0, 310.0)), {"train": _part([[-200.5, 20]])}, False),
    ("perhaps pixels, and no range", _contract(), {"train": _part([[0, 255]])}, False),
    ("tokens outside", _contract(dtype="int64", range=(0.0, 9.0)), {"train": _part([[0, 10]], dtype="int64")}, True),
    ("a row takes the contract's shape", _contract((1, 2, 1)), {"train": _part([[0.5, 1]])}, False),
    ("a channel is added", _contract((1, 1, 2)), {"train": _part([[[0.5, 1]]])}, False),
    ("another shape", _contract((1, 1, 2)), {"train": _part([[1, 2, 3]])}, False),
    (
        "classes by name",
        _contract(**NAMED),
        {"train": _part([[0, 0.5]] * 2, [0, 1], names={0: "dog", 1: "owl"})},
        False,
    ),
    ("another case is another name", _contract(**NAMED), {"train": _part([[0, 0]], names={0: "Dog"})}, False),
    ("names, and the bundle has none", _contract(), {"train": _part([[0, 0]], names={0: "dog"})}, False),
    ("names that are class numbers", _contract(), {"train": _part([[0, 0.5]], [2], names={2: "02"})}, False),
    (
        "accents apart, as some systems write them",
        _contract(class_names=("caf\u00e9", "tea", "rum")),
        {"train": _part([[0, 0.5]], names={0: "cafe\u0301"})},
        False,
    ),
    ("numbers are class numbers", _contract(**NAMED), {"train": _part([[0, 0.5]], [2])}, False),
    ("3 can only be a name", _contract(**RATED), {"train": _part([[0, 0.5]] * 2, [1, 3])}, False),
    ("0 can only be a class number", _contract(**RATED), {"train": _part([[0, 0.5]] * 2, [0, 2])}, False),
    ("1 and 2 can be either", _contract(**RATED), {"train": _part([[0, 0.5]] * 2, [1, 2])}, False),
    (
        "either, but for a 3 in the other part: names",
        _contract(**RATED),
        {"train": _part([[0, 0.5]] * 2, [1, 2]), "test": _part([[0, 0.5]], [3])},
        False,
    ),
    ("an ignored label", _contract(ignored_label=-100), {"train": _part([[0, 0.5]] * 2, [-100, 2])}, False),
    ("no class and not ignored", _contract(ignored_label=-100), {"train": _part([[0, 0.5]], [-1])}, False),
)


def play(case: dict[str, Any]) -> dict[str, Any]:
    """What comes of a case: `fed` and `note`, or `refused`."""
    contract = msgspec.convert(case["contract"], DataContract)
    parts = {name: _dataset(part) for name, part in case["parts"].items()}
    try:
        fitted, note = fit_all(parts, contract, as_is=case.get("as_is", False))
    except DataError as error:
        return {"refused": error.message}
    [(features, labels)] = batches(fitted["train"], contract, np.arange(len(fitted["train"])), 0)
    x = features[contract.feature.name]
    return {"fed": {"x": _array(x, str(x.dtype)), "y": _array(labels, str(labels.dtype))}, "note": note}


def _dataset(part: dict[str, Any]) -> Dataset:
    x, y = (np.array(part[n]["values"], part[n]["dtype"]).reshape(part[n]["shape"]) for n in "xy")
    return Dataset(x, y, dict(part["names"]) if "names" in part else None)


def text() -> str:
    """The file: one case a line."""
    cases = []
    for about, contract, parts, as_is in CASES:
        raw = json.loads(msgspec.json.encode(contract))
        case = {"about": about, "contract": raw, "parts": parts} | ({"as_is": True} if as_is else {})
        cases.append(case | play(case))
    return "[\n " + ",\n ".join(json.dumps(case) for case in cases) + "\n]\n"


if __name__ == "__main__":
    PATH.write_text(text())
