"""Data at the door: every misfit refused with one line, batches as the contract says."""

from __future__ import annotations

import numpy as np
import pytest

from edgefl.data_contract import DataContract, Feature, Normalisation
from edgefl.errors import DataError
from edgefl_device.data import Dataset, batches, fit_to_contract

IMAGES = DataContract((Feature((1, 2, 2), "float32"),), classes=3)
PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([2, 0, 1], np.uint8)


def misfit(features: np.ndarray, labels: np.ndarray, contract: DataContract = IMAGES) -> str:
    with pytest.raises(DataError) as caught:
        fit_to_contract(Dataset(features, labels), contract, "my.npz")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_fits_without_a_change_of_meaning() -> None:
    fitted = fit_to_contract(Dataset(PIXELS, LABELS), IMAGES, "here")  # a channel dimension is added
    assert fitted.features.shape == (3, 1, 2, 2) and fitted.features.dtype == np.uint8
    assert fitted.labels.dtype == np.int64
    flat = DataContract((Feature((4,), "float32"),), classes=3)
    assert fit_to_contract(Dataset(PIXELS[:, None], LABELS), flat, "here").features.shape == (3, 4)
    floats = fit_to_contract(Dataset(PIXELS.astype(np.float64), LABELS.astype(np.float32)[:, None]), flat, "here")
    assert floats.features.dtype == np.float32 and floats.labels.tolist() == [2, 0, 1]
    row = fit_to_contract(Dataset(PIXELS.reshape(3, 4), LABELS), IMAGES, "here")  # as a CSV has them
    np.testing.assert_array_equal(row.features, PIXELS[:, None])
    tokens = DataContract((Feature((4,), "int64"),), classes=3)
    assert fit_to_contract(Dataset(PIXELS.astype(np.int32), LABELS), tokens, "here").features.dtype == np.int64


def test_the_first_feature_goes_by_its_name_wherever_it_stands_in_the_source() -> None:
    ages, tokens = np.array([[20], [30]]), np.array([[1, 2], [3, 4]])
    data = Dataset(ages, np.zeros(2, np.int64), others={"age": ages, "tokens": tokens})
    contract = DataContract((Feature((2,), "int64", name="tokens"), Feature((1,), "int64", name="age")))
    fitted = fit_to_contract(data, contract, "here")
    assert fitted.features.tolist() == tokens.tolist() and fitted.others["age"].tolist() == ages.tolist()


def test_misfits_are_named() -> None:
    nan, floats = np.zeros((3, 2, 2)), PIXELS.astype(np.float32)
    nan[1, 0, 1] = np.nan
    assert misfit(PIXELS[:0], LABELS[:0]) == "my.npz: no examples"
    assert misfit(PIXELS, LABELS[:2]) == "my.npz: 3 examples but 2 labels"
    assert misfit(np.zeros((3, 3, 2)), LABELS) == "my.npz: an example has shape [3, 2]; expected [1, 2, 2]"
    assert misfit(np.zeros((3, 5)), LABELS) == "my.npz: an example has shape [5]; expected [1, 2, 2]"
    assert misfit(floats.astype(str), LABELS) == "my.npz: features are <U32; expected numbers"
    assert misfit(nan, LABELS).startswith("my.npz: example 1 has a feature that is nan; expected finite float32")
    assert misfit(nan + 1e200, LABELS).startswith("my.npz: example 0 has a feature that is 1e+200;")
    assert misfit(PIXELS, np.array([0, 3, 9])) == "my.npz: label 1 is 3; expected 0..2"
    assert misfit(PIXELS, np.array([0, 1, -1])) == "my.npz: label 2 is -1; expected 0..2"
    assert misfit(PIXELS, np.array([0, 1.5, 0])) == (
        "my.npz: labels at 1 are 1.5, which is not a whole number that fits int64"
    )
    assert misfit(PIXELS, np.array(["a", "b", "c"])) == "my.npz: labels are <U1; expected numbers"
    assert misfit(PIXELS, np.eye(3)) == "my.npz: a label has shape [3]; expected []"
    regression = DataContract((Feature((1, 2, 2), "float32"),), labels_dtype="float32")
    assert (
        misfit(PIXELS, np.array([0, np.inf, 0]), regression)
        == "my.npz: label 1 is inf; expected finite float32 numbers"
    )
    bytes_only = DataContract((Feature((1, 2, 2), "uint8"),), classes=3)
    assert "features at 0 are 300" in misfit(np.full((3, 2, 2), 300), LABELS, bytes_only)


def test_channels_last_gets_the_right_hint() -> None:
    contract = DataContract((Feature((3, 2, 4), "float32"),))
    with pytest.raises(DataError) as caught:
        fit_to_contract(Dataset(np.zeros((1, 2, 4, 3)), np.zeros(1)), contract, "here")
    assert caught.value.hint is not None and "transpose" in caught.value.hint


def test_batches_by_hand() -> None:
    normalised = Normalisation((0.5, 0.0), (0.5, 2.0))
    contract = DataContract((Feature((2, 1, 1), "float32", normalisation=normalised),), classes=9)
    pixels = np.array([[0, 0], [255, 255], [51, 102]], np.uint8).reshape(3, 2, 1, 1)
    data = fit_to_contract(Dataset(pixels, np.array([4, 5, 6])), contract, "here")
    first, last = ((x["x"], y) for x, y in batches(data, contract, np.array([2, 1, 0]), 2))
    np.testing.assert_allclose(first[0].reshape(2, 2), [[-0.6, 0.2], [1.0, 0.5]], rtol=1e-6)
    assert first[1].tolist() == [6, 5]
    assert last[0].reshape(-1).tolist() == [-1, 0] and last[1].tolist() == [4]
    for x, y in (first, last):
        assert x.dtype == np.float32 and x.flags.c_contiguous and y.dtype == np.int64 and y.flags.c_contiguous
    assert pixels[1, 0, 0, 0] == 255  # the data is not changed


def test_floats_are_normalised_but_not_scaled() -> None:
    contract = DataContract((Feature((1,), "float32", normalisation=Normalisation((1.0,), (2.0,))),))
    data = fit_to_contract(Dataset(np.array([[5.0]], np.float32), np.array([0])), contract, "here")
    for _ in range(2):  # twice: the first pass must not change the data
        [(x, _y)] = batches(data, contract, np.arange(1), 0)
        assert x["x"].tolist() == [[2.0]]
