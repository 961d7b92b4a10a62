"""Named arrays as safetensors: on disk and on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from edgefl.errors import BundleError
from edgefl.files import Kind, from_json

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


def save_tensors(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """Named arrays as safetensors bytes, names sorted, so that equal tensors give equal bytes."""
    arrays = {name: np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape) for name in sorted(tensors)}
    return safetensors_save(arrays, metadata)


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
