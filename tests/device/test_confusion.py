"""Which class was taken for which, counted by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from predicting import WEIGHTS, write_predicting

from edgefl_device.data import Dataset
from edgefl_device.work.confusion import can_confuse, confusion

DARK, RED, GREEN = [0, 0], [1, 0], [0, 1]
SEEN = np.array([DARK, DARK, RED, GREEN, GREEN], np.float32).reshape(5, 2, 1, 1)


def test_rows_are_what_it_was_and_columns_what_it_was_taken_for(tmp_path: Path) -> None:
    bundle = write_predicting(tmp_path / "b")
    data = Dataset(SEEN, np.array([0, 1, 1, 2, 0]))
    found = confusion(bundle, data, {"w": WEIGHTS}, batch_size=2)
    assert found.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]


def test_names_count_and_labels_that_are_ignored_do_not(tmp_path: Path) -> None:
    named = Dataset(SEEN, np.array([0, 0, 1, 2, 2]), {0: "dark", 1: "green", 2: "red"})
    bundle = write_predicting(tmp_path / "named")
    assert confusion(bundle, named, {"w": WEIGHTS}, batch_size=8).tolist() == [[2, 0, 0], [0, 0, 2], [0, 1, 0]]
    bundle = write_predicting(tmp_path / "ignoring", ignored_label=-100)
    some = Dataset(SEEN, np.array([0, -100, -100, -100, 2]))
    assert confusion(bundle, some, {"w": WEIGHTS}, batch_size=8).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_what_has_no_single_class_has_no_matrix(tmp_path: Path) -> None:
    manifest = write_predicting(tmp_path / "b").manifest
    assert can_confuse(manifest)
    for change in ({"classes": None, "class_names": ()}, {"labels": (4,)}, {"classes": 1001, "class_names": ()}):
        assert not can_confuse(msgspec.structs.replace(manifest, data=msgspec.structs.replace(manifest.data, **change)))
    assert not can_confuse(msgspec.structs.replace(manifest, programs={}))
