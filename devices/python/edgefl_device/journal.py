"""What a device must not forget: its private state and its last reply, in one file that is whole or old.

Both change at the same instant. Were they two files, a crash between the two would lose a reply whose training has
already changed the private state, and the device would train twice for one round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgefl.errors import BundleError, InputError
from edgefl.files import write_atomic
from edgefl.tensors import Array, Tensors, load_metadata, load_tensors, save_tensors

_REPLY = "reply."
_STATE = "state."


@dataclass(frozen=True)
class Kept:
    """A finished ask: which one, what it answers, and the private state after it."""

    bundle: str  # SHA-256 of the manifest
    round: int
    nonce: str
    examples: int
    metrics: Mapping[str, float]
    reply: Tensors
    private: Tensors


class Journal:
    """One run's memory on a device's disk."""

    def __init__(self, directory: Path, run: str) -> None:
        self.path = directory / f"{run}.journal"

    def read(self) -> Kept | None:
        """What was kept last; None at the beginning. Raises InputError when the file is damaged."""
        if not self.path.exists():
            return None
        data = self.path.read_bytes()
        try:
            tensors = load_tensors(data, self.path)
            kept = json.loads(load_metadata(data)["kept"])
            return Kept(
                bundle=str(kept["bundle"]),
                round=int(kept["round"]),
                nonce=str(kept["nonce"]),
                examples=int(kept["examples"]),
                metrics={str(k): float(v) for k, v in kept["metrics"].items()},
                reply=_under(_REPLY, tensors),
                private=_under(_STATE, tensors),
            )
        except (BundleError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.path} is damaged: {error}", hint="delete it to begin this run anew; its private state is lost"
            ) from error

    def write(self, kept: Kept) -> None:
        """Keep this instead of what was kept before; durable when it returns."""
        tensors = {_REPLY + k: v for k, v in kept.reply.items()} | {_STATE + k: v for k, v in kept.private.items()}
        about = {
            "bundle": kept.bundle,
            "round": kept.round,
            "nonce": kept.nonce,
            "examples": kept.examples,
            "metrics": dict(kept.metrics),
        }
        write_atomic(self.path, save_tensors(tensors, {"kept": json.dumps(about)}))


def _under(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
