"""A reply's tensors as they travel, in memory or at the end of a file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from edgefl.errors import InputError
from edgefl.files import sha256_hex
from edgefl.tensors import Tensors, save_tensors, tensor_parts


@dataclass(frozen=True)
class Upload:
    """Safetensors of `size_bytes`: `data`, or the last bytes of the file `path`."""

    sha256: str
    size_bytes: int
    data: bytes = b""
    path: Path | None = None

    @classmethod
    def of(cls, tensors: Tensors) -> Upload:
        """In memory."""
        data = save_tensors(tensors)
        return cls(sha256_hex(data), len(data), data)

    @classmethod
    def at_end_of(cls, path: Path, tensors: Tensors) -> Upload:
        """In a file that ends with `tensor_parts(tensors)`, or will."""
        hashed, size_bytes = hashlib.sha256(), 0
        for part in tensor_parts(tensors):
            hashed.update(part)
            size_bytes += len(part)
        return cls(hashed.hexdigest(), size_bytes, path=path)

    def part(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes from `start` to `stop`, or to the end. Raises InputError when the file is gone."""
        if self.path is None:
            return memoryview(self.data)[start:stop]
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(start - self.size_bytes, os.SEEK_END)
                return file.read(max(0, min(stop, self.size_bytes) - start))
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from error
