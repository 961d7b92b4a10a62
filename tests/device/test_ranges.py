"""Values far outside what the bundle was made for are scaled where they can only be pixels, else refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgefl.data_contract import DataContract, Feature
from edgefl.errors import DataError
from edgefl_device.data import Dataset, batches, fit_all

UNIT = DataContract((Feature((2,), "float32", range=(0.0, 1.0)),))


def data(*rows: Any, dtype: Any = np.float32) -> Dataset:
    return Dataset(np.array(rows, dtype), np.zeros(len(rows), np.int64))


def fed(contract: DataContract, train: Dataset, test: Dataset | None = None, *, as_is: bool = False) -> tuple[Any, str]:
    """What a program is given of the training data, and the note."""
    parts = {"train": train} | ({"test": test} if test is not None else {})
    found, note = fit_all(parts, contract, as_is=as_is)
    [(features, _)] = batches(found["train"], contract, np.arange(len(train)), 0)
    return features["x"].tolist(), note


def refused(contract: DataContract, train: Dataset, test: Dataset | None = None) -> str:
    with pytest.raises(DataError) as caught:
        fed(contract, train, test)
    return caught.value.message


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_whole_numbers_up_to_255_are_pixels_where_the_range_is_0_to_1(dtype: Any) -> None:
    assert fed(UNIT, data([0, 255], [51, 0], dtype=dtype)) == ([[0, 1], [np.float32(0.2), 0]], "scaled by 255")


def test_what_is_within_the_range_stays() -> None:
    assert fed(UNIT, data([0, 1], [1, 1])) == ([[0, 1], [1, 1]], "")
    assert fed(UNIT, data([0.5, 1], [-2, 9.5])) == ([[0.5, 1], [-2, 9.5]], "")  # not far outside


def test_training_and_test_data_are_judged_together() -> None:
    dark = data([0, 1])
    assert fed(UNIT, dark, data([0, 255])) == ([[0, np.float32(1 / 255)]], "scaled by 255")
    mixed = "train and test: values are 0..255, and the bundle was made for 0..1"
    assert refused(UNIT, data([0, 255]), data([0.5, 1])) == mixed
    assert refused(UNIT, data([0, 256])) == "train: values are 0..256, and the bundle was made for 0..1"
    assert refused(UNIT, data([-1, 255])) == "train: values are -1..255, and the bundle was made for 0..1"


def test_uint8_beside_floats_is_judged_by_itself() -> None:
    assert fed(UNIT, data([0, 255], dtype=np.uint8), data([0.5, 1])) == ([[0, 1]], "")


def test_as_is_lets_data_pass_and_says_so() -> None:
    assert fed(UNIT, data([-3, 8841]), as_is=True) == ([[-3, 8841]], "warning: as is, -3..8841 for 0..1")
    assert fed(UNIT, data([0, 255]), as_is=True) == ([[0, 255]], "warning: as is, 0..255 for 0..1")
    assert fed(UNIT, data([0, 1]), as_is=True) == ([[0, 1]], "")


def test_pixels_are_scaled_to_the_range_of_pixels_alone() -> None:
    pixels = data([0, 255], [51, 102], dtype=np.uint8)

    def taken(low: float, high: float) -> Any:
        return np.round(fed(DataContract((Feature((2,), "float32", range=(low, high)),)), pixels)[0], 6).tolist()

    assert taken(0, 1) == [[0, 1], [0.2, 0.4]]
    assert taken(-1, 1) == [[-1, 1], [-0.6, -0.2]]
    assert taken(0, 255) == [[0, 255], [51, 102]]  # a model that takes raw pixels
    assert taken(0, 100) == [[0, 255], [51, 102]]  # no pixels: numbers that fit a byte


def test_whole_numbers_are_pixels_in_no_other_range() -> None:
    symmetric = DataContract((Feature((2,), "float32", range=(-1.0, 1.0)),))
    assert refused(symmetric, data([0, 255])) == "train: values are 0..255, and the bundle was made for -1..1"
    raw = DataContract((Feature((2,), "float32", range=(0.0, 255.0)),))
    assert fed(raw, data([0, 255])) == ([[0, 255]], "")


def test_far_is_also_far_from_a_narrow_range() -> None:
    kelvin = DataContract((Feature((2,), "float32", range=(270.0, 310.0)),))
    assert refused(kelvin, data([-250.0, -200])) == "train: values are -250..-200, and the bundle was made for 270..310"
    assert fed(kelvin, data([250.0, 320]))[1] == ""


def test_without_a_range_only_what_looks_like_pixels_is_noted() -> None:
    anything = DataContract((Feature((2,), "float32"),))
    note = "warning: whole numbers 0..255, and the bundle states no range"
    assert fed(anything, data([0, 255])) == ([[0, 255]], note)
    assert fed(anything, data([0.5, 1e6])) == ([[0.5, 1e6]], "")


def test_tokens_outside_their_range_are_refused_whatever_their_owner_says() -> None:
    tokens = DataContract((Feature((2,), "int64", range=(0.0, 9.0)),))
    assert fed(tokens, data([0, 9], dtype=np.int64)) == ([[0, 9]], "")
    with pytest.raises(DataError, match=r"train: values are 0\.\.10; the bundle takes 0\.\.9"):
        fed(tokens, data([0, 10], dtype=np.int32), as_is=True)


SEVERAL = DataContract(
    (
        Feature((4,), "int64", name="tokens", range=(0.0, 9.0)),
        Feature((4,), "float32", name="there", mask_of="tokens"),
        Feature((1,), "float32", name="age", range=(0.0, 1.0)),
    )
)


def test_several_features_are_arrays_of_their_names_and_a_mask_is_made() -> None:
    data = Dataset(
        np.array([[1, 2, 3], [4, 0, 0]]),
        np.zeros(2, np.int64),
        others={"age": np.array([20, 30])},
        lengths=np.array([3, 1]),
    )
    found, note = fit_all({"train": data}, SEVERAL)
    [(features, _)] = batches(found["train"].take(np.array([1, 0])), SEVERAL, np.array([1, 0]), 0)
    assert features["tokens"].tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert features["there"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(features["age"], [[20 / 255], [30 / 255]], rtol=1e-6)
    assert note == "age: scaled by 255"


def test_a_feature_that_data_lack_is_named() -> None:
    lacking = Dataset(np.zeros((2, 4), np.int64), np.zeros(2, np.int64))
    with pytest.raises(DataError, match="train: no array 'age'; the bundle takes tokens, there, age"):
        fit_all({"train": lacking}, SEVERAL)
    short = Dataset(np.zeros((2, 4), np.int64), np.zeros(2, np.int64), others={"age": np.zeros(1)})
    with pytest.raises(DataError, match="'age' has not one entry for each of 2 examples"):
        fit_all({"train": short}, SEVERAL)
