"""What a device must not forget: its private state and its last reply, in one file that is whole or old.

Both change at the same instant. Were they two files, a crash between the two would lose a reply whose training has
already changed the private state, and the device would train twice for one round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edgefl.errors import BundleError, InputError
from edgefl.files import read_bytes, write_atomic
from edgefl.tensors import Array, Tensors, load_about, load_tensors, save_tensors

_REPLY = "reply."
_STATE = "state."


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
            tensors = load_tensors(data, self.path)
            about = load_about(data, "kept", _About)
        except (BundleError, ValueError) as error:
            raise InputError(
                f"{self.path} is damaged: {error}", hint="delete it to begin this run anew; its private state is lost"
            ) from error
        return Kept(**msgspec.structs.asdict(about), reply=_under(_REPLY, tensors), private=_under(_STATE, tensors))

    def write(self, kept: Kept) -> None:
        """Keep this instead of what was kept before; durable when it returns."""
        tensors = {_REPLY + k: v for k, v in kept.reply.items()} | {_STATE + k: v for k, v in kept.private.items()}
        about = _About(kept.bundle, kept.round, kept.nonce, kept.examples, kept.steps, dict(kept.metrics))
        write_atomic(self.path, save_tensors(tensors, {"kept": json.dumps(msgspec.structs.asdict(about))}))


def _under(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
