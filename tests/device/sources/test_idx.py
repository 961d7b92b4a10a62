"""IDX files read back, and every kind of damage refused with one line."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from read_refused import refused

from edgefl_device.sources import read, read_splits

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([2, 0, 1], np.uint8)


def idx(array: np.ndarray, code: int = 0x08, shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder_as_mnist_comes(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix else bytes
    for prefix, images, labels in (("train", PIXELS, LABELS), ("t10k", PIXELS[:1], LABELS[:1])):
        (tmp_path / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    splits = read_splits(tmp_path)
    np.testing.assert_array_equal(splits.train.features, PIXELS)
    np.testing.assert_array_equal(splits.train.labels, LABELS)
    assert splits.train.features.dtype == np.uint8
    assert splits.test is not None and len(splits.test) == 1
    one = read(tmp_path / f"train-images-idx3-ubyte{suffix}")
    np.testing.assert_array_equal(one.labels, LABELS)


def test_idx_wider_numbers_become_native(tmp_path: Path) -> None:
    (tmp_path / "a-images.idx").write_bytes(idx(np.array([[1.5, -2]], ">f4"), 0x0D))
    (tmp_path / "a-labels.idx").write_bytes(idx(np.array([-3], ">i4"), 0x0C))
    data = read(tmp_path / "a-images.idx")
    assert data.features.dtype == np.float32 and data.features.dtype.isnative
    np.testing.assert_array_equal(data.features, [[1.5, -2]])
    np.testing.assert_array_equal(data.labels, [-3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x89PNG1234", "begins with 89 50 4e 47"),
        (bytes([0, 0, 8, 3, 0, 0]), "ends inside its header"),
        (idx(PIXELS, shape=(4, 2, 2)), "the header says 4x2x2, 16 bytes; the file has only 12"),
        (idx(PIXELS, shape=(2, 2, 2)), "the header says 2x2x2, 8 bytes; the file has more"),
        (gzip.compress(idx(PIXELS), mtime=0)[:-9], "is damaged"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    assert message in refused(tmp_path)


def test_an_idx_header_cannot_make_us_allocate(tmp_path: Path) -> None:
    """The header claims 2^64 bytes and more; a reader that believed it would fail with a MemoryError."""
    huge = (2**32 - 1,) * 3
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(PIXELS, shape=huge))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    assert "the file has only 12" in refused(tmp_path)


def test_idx_without_labels(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(PIXELS))
    assert "labels file train-labels-idx1-ubyte[.gz] is not beside it" in refused(tmp_path)
