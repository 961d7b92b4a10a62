"""npz archives by the names that people give their arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_refused import refused

from edgefl_device.sources import read_splits

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([2, 0, 1], np.uint8)


@pytest.mark.parametrize("names", [("x", "y"), ("features", "labels"), ("images", "targets"), ("x_train", "y_train")])
def test_npz(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **{names[0]: PIXELS, names[1]: LABELS})
    splits = read_splits(path)
    np.testing.assert_array_equal(splits.train.features, PIXELS)
    np.testing.assert_array_equal(splits.train.labels, LABELS)
    assert splits.test is None


def test_npz_with_two_splits(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[1:], y_test=LABELS[1:])
    splits = read_splits(path)
    assert len(splits.train) == 3
    assert splits.test is not None
    np.testing.assert_array_equal(splits.test.labels, [0, 1])


def test_further_arrays_with_one_entry_per_example_are_features_by_name(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    more = {"age": [20, 30, 40], "lengths": [1, 2, 2], "mean": [0.5], "names": np.array([print] * 3, object)}
    np.savez(path, x=PIXELS, y=LABELS, **more, x_test=PIXELS[:1], y_test=LABELS[:1], age_test=[50])
    splits = read_splits(path)
    assert {name: array.tolist() for name, array in splits.train.others.items()} == {"age": [20, 30, 40]}
    assert splits.train.lengths is not None and splits.train.lengths.tolist() == [1, 2, 2]
    assert splits.test is not None and splits.test.lengths is None
    np.savez(tmp_path / "odd.npz", x=PIXELS, y=LABELS, lengths=[[1.5]] * 3)
    assert refused(tmp_path / "odd.npz").endswith("'lengths' is float64 [3, 1]; expected whole numbers")
    assert {name: array.tolist() for name, array in splits.test.others.items()} == {"age": [50]}


def test_npz_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([print, 1], object), y=LABELS)
    assert "holds Python objects, which are not read" in refused(path)


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"not a zip")
    assert "is not an npz file" in refused(path)
    np.savez(path, a=PIXELS)
    assert refused(path).endswith("holds a; expected arrays 'x' and 'y'")
    np.savez(path, x=PIXELS, y=LABELS)
    path.write_bytes(path.read_bytes()[:-40])
    assert "is not an npz file" in refused(path)


def test_npz_of_jpegs(tmp_path: Path) -> None:
    files = []
    for grey in (0, 200):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 4), (grey, grey, grey)).save(buffer, "jpeg", quality=95)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offset = np.cumsum([0, *map(len, files)])
    for name, labels in (("train", [3, 9]), ("test", [1, 2])):
        np.savez(tmp_path / f"{name}.npz", jpeg=np.concatenate(files), offset=offset, label=np.array(labels, np.uint8))
    splits = read_splits(tmp_path)
    assert splits.train.features.shape == (2, 3, 4, 8)  # channels, height, width
    assert splits.train.features.dtype == np.uint8
    assert splits.train.features[0].max() <= 2 and abs(int(splits.train.features[1].min()) - 200) <= 2
    assert splits.test is not None and splits.test.labels.tolist() == [1, 2]
    np.savez(tmp_path / "train.npz", jpeg=files[0], offset=offset, label=np.array([3, 9]))
    assert "'offset' does not cut 'jpeg' into images" in refused(tmp_path)
