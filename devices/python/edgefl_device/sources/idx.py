"""IDX, the format MNIST comes in: magic, dimensions, then the values, all big-endian; often gzipped.

Source: http://yann.lecun.com/exdb/mnist/ ("THE IDX FILE FORMAT").
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset, check_size

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CHUNK_BYTES = 2**20
MAX_DIMENSIONS = 32  # NumPy 1 has no more


def find_images(folder: Path, prefix: str) -> Path | None:
    found = sorted(folder.glob(f"{prefix}-images*idx*"))
    return found[0] if found else None


def read_pair(images: Path) -> Dataset:
    """An images file and the labels file that belongs to it by name."""
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if "images" not in images.name:
        raise DataError(f"{images}: an IDX file of images has 'images' in its name", hint="give the images file")
    beside = [images.parent / name for name in (stem, f"{stem}.gz")]
    labels = next((path for path in beside if path.is_file()), None)
    if labels is None:
        raise DataError(f"{images}: its labels file {stem}[.gz] is not beside it")
    return Dataset(read_idx(images), read_idx(labels))


def read_idx(path: Path) -> AnyArray:
    """The array in an IDX file, plain or gzipped. Raises DataError when it is damaged.

    Memory grows with the bytes that are there, never with what the header claims.
    """
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
                raise DataError(f"{path} is not an IDX file: it begins with {magic.hex(' ') or 'nothing'}")
            if not 1 <= magic[3] <= MAX_DIMENSIONS:
                raise DataError(f"{path} is not an IDX file: it has {magic[3]} dimensions")
            dimensions = file.read(4 * magic[3])
            if len(dimensions) < 4 * magic[3]:
                raise DataError(f"{path} ends inside its header", hint="download it again")
            shape = struct.unpack(f">{magic[3]}I", dimensions)
            dtype = np.dtype(DTYPES[magic[2]])
            expected = math.prod(shape) * dtype.itemsize
            if zipped:
                check_size(expected, str(path), file_bytes=path.stat().st_size)
            data = bytearray()
            while len(data) <= expected and (chunk := file.read(min(CHUNK_BYTES, expected + 1 - len(data)))):
                data += chunk
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", hint="download it again") from error
    if len(data) != expected:
        got = f"only {len(data)}" if len(data) < expected else "more"
        raise DataError(
            f"{path}: the header says {'x'.join(map(str, shape))}, {expected} bytes; the file has {got}",
            hint="download it again",
        )
    try:
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    except (ValueError, MemoryError) as error:  # no values, in dimensions that no array has
        raise DataError(f"{path} is damaged: {error}", hint="download it again") from error
