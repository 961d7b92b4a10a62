"""Named arrays as safetensors: on disk and on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from edgefl.errors import BundleError

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


def save_tensors(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """Named arrays as safetensors bytes, names sorted, so that equal tensors give equal bytes."""
    arrays = {name: np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape) for name in sorted(tensors)}
    return safetensors_save(arrays, metadata)


def load_tensors(data: bytes, where: Path | str) -> dict[str, Array]:
    """Named arrays from safetensors bytes. Raises BundleError when they are damaged."""
    try:
        return dict(safetensors_load(data))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{where}: not safetensors ({error})") from error


def load_metadata(data: bytes) -> dict[str, str]:
    """The text that `save_tensors` was given beside the tensors. Raises ValueError when there is none."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise ValueError("no metadata")
    return dict(header["__metadata__"])
