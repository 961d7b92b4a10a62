"""Named arrays as safetensors: on disk and on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load

from edgefl.errors import BundleError
from edgefl.files import Kind, from_json

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


# The dtypes of safetensors that numpy has, the widest first: the order of the tensors in a file.
_DTYPES = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_ORDER = list(_DTYPES)
_ALIGNED_BYTES = 8  # the header is filled up with spaces to a multiple of it


def save_tensors(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Named arrays as safetensors bytes; equal tensors give equal bytes."""
    return b"".join(tensor_parts(tensors, metadata))


def tensor_parts(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """What `save_tensors` gives, part by part, so that a file or a hash needs no copy of the arrays.

    The bytes are those of the safetensors library, which makes two copies of everything before the first comes out.
    """
    names = sorted(tensors, key=lambda name: (_ORDER.index(tensors[name].dtype.name), name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    stop = 0
    for name in names:
        array, start = tensors[name], stop
        stop += array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, stop)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_BYTES)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        if tensors[name].size:  # an empty array has no memory to look at
            array = np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<"))
            yield array.reshape(-1).view(np.uint8).data


def load_tensors(data: bytes, where: Path | str) -> dict[str, Array]:
    """Named arrays from safetensors bytes. Raises BundleError when they are damaged, or of a dtype numpy lacks."""
    try:
        return dict(safetensors_load(data))
    except KeyError as error:  # of its table of dtypes
        raise BundleError(f"{where}: not safetensors that are read here (dtype {error.args[0]})") from error
    except (SafetensorError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise BundleError(f"{where}: not safetensors ({error})") from error


class _Header(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__")


def load_metadata(data: bytes) -> dict[str, str]:
    """The text that `save_tensors` was given beside the tensors. Raises ValueError when there is none."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError(f"its header has {length} bytes; there are {max(0, len(data) - 8)}")
    return from_json(data[8 : 8 + length], _Header).metadata


def load_about(data: bytes, key: str, kind: type[Kind]) -> Kind:
    """The typed value that stands in the metadata as JSON, under `key`. Raises ValueError when there is none."""
    metadata = load_metadata(data)
    if key not in metadata:
        raise ValueError(f"its metadata lack {key!r}")
    return from_json(metadata[key], kind)
