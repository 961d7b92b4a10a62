"""What a device must not forget: its private state and its last reply, in one file that is whole or old.

Both change at the same instant. Were they two files, a crash between the two would lose a reply whose training has
already changed the private state, and the device would train twice for one round.

The file is two safetensors, one behind the other: the private state, with what is known of the reply as its metadata;
then the reply as it travels, to be sent from there. Neither exists as bytes in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edgefl.errors import BundleError, InputError
from edgefl.files import read_bytes, sha256_hex, write_atomic
from edgefl.protocol import Size
from edgefl.tensors import Tensors, load_about, load_tensors, tensor_parts
from edgefl_device.work.upload import Upload


@dataclass(frozen=True)
class Kept:
    """A finished ask: which one, what it answers, and the private state after it."""

    bundle: str  # SHA-256 of the manifest
    round: int
    nonce: str
    examples: int
    steps: int
    metrics: Mapping[str, float]
    reply: Tensors
    private: Tensors


Count = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(max_length=200)]


class _About(msgspec.Struct, frozen=True):
    """What stands in a journal beside its tensors."""

    bundle: Text
    round: Count
    nonce: Text
    examples: Count
    steps: Count
    metrics: dict[str, float]
    upload: Text  # SHA-256 of the reply's bytes
    upload_bytes: Size


class Journal:
    """One run's memory on a device's disk."""

    def __init__(self, directory: Path, run: str) -> None:
        self.path = directory / f"{run}.journal"

    def read(self) -> Kept | None:
        """What was kept last; None at the beginning. Raises InputError when the file is damaged."""
        if not self.path.exists():
            return None
        data = read_bytes(self.path)
        try:
            about = load_about(data, "kept", _About)
            reply = data[max(0, len(data) - about.upload_bytes) :]
            if sha256_hex(reply) != about.upload:
                raise ValueError("its reply is not what was written")
            return Kept(
                bundle=about.bundle,
                round=about.round,
                nonce=about.nonce,
                examples=about.examples,
                steps=about.steps,
                metrics=about.metrics,
                reply=load_tensors(reply, self.path),
                private=load_tensors(data[: -len(reply)], self.path),
            )
        except (BundleError, ValueError) as error:
            raise InputError(
                f"{self.path} is damaged: {error}", hint="delete it to begin this run anew; its private state is lost"
            ) from error

    def write(self, kept: Kept) -> Upload:
        """Keep this instead of what was kept before, durable when it returns; its reply as it lies there."""
        upload = Upload.at_end_of(self.path, kept.reply)
        about = _About(
            bundle=kept.bundle,
            round=kept.round,
            nonce=kept.nonce,
            examples=kept.examples,
            steps=kept.steps,
            metrics=dict(kept.metrics),
            upload=upload.sha256,
            upload_bytes=upload.size_bytes,
        )
        metadata = {"kept": json.dumps(msgspec.structs.asdict(about))}
        write_atomic(self.path, chain(tensor_parts(kept.private, metadata), tensor_parts(kept.reply)))
        return upload
