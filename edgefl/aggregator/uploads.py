"""Replies on their way to the aggregator, without I/O: who may send chunks, and what has come.

An upload begins with an offer and waits for its permit. What is permitted at one time is bounded, so that a broker
never has to hold the replies of a whole fleet.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefl.protocol import Assembly, Offer, Permit, UploadChunk

UPLOAD_BUDGET_BYTES = 64 * 2**20  # uploads on their way at one time; bounds what the broker has to hold
UPLOAD_STALL_S = 30.0  # an upload without a chunk for so long makes room for the next


@dataclass
class Upload:
    offer: Offer
    assembly: Assembly
    last_s: float
    permitted: bool = False

    def permit(self, now_s: float) -> Permit:
        """Let the device send what is missing."""
        self.permitted, self.last_s = True, now_s
        return Permit(self.offer.upload, self.assembly.missing())


class Uploads:
    """The uploads of a round, one of each device, in the order in which they wait."""

    def __init__(self) -> None:
        self._of: dict[str, Upload] = {}

    def __contains__(self, device: str) -> bool:
        return device in self._of

    def offered(self, offer: Offer, now_s: float) -> Upload:
        """The upload of an offer; an offer that is another than before begins anew."""
        known = self._of.get(offer.device)
        if known is None or known.offer != offer:
            known = Upload(offer, Assembly(offer.upload, offer.size_bytes, offer.chunk_bytes), now_s)
            self._of[offer.device] = known
        return known

    def awaits(self, device: str, chunk: UploadChunk) -> bool:
        """Whether it is a chunk that the device was told to send: these are as many as the upload has."""
        upload = self._of.get(device)
        return upload is not None and upload.permitted and upload.offer.upload == chunk.upload

    def take(self, device: str, chunk: UploadChunk, body: memoryview, now_s: float) -> Upload | None:
        """Add a chunk that is awaited; the upload once it is complete. Raises RemoteProtocolError for one that fits
        nowhere."""
        if not self.awaits(device, chunk):
            return None  # a duplicate of an upload that is complete, or one that stalled: the device will offer again
        upload = self._of[device]
        if not upload.assembly.add(chunk.index, body):
            return None
        upload.last_s = now_s
        return upload if upload.assembly.complete else None

    def drop(self, device: str) -> None:
        self._of.pop(device, None)

    def drop_stalled(self, now_s: float) -> None:
        for device in [d for d, u in self._of.items() if u.permitted and now_s - u.last_s > UPLOAD_STALL_S]:
            del self._of[device]

    def clear(self) -> None:
        self._of.clear()

    def let_others_pass(self) -> None:
        """Uploads that are under way go behind those that wait, and keep what has come: whoever sends one chunk now and
        then holds nobody up for longer than an attempt."""
        for device, upload in [(d, u) for d, u in self._of.items() if u.permitted]:
            upload.permitted = False
            self._of[device] = self._of.pop(device)

    def permits(self, now_s: float) -> list[tuple[str, Permit]]:
        """(device, permit) of the waiting uploads that may begin, first come first served, within the budget. One
        always may."""
        permits = []
        active = sum(upload.offer.size_bytes for upload in self._of.values() if upload.permitted)
        for device, upload in self._of.items():
            if upload.permitted:
                continue
            if active and active + upload.offer.size_bytes > UPLOAD_BUDGET_BYTES:
                break
            active += upload.offer.size_bytes
            permits.append((device, upload.permit(now_s)))
        return permits
