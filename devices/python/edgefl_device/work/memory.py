"""What a device remembers of a run: its private state, and the last reply that it must not do again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgefl_device.work.interpreter import Answer
from edgefl_device.work.journal import Journal, Kept
from edgefl_device.work.private import Private
from edgefl_device.work.upload import Upload


class Memory:
    """The journal, and what of it is held in memory: all but the reply, which can be as large as the model."""

    def __init__(self, directory: Path, run: str) -> None:
        """Raises InputError when the journal is damaged."""
        self._journal = Journal(directory, run)
        self._last: tuple[Kept, Upload] | None = None
        self._private = Private()
        self._bundle: str | None = None
        if (kept := self._journal.read()) is not None:
            self._last = _without_tensors(kept), Upload.at_end_of(self._journal.path, kept.reply)
            self._private, self._bundle = Private(kept.private), kept.bundle

    def private(self, bundle: str) -> Private:
        """The private state after the last answer that counts, of the bundle with this SHA-256; that of another fits
        none."""
        return self._private if bundle == self._bundle else Private()

    def keep(self, bundle: str, key: tuple[int, str], answer: Answer) -> tuple[Kept, Upload]:
        """The answer to the ask `key`, (round, nonce), counts. Where it may have changed the private state, that and
        the reply are on disk when this returns; else doing the ask again gives the same, and only the caller has it.

        Gives what an offer says, and the reply's tensors as they travel."""
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
        if answer.changed or self._bundle in (None, bundle):
            self._bundle, self._private = bundle, answer.private
        if not answer.changed:
            return _without_tensors(kept), Upload.of(kept.reply)
        self._last = _without_tensors(kept), self._journal.write(kept)
        return self._last

    def reply_to(self, key: tuple[int, str]) -> tuple[Kept, Upload] | None:
        """What is on disk, where that answers the ask `key`."""
        if self._last is None or (self._last[0].round, self._last[0].nonce) != key:
            return None
        return self._last


def _without_tensors(kept: Kept) -> Kept:
    return replace(kept, reply={}, private={})
