"""A bundle's word on what data it takes: checked at the door, before anybody's data are held to it."""

from __future__ import annotations

import unicodedata

import msgspec
import pytest

from edgefl.data_contract import DataContract, Feature, Normalisation, check_data
from edgefl.errors import BundleError

IMAGE = Feature((3, 4, 4), "float32", range=(0.0, 1.0))
TOKENS = Feature((8,), "int64", name="tokens", range=(0.0, 99.0))
THERE = Feature((8,), "float32", name="there", mask_of="tokens")
TWO = DataContract((IMAGE,), classes=2, class_names=("cat", "dog"), ignored_label=-100)


@pytest.mark.parametrize(
    "contract", [DataContract((Feature((), "float32"),)), TWO, DataContract((IMAGE, TOKENS, THERE), classes=1)]
)
def test_contracts_that_can_be_met(contract: DataContract) -> None:
    check_data(msgspec.json.decode(msgspec.json.encode(contract), type=DataContract), "m")


def test_one_feature_is_as_simple_as_it_looks() -> None:
    assert msgspec.json.encode(DataContract((Feature((2,), "float32"),))) == (
        b'{"features":[{"shape":[2],"dtype":"float32"}]}'
    )
    assert TWO.feature is IMAGE and TWO.has("") and TWO.has("x") and not TWO.has("tokens")
    both = DataContract((IMAGE, TOKENS))
    assert both.has("tokens") and not both.has("")
    with pytest.raises(BundleError, match="takes 2 features, x, tokens; expected one"):
        _ = both.feature


DECOMPOSED = unicodedata.normalize("NFD", "é")


@pytest.mark.parametrize(
    ("contract", "fault"),
    [
        (DataContract(()), "no features"),
        (DataContract((IMAGE, IMAGE)), "two features have one name"),
        (DataContract((Feature((2,), "float32", name="y"),)), "feature 'y': expected a name"),
        (DataContract((Feature((2,), "float32", name="a b"),)), "feature 'a b': expected a name"),
        (DataContract((Feature((2, 0), "float32"),)), r"its shape is \[2, 0\]"),
        (DataContract((Feature((2,), "float32", range=(1.0, 1.0)),)), r"its range is 1\.\.1"),
        (DataContract((Feature((2,), "float32", range=(0.0, float("inf"))),)), r"its range is 0\.\.inf"),
        (DataContract((Feature((2,), "float32", normalisation=Normalisation((0.1, 0.2, 0.3))),)), "mean has 3 numbers"),
        (DataContract((Feature((2,), "float32", normalisation=Normalisation(std=(0.0,))),)), "std is 0.0"),
        (DataContract((IMAGE, Feature((3,), "bool", name="m", mask_of="z"))), "mask of 'z'"),
        (DataContract((Feature((8,), "bool", name="m", mask_of="m"),)), "mask of 'm'"),
        (DataContract((TOKENS, Feature((7,), "bool", name="m", mask_of="tokens"))), r"its shape is \[7\]"),
        (DataContract((IMAGE,), labels=(0,)), r"the shape of a label is \[0\]"),
        (DataContract((IMAGE,), classes=0), "0 classes"),
        (DataContract((IMAGE,), class_names=("cat",)), "labels are no class numbers"),
        (DataContract((IMAGE,), classes=3, class_names=("cat", "dog")), "2 class names for 3 classes"),
        (DataContract((IMAGE,), classes=2, class_names=("cat", "cat")), "two classes are called 'cat'"),
        (DataContract((IMAGE,), classes=1, class_names=("",)), "class name ''"),
        (DataContract((IMAGE,), classes=1, class_names=(" cat",)), "class name ' cat'"),
        (DataContract((IMAGE,), classes=1, class_names=("a\nb",)), "class name 'a"),
        (DataContract((IMAGE,), classes=1, class_names=(DECOMPOSED,)), "visible characters"),
        (DataContract((IMAGE,), classes=1, class_names=("x" * 201,)), "visible characters"),
        (DataContract((IMAGE,), ignored_label=-1), "labels -1 are ignored"),
        (DataContract((IMAGE,), labels_dtype="uint8", classes=2, ignored_label=-1), "labels -1 are ignored"),
    ],
)
def test_contracts_that_no_data_can_meet(contract: DataContract, fault: str) -> None:
    with pytest.raises(BundleError, match=f"^m: data: .*{fault}"):
        check_data(contract, "m")
