"""What a device remembers of a run: its private state, and the last reply that it must not do again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgefl_device.work.interpreter import Answer
from edgefl_device.work.journal import Journal, Kept
from edgefl_device.work.private import Private


class Memory:
    """The journal, and what of it is held in memory: all but the reply, which can be as large as the model."""

    def __init__(self, directory: Path, run: str) -> None:
        """Raises InputError when the journal is damaged."""
        self._journal = Journal(directory, run)
        self._kept = _without_reply(self._journal.read())
        self._private = Private() if self._kept is None else Private(self._kept.private)
        self._bundle = None if self._kept is None else self._kept.bundle

    def private(self, bundle: str) -> Private:
        """The private state after the last answer that counts, of the bundle with this SHA-256; that of another fits
        none."""
        return self._private if bundle == self._bundle else Private()

    def keep(self, bundle: str, key: tuple[int, str], answer: Answer) -> Kept:
        """The answer to the ask `key`, (round, nonce), counts. Where it may have changed the private state, that and
        the reply are on disk when this returns; else doing the ask again gives the same, and only the caller has it."""
        kept = Kept(
            bundle=bundle,
            round=key[0],
            nonce=key[1],
            examples=answer.outcome.examples,
            steps=answer.outcome.steps,
            metrics=answer.outcome.metrics,
            reply=answer.outcome.tensors,
            private=answer.private.tensors,
        )
        if answer.changed:
            self._journal.write(kept)
            self._kept = _without_reply(kept)
        if answer.changed or self._bundle in (None, bundle):
            self._bundle, self._private = bundle, answer.private
        return kept

    def reply_to(self, key: tuple[int, str]) -> Kept | None:
        """What is on disk, with its reply, where that answers the ask `key`."""
        if self._kept is None or (self._kept.round, self._kept.nonce) != key:
            return None
        return self._journal.read()


def _without_reply(kept: Kept | None) -> Kept | None:
    return kept and replace(kept, reply={})
