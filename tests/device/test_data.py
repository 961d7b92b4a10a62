"""Data at the door: every format read back, every misfit refused with one line, batches as the contract says."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgefl.errors import DataError
from edgefl.manifest import DataContract, Normalisation
from edgefl_device.data import Dataset, batches, fit_to_contract, read, read_splits

IMAGES = DataContract(features=(1, 2, 2), dtype="float32", classes=3)
PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([2, 0, 1], np.uint8)


def idx(array: np.ndarray, code: int = 0x08, shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def refused(source: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read_splits(source)
    assert "\n" not in caught.value.message
    return caught.value.message


def misfit(features: np.ndarray, labels: np.ndarray, contract: DataContract = IMAGES) -> str:
    with pytest.raises(DataError) as caught:
        fit_to_contract(Dataset(features, labels), contract, "my.npz")
    assert "\n" not in caught.value.message
    return caught.value.message


# IDX


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


# npz


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


# CSV


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


# Images


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (3, 2), color: object = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # type: ignore[arg-type]


def test_a_folder_of_images_per_class(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "b.png")
    save(tmp_path / "cat" / "a.png", color=(1, 2, 3))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = read(tmp_path)
    assert data.features.shape == (2, 3, 2, 3)
    assert data.features[0, :, 0, 0].tolist() == [1, 2, 3]
    assert data.labels.tolist() == [0, 1]  # cat, dog


def test_numbered_classes_and_grey_images(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        save(tmp_path / "train" / name / "a.png", "L", color=int(name))
    save(tmp_path / "test" / "10" / "a.png", "L", color=7)
    splits = read_splits(tmp_path)
    assert splits.train.features[:, 0, 0, 0].tolist() == [0, 2, 10]
    assert splits.train.labels.tolist() == [0, 1, 2]
    assert splits.test is not None and splits.test.labels.tolist() == [2]


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    assert "holds no data that is known" in refused(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "no images in its 1 folders" in refused(tmp_path)
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "cat" / "b.png", size=(4, 4))
    assert refused(tmp_path).endswith("b.png is 4x4; the first image is 3x2")
    (tmp_path / "cat" / "b.png").write_bytes(b"no image")
    assert "b.png cannot be read as an image" in refused(tmp_path)


# Named, and unknown


def test_digits() -> None:
    # In its own process: scikit-learn's imports are not ours to keep free of warnings.
    code = (
        "from edgefl_device.data import read_splits\n"
        "s = read_splits('digits')\n"
        "for d in (s.train, s.test):\n"
        "    print(d.features.shape, d.features.dtype, d.features.min(), d.features.max(), d.labels[:5].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    train, test = done.stdout.splitlines()
    # load_digits begins 0 1 2 ... 9 0 1 ...; every fifth, from the first, is for testing
    assert train == "(1437, 1, 8, 8) float32 0.0 1.0 [1, 2, 3, 4, 6]"
    assert test == "(360, 1, 8, 8) float32 0.0 1.0 [0, 5, 0, 5, 0]"


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError) as caught:
        read("digits")
    assert caught.value.hint == "pip install 'edgefl[demo]'"


def test_unknown_sources(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").startswith("no data at ")
    (tmp_path / "data.xyz").write_bytes(b"")
    assert refused(tmp_path / "data.xyz").endswith("unknown data format")


# The contract


def test_what_fits_without_a_change_of_meaning() -> None:
    fitted = fit_to_contract(Dataset(PIXELS, LABELS), IMAGES, "here")  # a channel dimension is added
    assert fitted.features.shape == (3, 1, 2, 2) and fitted.features.dtype == np.uint8
    assert fitted.labels.dtype == np.int64
    flat = DataContract(features=(4,), dtype="float32", classes=3)
    assert fit_to_contract(Dataset(PIXELS[:, None], LABELS), flat, "here").features.shape == (3, 4)
    floats = fit_to_contract(Dataset(PIXELS.astype(np.float64), LABELS.astype(np.float32)[:, None]), flat, "here")
    assert floats.features.dtype == np.float32 and floats.labels.tolist() == [2, 0, 1]
    tokens = DataContract(features=(4,), dtype="int64", classes=3)
    assert fit_to_contract(Dataset(PIXELS.astype(np.int32), LABELS), tokens, "here").features.dtype == np.int64


def test_misfits_are_named() -> None:
    nan, floats = np.zeros((3, 2, 2)), PIXELS.astype(np.float32)
    nan[1, 0, 1] = np.nan
    assert misfit(PIXELS[:0], LABELS[:0]) == "my.npz: no examples"
    assert misfit(PIXELS, LABELS[:2]) == "my.npz: 3 examples but 2 labels"
    assert misfit(np.zeros((3, 3, 2)), LABELS) == "my.npz: an example has shape [3, 2]; expected [1, 2, 2]"
    assert misfit(np.zeros((3, 4)), LABELS) == "my.npz: an example has shape [4]; expected [1, 2, 2]"
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
    regression = DataContract(features=(1, 2, 2), dtype="float32", labels_dtype="float32")
    assert misfit(PIXELS, np.array([0, np.inf, 0]), regression) == "my.npz: label 1 is inf; expected finite numbers"
    bytes_only = DataContract(features=(1, 2, 2), dtype="uint8", classes=3)
    assert "features at 0 are 300" in misfit(np.full((3, 2, 2), 300), LABELS, bytes_only)
    three_means = DataContract(
        features=(1, 2, 2), dtype="float32", normalisation=Normalisation((0.1, 0.2, 0.3), (1.0,))
    )
    assert "normalises 3 channels but its features have 1" in misfit(PIXELS, LABELS, three_means)


def test_channels_last_gets_the_right_hint() -> None:
    contract = DataContract(features=(3, 2, 4), dtype="float32")
    with pytest.raises(DataError) as caught:
        fit_to_contract(Dataset(np.zeros((1, 2, 4, 3)), np.zeros(1)), contract, "here")
    assert caught.value.hint is not None and "transpose" in caught.value.hint


def test_batches_by_hand() -> None:
    contract = DataContract(
        features=(2, 1, 1), dtype="float32", classes=9, normalisation=Normalisation((0.5, 0.0), (0.5, 2.0))
    )
    pixels = np.array([[0, 0], [255, 255], [51, 102]], np.uint8).reshape(3, 2, 1, 1)
    data = fit_to_contract(Dataset(pixels, np.array([4, 5, 6])), contract, "here")
    first, last = batches(data, contract, np.array([2, 1, 0]), 2)
    np.testing.assert_allclose(first[0].reshape(2, 2), [[-0.6, 0.2], [1.0, 0.5]], rtol=1e-6)
    assert first[1].tolist() == [6, 5]
    assert last[0].reshape(-1).tolist() == [-1, 0] and last[1].tolist() == [4]
    for x, y in (first, last):
        assert x.dtype == np.float32 and x.flags.c_contiguous and y.dtype == np.int64 and y.flags.c_contiguous
    assert pixels[1, 0, 0, 0] == 255  # the data is not changed


def test_floats_are_normalised_but_not_scaled() -> None:
    contract = DataContract(features=(1,), dtype="float32", normalisation=Normalisation((1.0,), (2.0,)))
    data = fit_to_contract(Dataset(np.array([[5.0]], np.float32), np.array([0])), contract, "here")
    for _ in range(2):  # twice: the first pass must not change the data
        [(x, _y)] = batches(data, contract, np.arange(1), 0)
        assert x.tolist() == [[2.0]]
