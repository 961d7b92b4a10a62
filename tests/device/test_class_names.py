"""Classes have one numbering in the whole fleet: names are mapped, numbers are taken as they are, doubt is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from edgefl.data_contract import DataContract, Feature
from edgefl.errors import DataError
from edgefl_device.data import Dataset, fit_to_contract

NUMBER = Feature((1,), "float32")


def fitted(labels: Sequence[int], names: Mapping[int, str] | None, contract: DataContract) -> list[int]:
    data = Dataset(np.zeros((len(labels), 1), np.float32), np.array(labels), names)
    return [int(label) for label in fit_to_contract(data, contract, "here").labels]


def refused(labels: Sequence[int], names: Mapping[int, str] | None, contract: DataContract) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        fitted(labels, names, contract)
    return caught.value.message, caught.value.hint or ""


def of(*names: str, classes: int | None = None) -> DataContract:
    return DataContract((NUMBER,), classes=classes or len(names), class_names=names)


def test_words_are_the_contracts_classes_whatever_a_device_calls_them() -> None:
    animals = of("cat", "dog", "owl")
    assert fitted([0, 1, 0], {0: "dog", 1: "owl"}, animals) == [1, 2, 1]
    assert fitted([0], {0: "owl"}, animals) == [2]
    assert fitted([0], {0: "cafe\u0301"}, of("tea", "caf\u00e9")) == [1]  # as macOS writes a folder's name


def test_numbers_in_a_file_are_class_numbers() -> None:
    assert fitted([0, 2], None, of("cat", "dog", "owl")) == [0, 2]
    assert refused([3], None, of("cat", "dog", "owl")) == (
        "here: label 0 is 3; expected 0..2",
        "the bundle knows 3 classes: cat, dog, owl, numbered from 0",
    )


def test_a_name_that_the_contract_lacks_is_refused_with_both_lists() -> None:
    message, hint = refused([0, 1], {0: "Cat", 1: "dog"}, of("cat", "dog"))
    assert message == "here: class 'Cat' is none of the bundle's; the data have Cat, dog, the bundle has cat, dog"
    assert hint == "did you mean 'cat'?"
    many = of(*(f"kind {i}" for i in range(100)))
    message, _ = refused([0], {0: "else"}, many)
    assert message.endswith("kind 10, kind 11 ... (100 in all)")


def test_names_for_a_bundle_without_names_are_refused() -> None:
    message, hint = refused([0, 1], {0: "cat", 1: "dog"}, of(classes=10))
    assert message == "here: classes are called cat, dog; the bundle has 10 classes without names"
    assert "edgefl export --classes" in hint
    words = DataContract((NUMBER,), labels_dtype="float32")
    assert refused([0], {0: "cat"}, words)[0] == "here: labels are words, cat; the bundle's are float32 numbers"


def test_folders_called_by_class_numbers_need_no_names() -> None:
    """5..9 on one device and 0..4 on the other are ten classes, padded with zeros or not."""
    assert fitted([5, 9], {5: "5", 9: "9"}, of(classes=10)) == [5, 9]
    assert fitted([5, 9], {5: "05", 9: "09"}, of(classes=10)) == [5, 9]
    assert refused([10], {10: "10"}, of(classes=10))[0] == "here: label 0 is 10; expected 0..9"
    digits = of(*map(str, range(10)))
    assert fitted([3, 7], {3: "03", 7: "7"}, digits) == [3, 7]
    assert refused([3], {3: "3"}, of("zero", "one", "two", "three"))[0].startswith("here: class '3' is none")
    assert refused([0, 1], {0: "03", 1: "3"}, digits)[0] == "here: two of 03, 3 are one class of the bundle"


def test_classes_that_are_called_by_other_numbers_are_never_shifted_in_silence() -> None:
    ratings = of("1", "2", "3", "4", "5")
    assert fitted([1, 5], {1: "1", 5: "5"}, ratings) == [0, 4]  # folders
    assert fitted([1, 5], None, ratings) == [0, 4]  # 5 is no class number: these are names
    assert fitted([0, 4], None, ratings) == [0, 4]  # 0 is no name: these are class numbers
    message, hint = refused([1, 2, 4], None, ratings)
    assert message == "here: labels 1, 2, 4 are class numbers, and other classes are called so: 1, 2, 3, 4, 5"
    assert "a folder per class" in hint
    assert refused([0, 5], None, ratings)[0] == "here: label 1 is 5; expected 0..4"
    assert fitted([0], None, of("0", "2", "1")) == [0]  # the same either way


def test_labels_that_are_ignored_pass() -> None:
    parts = DataContract((NUMBER,), classes=2, class_names=("sky", "road"), ignored_label=-100)
    assert fitted([0, -100, 1], None, parts) == [0, -100, 1]
    assert refused([0, -99], None, parts)[0] == "here: label 1 is -99; expected 0..1"
    lanes = DataContract((NUMBER,), classes=2, class_names=("1", "2"), ignored_label=-1)
    assert fitted([1, -1, 2], None, lanes) == [0, -1, 1]
