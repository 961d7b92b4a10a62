"""Rows of numbers and a label: what is a header, which column is the label, and what is refused by its line."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from read_refused import refused

from edgefl.errors import DataError
from edgefl_device.sources import read, read_splits


def written(folder: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "features", "labels"),
    [
        ("a,b,label\n1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1]),
        ("Label,a,b\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]], [0, 1]),
        ("1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1]),
        ("0,1,label\n1,2,0\n", [[1, 2]], [0]),  # columns that are called by numbers, as pandas does
        ("1.5,2,setosa\n-3e1,4,iris\n", [[1.5, 2], [-30, 4]], [1, 0]),
        ("a,result\n1,0.5\n\n2,1\n", [[1], [2]], [0.5, 1]),
        ("a;b;label\r\n1;2;0\r\n", [[1, 2]], [0]),
        ("1\t2\t7\n", [[1, 2]], [7]),
        ('a, "b, c", label\n1, "2", "cat"\n', [[1, 2]], [0]),
        ("\ufeff\n \na,label\n1,0\n   \n2,1\n\n", [[1], [2]], [0, 1]),
        ("1,2\n1,2.5", [[1], [1]], [2, 2.5]),
        (b"a,label\r1,0\r2,1\r", [[1], [2]], [0, 1]),
    ],
)
def test_csv(tmp_path: Path, text: str | bytes, features: list[list[float]], labels: list[float]) -> None:
    data = read(written(tmp_path, text))
    np.testing.assert_array_equal(data.features, features)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.features.dtype == np.float32


def test_words_are_names_and_numbers_have_none(tmp_path: Path) -> None:
    data = read(written(tmp_path, "1,dog\n2,cat\n3,dog\n"))
    assert data.labels.tolist() == [1, 0, 1] and data.labels.dtype == np.int64
    assert data.names == {0: "cat", 1: "dog"}
    assert read(written(tmp_path, "1,7\n")).names is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no examples"),
        ("a,b,label\n", "no examples"),
        ("1\n2\n", "one column; expected features and a label"),
        ("1,2,0\n3,1\n", "line 2: 2 columns; expected 3"),
        ("1,2,0\n3,x,1\n", "line 2: 'x' is not a number"),
        ("1,2,0\n\n1,,1\n", "line 3: '' is not a number"),
        ("1,2,0\n1_000,2,1\n", "line 2: '1_000' is not a number"),
        ("1,oops,0\n1,2,0\n", "line 1: 'oops' is not a number"),
        ("cat,1,2\ndog,3,4\n", "line 1: 'cat' is not a number"),
        ("1,2,0\n3,4,\n", "line 2: the label is empty"),
        ("1,0\n2,cat\n", "line 2: the label 'cat' is no number, as those before it are"),
        ("1,0.5\n2,cat\n", "line 2: the label 'cat' is no number, as those before it are"),
        ("1,cat\n2,0\n", "line 2: the label '0' is a number, and those before it are words"),
        ("x,y,class\n1,2,cat\n", "each of y, class could be the label"),
        (",a,label\n0,1,2\n", "column 1 has no name"),
        ("a;b\n1,5;0\n", "line 2: '1,5' is not a number"),
        ("1,5;2,5;0\n", "line 1: '1,5' is not a number"),
        ("1,2\n".encode("utf-16"), "is not a CSV file"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in refused(written(tmp_path, text))


def test_decimal_commas_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, "a;label\n1,5;0\n"))
    assert caught.value.hint == "write decimals with a point"


def test_the_label_is_a_column_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "x,Species,y\n1,cat,2\n3,dog,4\n")
    splits = read_splits(path, label="species")
    assert splits.train.features.tolist() == [[1, 2], [3, 4]]
    assert splits.train.names == {0: "cat", 1: "dog"}
    with pytest.raises(DataError) as caught:
        read(path, label="specis")
    assert caught.value.message == f"{path} has no column 'specis'; its columns are x, Species, y"
    assert caught.value.hint == "did you mean 'Species'?"


def test_a_label_by_name_needs_names(tmp_path: Path) -> None:
    path = written(tmp_path, "1,2\n")
    with pytest.raises(DataError, match="has no column 'species': its first row does not name the columns"):
        read(path, label="species")
    np.savez(tmp_path / "a.npz", x=np.zeros(1), y=np.zeros(1))
    with pytest.raises(DataError, match="has no column 'species': it is no table"):
        read(tmp_path / "a.npz", label="species")


def test_a_label_that_was_guessed_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, "a,species\n1,cat\n")
    assert read_splits(path).notes == ("the label is the last column, 'species'",)
    assert read_splits(path, label="species").notes == ()
    assert read_splits(written(tmp_path, "a,label\n1,cat\n")).notes == ()


@pytest.mark.parametrize("labels", [[0, 1, 2], ["cat", "dog", "mouse"], [0.5, 1.25, 1e-3]], ids=str)
@pytest.mark.parametrize("columns", [5, 40])
def test_memory_is_little_more_than_the_array(tmp_path: Path, columns: int, labels: list[object]) -> None:
    rows = np.random.default_rng(0).random((100_000 // columns, columns)).round(6)
    lines = (",".join(map(str, row)) + f",{labels[i % 3]}\n" for i, row in enumerate(rows.tolist()))
    path = written(tmp_path, "".join(lines))
    read(path)  # what is imported, is
    tracemalloc.start()
    try:
        data = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(data.features, rows.astype(np.float32))
    assert peak < 2.5 * data.features.nbytes
