"""A reply on its way to the aggregator: offered until it is answered, sent in the chunks that are permitted."""

from __future__ import annotations

import random

import msgspec

from edgefl import protocol
from edgefl.protocol import Offer, Permit, Receipt, UploadChunk
from edgefl_device.work.journal import Kept
from edgefl_device.work.upload import Upload

AGAIN_S = 3.0  # first repetition of an offer without an answer; doubles up to a minute
AGAIN_MOST_S = 60.0


class Offering:
    """One reply, from its first offer until its round is over."""

    def __init__(
        self, device: str, kept: Kept, upload: Upload, *, chunk_bytes: int, inline_bytes: int, now_s: float
    ) -> None:
        """`due` then offers it at once, with its body where that is no larger than `inline_bytes`."""
        self._upload = upload
        self._offer = Offer(
            device=device,
            round=kept.round,
            nonce=kept.nonce,
            upload=upload.sha256,
            size_bytes=upload.size_bytes,
            chunk_bytes=chunk_bytes,
            examples=kept.examples,
            metrics=dict(kept.metrics),
            steps=kept.steps,
        )
        self._inline = upload.size_bytes <= inline_bytes
        self.accepted = False
        self._again_s = now_s
        self._delay_s = AGAIN_S

    def fit(self, chunk_bytes: int, inline_bytes: int) -> None:
        """The broker takes other packets now than when this was made."""
        self._offer = msgspec.structs.replace(self._offer, chunk_bytes=chunk_bytes)
        self._inline = self._upload.size_bytes <= inline_bytes

    @property
    def key(self) -> tuple[int, str]:
        """Round and nonce of the ask that it answers."""
        return self._offer.round, self._offer.nonce

    @property
    def time_s(self) -> float | None:
        """When `due` has something to say; None once it is accepted."""
        return None if self.accepted else self._again_s

    def due(self, now_s: float) -> tuple[Offer, bytes | memoryview] | None:
        """The offer with its body, when it is to be said (again). A small reply travels in it."""
        if self.accepted or now_s < self._again_s:
            return None
        self._again_s = now_s + self._delay_s * random.uniform(0.8, 1.2)
        self._delay_s = min(2 * self._delay_s, AGAIN_MOST_S)
        return self._offer, self._upload.part(0, self._upload.size_bytes) if self._inline else b""

    def permitted(self, permit: Permit, now_s: float) -> list[tuple[UploadChunk, bytes | memoryview]]:
        """The chunks that the aggregator wants; none where the permit is another reply's."""
        if self._offer.upload != permit.upload:
            return []
        size = self._offer.chunk_bytes
        count = protocol.chunk_count(self._upload.size_bytes, size)
        wanted = protocol.indices(list(permit.missing), count) if permit.missing else []
        parts = [(index, self._upload.part(index * size, (index + 1) * size)) for index in wanted]
        # A chunk that is lost makes no receipt: the offer is then repeated, and the next permit says what is missing.
        self._again_s = now_s + AGAIN_S + 0.1 * len(parts)
        return [(UploadChunk(permit.upload, index), body) for index, body in parts]

    def is_answered_by(self, receipt: Receipt) -> bool:
        return (self._offer.upload, self._offer.round) == (receipt.upload, receipt.round)

    def accept(self) -> None:
        """The aggregator has it. It is kept: an aggregator that restarts has not."""
        self.accepted = True

    def repeat_now(self, now_s: float, *, forgotten: bool = False) -> None:
        """Offer it at once, after a reconnect. `forgotten`: the aggregator restarted, and what it accepted is lost."""
        self.accepted = self.accepted and not forgotten
        self._again_s = now_s
