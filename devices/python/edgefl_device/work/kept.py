"""Buffers of examples on a device's disk, first in, first out: what tasks keep of announced examples.

    STATE/RUN.kept/BUFFER/ROUND.safetensors      "x", and "y" where there is one, as announced

A file for each round that kept something, whole or absent. Doing an ask again replaces its file by an equal one. An
aggregator that goes back to an earlier round takes the later files with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edgefl.errors import DataError, EdgeflError, InputError
from edgefl.feeds import BUFFER
from edgefl.files import read_bytes, sync_directory, write_atomic
from edgefl.method import Keep
from edgefl.tensors import Array, Tensors, load_about, load_tensors, save_tensors

FEATURES, LABELS = "x", "y"


@dataclass(frozen=True)
class _Entry:
    """What one round kept.

    ask         the nonce of the ask that it is of
    since       the round whose examples these are with the changes of all rounds since; `round` where there were none
    capacity    of the buffer, from then on
    """

    round: int
    ask: str
    since: int
    capacity: int
    tensors: Tensors

    def __len__(self) -> int:
        return len(self.tensors[FEATURES])


class _About(msgspec.Struct, frozen=True):
    """What stands in an entry's file beside its tensors."""

    ask: Annotated[str, Meta(max_length=200)]
    since: Annotated[int, Meta(ge=0, le=2**53)]
    capacity: Annotated[int, Meta(ge=1, le=2**53)]


class Buffers:
    """The buffers as one ask sees them: `keep` and `examples` while it is planned, `save` before its programs run."""

    def __init__(self, folder: Path, *, round: int, ask: str | None = None, before: str | None = None) -> None:
        """`folder` holds a folder for each buffer. `ask` and `before` are the nonces of this ask and of that of the
        round before: a run that goes back may ask something else in a round. Without them, the round's number says all.
        """
        self._folder = folder
        self._round = round
        self._ask = str(round) if ask is None else ask
        self._before = str(round - 1) if before is None else before
        self._new: dict[str, _Entry] = {}

    def keep(self, keep: Keep, examples: Tensors, where: str) -> None:
        """Note what a task keeps. Raises InputError for what cannot be kept, its line beginning with `where`."""
        if FEATURES not in examples:
            raise InputError(f"{where}: keep needs the tensor {FEATURES!r}, which was not announced")
        if keep.add:
            self._new[keep.buffer] = self._changed(keep, examples[FEATURES], where)
        else:
            chosen = _checked(examples, where)
            self._new[keep.buffer] = _Entry(self._round, self._ask, self._round, keep.capacity, chosen)

    def examples(self, buffer: str, where: str) -> dict[str, Array]:
        """The newest examples of a buffer, as many as its capacity, oldest first: "x", and "y" where they have one.

        Raises DataError for a buffer that is empty, damaged or of examples that do not go together.
        """
        entries = self._entries(buffer, self._new.get(buffer))[::-1]
        if not entries:
            raise DataError(f"{where}: buffer {buffer!r} is empty", hint="a task keeps examples in it first")
        first = entries[0]
        for entry in entries[1:]:
            if _kind(entry) != _kind(first):
                raise DataError(
                    f"{where}: buffer {buffer!r} holds {_kind(first)} of round {first.round + 1} and {_kind(entry)} of "
                    f"round {entry.round + 1}",
                    hint="keep examples of one kind in a buffer",
                )
        newest = slice(-entries[-1].capacity, None)
        return {name: np.concatenate([e.tensors[name] for e in entries])[newest] for name in first.tensors}

    def save(self) -> None:
        """Put what `keep` has noted on disk, durably, and remove what has left. Raises EdgeflError when that fails."""
        for buffer, entry in self._new.items():
            try:
                self._write(buffer, entry)
            except OSError as error:
                raise EdgeflError(
                    f"cannot keep examples in buffer {buffer!r}: {error.strerror or error} ({self._folder})",
                    hint="does the device's disk have room?",
                ) from error

    def _write(self, buffer: str, entry: _Entry) -> None:
        about = _About(entry.ask, entry.since, entry.capacity)
        data = save_tensors(entry.tensors, {"about": json.dumps(msgspec.structs.asdict(about))})
        write_atomic(self._path(buffer, entry.round), data)
        stay = {one.round for one in self._entries(buffer, entry)}
        gone = [number for number in self._rounds(buffer) if number not in stay]
        for number in gone:
            self._path(buffer, number).unlink()
        if any(number > entry.round for number in gone):  # an older one that a crash brings back is passed over
            sync_directory(self._folder / buffer)

    def _entries(self, buffer: str, newest: _Entry | None) -> list[_Entry]:
        """Newest first, as many as the buffer's capacity wants; of the rounds before this one, and `newest` before all.

        An entry that was changed takes the place of those that it was before.
        """
        entries = [] if newest is None else [newest]
        for number in reversed(self._rounds(buffer)):
            if entries and sum(map(len, entries)) >= entries[0].capacity:
                break
            if number < (entries[-1].since if entries else self._round):
                entries.append(self._read(buffer, number))
        return entries

    def _changed(self, keep: Keep, change: Array, where: str) -> _Entry:
        """The newest entry with a change added; where this ask has done that before, what it made."""
        rounds = [number for number in self._rounds(keep.buffer) if number <= self._round]
        newest = self._read(keep.buffer, rounds[-1]) if rounds else None
        if newest is not None and (newest.round, newest.ask) == (self._round, self._ask):
            return newest
        if newest is None or (newest.round, newest.ask) != (self._round - 1, self._before):
            has = "is empty" if newest is None else f"is of round {newest.round + 1}"
            again = " of before a restart" if newest is not None and newest.round >= self._round - 1 else ""
            raise InputError(
                f"{where}: the announced change is of the examples of round {self._round}, but buffer {keep.buffer!r} "
                f"{has}{again}",
                hint="the device takes part again when examples are announced as a whole",
            )
        old = newest.tensors[FEATURES]
        if old.dtype.kind != "f" or change.dtype.kind != "f" or old.shape != change.shape:
            raise InputError(
                f"{where}: a change of {change.dtype} {list(change.shape)} cannot be added to {old.dtype} "
                f"{list(old.shape)}; expected floats of one shape"
            )
        x = old.astype(np.float32) + change.astype(np.float32)
        return _Entry(self._round, self._ask, newest.since, keep.capacity, {**newest.tensors, FEATURES: x})

    def _read(self, buffer: str, number: int) -> _Entry:
        path = self._path(buffer, number)
        hint = "delete it; the examples in it are lost"
        try:
            data = read_bytes(path)
            about = load_about(data, "about", _About)
            tensors = load_tensors(data, path)
        except (InputError, ValueError) as error:
            said = error.message if isinstance(error, InputError) else f"{path} cannot be read: {error}"
            raise DataError(said, hint=hint) from error
        x = tensors.get(FEATURES)
        if x is None or any(value.ndim == 0 or len(value) != len(x) for value in (x, *tensors.values())):
            raise DataError(f"{path} cannot be read: it does not hold one entry per example", hint=hint)
        if about.since > number:
            raise DataError(f"{path} cannot be read: it is since round {about.since + 1}", hint=hint)
        return _Entry(number, about.ask, about.since, about.capacity, tensors)

    def _rounds(self, buffer: str) -> list[int]:
        """The rounds that a buffer has on disk, in order."""
        folder = self._folder / buffer
        names = [path.stem for path in folder.glob("*.safetensors")] if folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))

    def _path(self, buffer: str, number: int) -> Path:
        assert BUFFER.fullmatch(buffer), buffer  # checked by `edgefl.feeds.fault`
        return self._folder / buffer / f"{number}.safetensors"


def _checked(examples: Tensors, where: str) -> Tensors:
    """ "x", and "y" where there is one, of at least one example."""
    kept = {name: examples[name] for name in (FEATURES, LABELS) if name in examples}
    if any(value.ndim == 0 or len(value) != len(kept[FEATURES]) or len(value) == 0 for value in kept.values()):
        shapes = " and ".join(f"{name!r} {list(value.shape)}" for name, value in kept.items())
        raise InputError(f"{where}: announced were {shapes}; expected one entry per example, and at least one")
    return kept


def _kind(entry: _Entry) -> str:
    """What entries must have in common to be one feed."""
    return " with ".join(f"{n!r} {v.dtype} {list(v.shape[1:])}" for n, v in sorted(entry.tensors.items()))
