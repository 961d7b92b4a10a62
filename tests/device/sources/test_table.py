"""Rows of numbers and a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from read_refused import refused

from edgefl_device.sources import read


@pytest.mark.parametrize(
    ("text", "features", "labels"),
    [
        ("a,b,label\n1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1]),
        ("Label,a,b\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]], [0, 1]),
        ("1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1]),
        ("1.5,2,setosa\n-3e1,4,iris\n", [[1.5, 2], [-30, 4]], [1, 0]),
        ("a,result\n1,0.5\n\n2,1\n", [[1], [2]], [0.5, 1]),
    ],
)
def test_csv(tmp_path: Path, text: str, features: list[list[float]], labels: list[float]) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    data = read(path)
    np.testing.assert_array_equal(data.features, features)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.features.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no examples"),
        ("a,b,label\n", "no examples"),
        ("1\n2\n", "one column; expected features and a label"),
        ("1,2,0\n3,1\n", "line 2: 2 columns; expected 3"),
        ("1,2,0\n3,x,1\n", "line 2: 'x' is not a number"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    assert message in refused(path)
