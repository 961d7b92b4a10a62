"""npz, NumPy's archive of arrays: a zip whose members are .npy files.

Read without NumPy's own reader, which believes headers: it allocates what they claim, and takes compressions that make
gigabytes of a few bytes. Source of the format: numpy/lib/format.py.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset, Splits, check_size
from edgefl_device.sources import images

FEATURE_KEYS = ("x", "features", "images", "data")
CLASSES = "classes"  # texts: what labels 0, 1, ... are called
LENGTHS = "lengths"  # how much of each example is there: see `Dataset`
LABEL_KEYS = ("y", "labels", "label", "targets", "target")
MAX_HEADER_BYTES = 10_000  # as NumPy: a longer one might take Python's parser down
MAX_DIMENSIONS = 32  # NumPy 1 has no more
CHUNK_BYTES = 2**20
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # made of bounded pieces, and all that NumPy writes
_HEADERS = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),  # bytes of the header's length, and what reads both
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}


def read_npz(path: Path) -> Splits:
    with open_npz(path) as archive:
        if all(name in archive for name in ("jpeg", "offset", "label")):
            return Splits(_jpegs(path, archive))
        names = _names(archive)
        train = _split(archive, "_train", names) or _split(archive, "", names)
        if train is None:
            raise DataError(
                f"{path} holds {', '.join(archive.names) or 'nothing'}; expected arrays 'x' and 'y'",
                hint="save it with numpy.savez(path, x=features, y=labels)",
            )
        return Splits(train, _split(archive, "_test", names))


def _names(archive: Npz) -> dict[int, str] | None:
    """Label -> name, where `classes` holds texts."""
    classes = archive.read(CLASSES) if CLASSES in archive else None
    if classes is None or classes.dtype.kind != "U" or classes.ndim != 1:
        return None
    return dict(enumerate(classes.tolist()))


def _split(archive: Npz, suffix: str, names: dict[int, str] | None) -> Dataset | None:
    features = next((key + suffix for key in FEATURE_KEYS if key + suffix in archive), None)
    labels = next((key + suffix for key in LABEL_KEYS if key + suffix in archive), None)
    if features is None or labels is None:
        return None
    values = archive.read(labels)
    named = {name: key for name, key in _names_in(archive, suffix).items() if key not in (features, labels)}
    # A bundle takes the names that it knows, so what is no feature does no harm.
    count = values.shape[0] if values.ndim else 0
    others = {name: archive.read(key) for name, key in named.items() if archive.entries(key) == count}
    lengths = others.pop(LENGTHS, None)
    if lengths is not None and (lengths.ndim != 1 or lengths.dtype.kind not in "iu"):
        raise DataError(f"{archive.path}: 'lengths' is {lengths.dtype} {list(lengths.shape)}; expected whole numbers")
    return Dataset(archive.read(features), values, names, others, lengths)


def _names_in(archive: Npz, suffix: str) -> dict[str, str]:
    """Name -> the array's key, of one part."""
    keys = [key for key in archive.names if key.endswith(suffix) and (suffix or not key.endswith(("_train", "_test")))]
    return {key.removesuffix(suffix): key for key in keys if key != CLASSES}


def _jpegs(path: Path, archive: Npz) -> Dataset:
    data, offset = archive.read("jpeg"), archive.read("offset")
    whole = data.dtype == np.uint8 and data.ndim == offset.ndim == 1 and offset.dtype.kind in "iu" and len(offset) > 1
    if not whole or offset[0] < 0 or offset[-1] > len(data) or (offset[1:] < offset[:-1]).any():
        raise DataError(f"{path}: 'offset' does not cut 'jpeg' into images")
    files: list[images.File] = [
        (f"{path}, image {i}", data[a:b].tobytes()) for i, (a, b) in enumerate(pairwise(offset.tolist()))
    ]
    return Dataset(images.decode(files, images.survey(files)), archive.read("label"))


class Npz:
    """An open archive. Each array is read when it is wanted."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    @property
    def names(self) -> list[str]:
        return sorted(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def entries(self, name: str) -> int | None:
        """The length of an array's first dimension; None where it has none, or is of Python objects."""
        info = self._members[name]
        if info.compress_type not in COMPRESSIONS:
            return None
        with _damage(self.path), self._archive.open(info) as file:
            _, shape, _, dtype = _header(file)
        return shape[0] if shape and not dtype.hasobject else None

    def read(self, name: str) -> AnyArray:
        """An array. Raises DataError when it is damaged, too large, or of Python objects."""
        info = self._members[name]
        if info.compress_type not in COMPRESSIONS:
            raise DataError(
                f"{self.path}: {name!r} is compressed in a way that is not read",
                hint="save it with numpy.savez or numpy.savez_compressed",
            )
        with _damage(self.path), self._archive.open(info) as file:
            header_bytes, shape, fortran, dtype = _header(file)
            if dtype.hasobject:
                raise DataError(
                    f"{self.path} holds Python objects, which are not read: they could run any code",
                    hint="save plain arrays: numpy.savez(path, x=..., y=...) with equal shapes",
                )
            size_bytes = math.prod(shape) * dtype.itemsize
            if size_bytes != info.file_size - header_bytes:
                raise ValueError(f"{name!r} says {size_bytes} bytes and has {info.file_size - header_bytes}")
            check_size(size_bytes, f"{self.path}: {name!r}", file_bytes=self.path.stat().st_size)
            data = np.empty(size_bytes, np.uint8)
            _fill(file, data.data)
            array: AnyArray = np.ndarray(shape, dtype, data, order="F" if fortran else "C")
            return array


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Raises DataError when the file is no archive; its arrays are not read yet."""
    with _damage(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield Npz(path, archive)


def _header(file: Any) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """How long the header is, and the array's shape, whether its first index runs fastest, and dtype."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"format {version[0]}.{version[1]} of .npy is not read")
    width, reader = _HEADERS[version]
    start = file.read(width)
    length = int.from_bytes(start, "little")
    if len(start) < width or length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes; expected at most {MAX_HEADER_BYTES}")
    with warnings.catch_warnings():  # of headers that Python 2 wrote, and of odd ones
        warnings.simplefilter("ignore")
        shape, fortran, dtype = reader(io.BytesIO(start + file.read(length)))
    if len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape):
        raise ValueError(f"its shape is {list(shape)[:MAX_DIMENSIONS]}")
    return np.lib.format.MAGIC_LEN + width + length, shape, fortran, dtype


def _fill(file: Any, view: memoryview) -> None:
    """Read all of a member, whose end zipfile compares with its CRC-32."""
    at = 0
    while chunk := file.read(CHUNK_BYTES):
        if at + len(chunk) > len(view):
            raise ValueError("it is longer than it says")
        view[at : at + len(chunk)] = chunk
        at += len(chunk)
    if at < len(view):
        raise EOFError(f"it ends after {at} of {len(view)} bytes")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, tokenize, ast and struct raise what they like
        raise DataError(f"{path} is not an npz file: {str(error) or type(error).__name__}") from error
