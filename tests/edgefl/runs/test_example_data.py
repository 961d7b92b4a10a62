"""What examples say of a bundle: the range that they lie in, and what their classes are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefl.errors import DataError
from edgefl.runs.example_data import range_of, with_examples
from edgefl_device.data import Dataset, Splits


def splits(train: Any, test: Any = None, dtype: Any = np.float32) -> Splits:
    parts = [None if x is None else Dataset(np.array(x, dtype), np.zeros(len(x), np.int64)) for x in (train, test)]
    assert parts[0] is not None
    return Splits(parts[0], parts[1])


@pytest.mark.parametrize(
    ("train", "test", "dtype", "said"),
    [
        ([[0.2, 0.9]], None, np.float32, (0, 1)),
        ([[0.2, 0.9]], [[-0.5, 1.0]], np.float32, (-1, 1)),
        ([[0, 17]], [[255, 3]], np.float32, (0, 255)),  # a model that takes raw pixels
        ([[0.5, 3.25]], [[-7, 1]], np.float32, (-7, 3.25)),
        ([[0, 200]], None, np.uint8, (0, 1)),
        ([[0, 200]], None, np.int64, None),  # perhaps tokens
        ([[7, 7]], None, np.float64, (0, 255)),
        ([[300.5, 300.5]], None, np.float32, None),
    ],
)
def test_the_range_that_values_lie_in(train: Any, test: Any, dtype: Any, said: Any) -> None:
    assert range_of(splits(train, test, dtype)) == said


def test_values_that_are_not_finite_have_no_range() -> None:
    with pytest.raises(DataError, match="not finite"):
        range_of(splits([[np.inf, 0]]))


def test_what_nobody_has_said_is_taken_from_the_data(tmp_path: Path) -> None:
    (tmp_path / "animals.csv").write_text("0.5,0.25,dog\n0.5,1,cat\n")
    source = {"data": str(tmp_path / "animals.csv"), "seed": 3}
    assert with_examples(source) == {"seed": 3, "range": (0, 1), "classes": ("cat", "dog")}
    assert with_examples({**source, "range": (0, 9), "classes": ("x", "y")}) == {
        "seed": 3,
        "range": (0, 9),
        "classes": ("x", "y"),
    }
    assert with_examples({"seed": 3}) == {"seed": 3}
