"""The formats people have: npz, IDX, CSV, a folder of images per class, and the digits that come with scikit-learn."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset, Splits, check_size
from edgefl_device.data.idx import read_idx
from edgefl_device.data.npz import Npz, open_npz

FEATURE_KEYS = ("x", "features", "images", "data")
LABEL_KEYS = ("y", "labels", "label", "targets", "target")
LABEL_COLUMNS = ("label", "y", "target", "class")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".webp")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")  # by content: a .png that is PostScript runs ghostscript
FORMATS = "an .npz file, IDX files, a .csv file, a folder with one folder of images per class, or the name 'digits'"


def read_splits(source: str | Path) -> Splits:
    """Training examples, and test examples where the source has them. Raises DataError with one clear line.

    npz                 `x` and `y` (also features, images, data; labels, targets), a test split as `x_test`, `y_test`;
                        or `jpeg`, `offset`, `label`: image i is the JPEG file jpeg[offset[i]:offset[i + 1]]
    IDX                 a folder as MNIST comes (train-images-idx3-ubyte[.gz] ...), or one images file with its
                        labels file beside it
    CSV                 one example per row; the label column is called label, y, target or class, else is the last
    folder              train.npz and test.npz; or one folder of images per class, perhaps inside train/ and test/;
                        classes are numbered in the order of their names
    "digits"            scikit-learn's 1,797 images, float32 in 0..1, [1, 8, 8]; every fifth is for testing
    """
    path = Path(source)
    try:
        if str(source) == "digits" and not path.exists():
            return _digits()
        splits = _read(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit in memory", hint="give the device less data") from error
    _check_examples(splits.train, str(path))
    if splits.test is not None:
        _check_examples(splits.test, str(path))
    return splits


def _check_examples(part: Dataset, where: str) -> None:
    """Raise DataError unless each example has a label; what they are is for the contract."""
    features, labels = part.features, part.labels
    if features.ndim == 0 or labels.ndim == 0:
        raise DataError(f"{where}: features and labels must be arrays with one entry per example")
    if len(features) != len(labels):
        raise DataError(
            f"{where}: {len(features)} examples but {len(labels)} labels", hint="every example needs exactly one label"
        )
    if len(features) and not (features.nbytes and labels.nbytes):
        raise DataError(
            f"{where}: {len(features)} examples of nothing: an example has shape {list(features.shape[1:])}"
        )


def _read(path: Path) -> Splits:
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise DataError(f"no data at {path}", hint=f"give {FORMATS}")
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder", hint=f"give {FORMATS}")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".csv":
        return Splits(_csv(path))
    if "idx" in path.name or path.suffix == ".idx":
        return Splits(_idx_pair(path))
    raise DataError(f"{path}: unknown data format", hint=f"give {FORMATS}")


def _folder(path: Path) -> Splits:
    if images := _idx_images(path, "train"):
        test = _idx_images(path, "t10k") or _idx_images(path, "test")
        return Splits(_idx_pair(images), _idx_pair(test) if test else None)
    if (path / "train.npz").is_file():
        train, test_file = _npz(path / "train.npz"), path / "test.npz"
        return Splits(train.train, _npz(test_file).train if test_file.is_file() else train.test)
    if (path / "train").is_dir():
        classes = _class_folders(path / "train")
        test_folder = path / "test"
        return Splits(_images(path / "train", classes), _images(test_folder, classes) if test_folder.is_dir() else None)
    return Splits(_images(path, _class_folders(path)))


# IDX


def _idx_images(folder: Path, prefix: str) -> Path | None:
    found = sorted(folder.glob(f"{prefix}-images*idx*"))
    return found[0] if found else None


def _idx_pair(images: Path) -> Dataset:
    """An images file and the labels file that belongs to it by name."""
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if "images" not in images.name:
        raise DataError(f"{images}: an IDX file of images has 'images' in its name", hint="give the images file")
    beside = [images.parent / name for name in (stem, f"{stem}.gz")]
    labels = next((path for path in beside if path.is_file()), None)
    if labels is None:
        raise DataError(f"{images}: its labels file {stem}[.gz] is not beside it")
    return Dataset(read_idx(images), read_idx(labels))


# npz


def _npz(path: Path) -> Splits:
    with open_npz(path) as archive:
        if all(name in archive for name in ("jpeg", "offset", "label")):
            return Splits(_jpegs(path, archive))
        train = _npz_split(archive, "_train") or _npz_split(archive, "")
        if train is None:
            raise DataError(
                f"{path} holds {', '.join(archive.names) or 'nothing'}; expected arrays 'x' and 'y'",
                hint="save it with numpy.savez(path, x=features, y=labels)",
            )
        return Splits(train, _npz_split(archive, "_test"))


def _npz_split(archive: Npz, suffix: str) -> Dataset | None:
    features = next((key + suffix for key in FEATURE_KEYS if key + suffix in archive), None)
    labels = next((key + suffix for key in LABEL_KEYS if key + suffix in archive), None)
    if features is None or labels is None:
        return None
    return Dataset(archive.read(features), archive.read(labels))


def _jpegs(path: Path, archive: Npz) -> Dataset:
    data, offset = archive.read("jpeg"), archive.read("offset")
    whole = data.dtype == np.uint8 and data.ndim == offset.ndim == 1 and offset.dtype.kind in "iu" and len(offset) > 1
    if not whole or offset[0] < 0 or offset[-1] > len(data) or (offset[1:] < offset[:-1]).any():
        raise DataError(f"{path}: 'offset' does not cut 'jpeg' into images")
    files = [(f"{path}, image {i}", data[a:b].tobytes()) for i, (a, b) in enumerate(pairwise(offset.tolist()))]
    return Dataset(_decode(files), archive.read("label"))


# Images


def _class_folders(path: Path) -> list[str]:
    classes = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    # Folders called 0, 1, ... 10 are class numbers: as text, 10 would come before 2.
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    if not classes:
        raise DataError(f"{path} holds no data that is known", hint=f"give {FORMATS}")
    return classes


def _images(path: Path, classes: list[str]) -> Dataset:
    if unknown := sorted(set(_class_folders(path)) - set(classes)):
        raise DataError(f"{path} has a class {unknown[0]!r} that the training images lack")
    found = [
        (file, number)
        for number, name in enumerate(classes)
        for file in sorted((path / name).glob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise DataError(f"{path}: no images in its {len(classes)} folders", hint=f"known: {', '.join(IMAGE_SUFFIXES)}")
    features = _decode([(str(file), file) for file, _ in found])
    return Dataset(features, np.array([number for _, number in found], np.int64))


def _decode(files: Sequence[tuple[str, bytes | Path]]) -> AnyArray:
    """Images as uint8 [n, channels, height, width]; channels is 1 for grey, 3 for colour."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint="pip install 'edgefl[device]'") from error
    features: AnyArray | None = None  # filled in place: a list of arrays would double the memory
    mode = ""
    for i, (name, content) in enumerate(files):
        if isinstance(content, Path) and not content.is_file():
            raise DataError(f"{name} cannot be read as an image: it is no file")
        with _image_damage(name), Image.open(_opened(content), formats=IMAGE_FORMATS) as image:
            mode = mode or ("L" if image.mode in ("1", "L") else "RGB")  # the first image decides for all
            shape = (1 if mode == "L" else 3, image.height, image.width)
            if features is None:
                check_size(len(files) * math.prod(shape), f"{name}, with {len(files) - 1} of its size,")
                features = np.empty((len(files), *shape), np.uint8)
            if shape != features.shape[1:]:  # before anything is unpacked
                raise DataError(
                    f"{name} is {_size(shape)}; the first image is {_size(features.shape[1:])}",
                    hint="resize the images to one size",
                )
            pixels = np.asarray(image.convert(mode))
            features[i] = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    assert features is not None
    return features


def _opened(content: bytes | Path) -> io.BytesIO | Path:
    return io.BytesIO(content) if isinstance(content, bytes) else content


@contextmanager
def _image_damage(name: str) -> Iterator[None]:
    """What cannot be read in the block becomes a DataError that names the image; Pillow's warnings do, of a bomb."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} has too many pixels: {error}", hint=f"resize it; at most {Image.MAX_IMAGE_PIXELS} pixels are read"
        ) from error
    except DataError:
        raise
    except Exception as error:  # its readers of many formats raise what they like
        raise DataError(f"{name} cannot be read as an image: {str(error) or type(error).__name__}") from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"


# CSV


def _csv(path: Path) -> Dataset:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [(reader.line_num, row) for reader in [csv.reader(file)] for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file: {error}") from error
    header: list[str] = []
    # Labels may be words, so only the other columns tell a header from an example.
    if rows and any(not _is_number(cell) for cell in rows[0][1][:-1]):
        header = [cell.strip().lower() for cell in rows.pop(0)[1]]
    if not rows:
        raise DataError(f"{path}: no examples")
    width = len(header) or len(rows[0][1])
    if width < 2:
        raise DataError(f"{path}: one column; expected features and a label, separated by commas")
    label = next((header.index(name) for name in LABEL_COLUMNS if name in header), width - 1)
    features = np.empty((len(rows), width - 1), np.float32)
    words: list[str] = []
    for i, (line, row) in enumerate(rows):
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} columns; expected {width}")
        words.append(row.pop(label).strip())
        try:
            with np.errstate(over="ignore"):  # infinity is refused with the contract
                features[i] = [float(cell) for cell in row]
        except ValueError:
            wrong = next(cell for cell in row if not _is_number(cell))
            raise DataError(
                f"{path}, line {line}: {wrong!r} is not a number", hint="features must be numbers"
            ) from None
    return Dataset(features, _labels(words))


def _labels(words: list[str]) -> AnyArray:
    """Whole numbers as int64, other numbers as float32, words as class numbers in the order of their names."""
    if all(re.fullmatch(r"[+-]?\d{1,18}", word) for word in words):
        return np.array([int(word) for word in words], np.int64)
    if all(_is_number(word) for word in words):
        with np.errstate(over="ignore"):
            return np.array([float(word) for word in words], np.float32)
    number = {word: i for i, word in enumerate(sorted(set(words)))}  # an array of texts is as wide as the longest
    return np.array([number[word] for word in words], np.int64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# Named


def _digits() -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the data set 'digits' comes with scikit-learn", hint="pip install 'edgefl[demo]'") from error
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)  # pixels are 0..16
    data = Dataset(images[:, None], digits.target.astype(np.int64))
    fifth = np.arange(len(data)) % 5 == 0
    return Splits(data.take(np.flatnonzero(~fifth)), data.take(np.flatnonzero(fifth)))
