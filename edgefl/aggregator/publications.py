"""Blobs that devices wait for, without I/O: who wants which chunks, and which are said next.

A request of 150 bytes may cost a publication of megabytes to everybody. So one publication of each blob is under way at
a time, whoever asks meanwhile adds to it, and what a device has been sent once it is sent again within an allowance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgefl import protocol
from edgefl.aggregator.limits import Limits
from edgefl.protocol import BlobChunk, BlobRequest, Outgoing

COALESCE_S = 0.005  # requests for one blob within this time are answered by one publication
# What a device has been sent, it is sent again at this pace; the first time is free. A link that loses every second
# chunk of a 20 MB model needs half of the burst.
AGAIN_BYTES_PER_S = 2 * 2**20
AGAIN_BURST_BYTES = 32 * 2**20


@dataclass
class _Publication:
    """The chunks that are still to be said, and who asked for them."""

    due_s: float
    devices: set[str] = field(default_factory=set)
    indices: set[int] = field(default_factory=set)


class Publications:
    """What a run's devices may ask for: blobs that stay (`blobs`, by SHA-256), and the announced one of each round."""

    def __init__(self, run: str, blobs: Mapping[str, bytes]) -> None:
        self._run = run
        self._blobs = dict(blobs)
        self._announced: dict[str, bytes] = {}
        self._waiting: dict[str, _Publication] = {}  # by SHA-256
        self._sent: set[tuple[str, str]] = set()  # (device, SHA-256) of what was sent once
        self._again = Limits(AGAIN_BYTES_PER_S, AGAIN_BURST_BYTES)

    def announce(self, sha256: str, data: bytes) -> None:
        """The announced blob, in place of the one before."""
        self._announced = {sha256: data}
        self._sent = {(device, blob) for device, blob in self._sent if self._blob(blob) is not None}

    def want(self, device: str, request: BlobRequest, chunk_bytes: int, now_s: float) -> None:
        """A device asks for chunks of so many bytes; not answered where it has asked for too much."""
        data = self._blob(request.sha256)
        if data is None:
            return  # of a round that is over; the device learns it from the announcement
        wanted = set(protocol.indices(list(request.missing), protocol.chunk_count(len(data), chunk_bytes)))
        waiting = self._waiting.get(request.sha256)
        new = wanted - waiting.indices if waiting else wanted
        cost = min(len(new) * chunk_bytes, AGAIN_BURST_BYTES)
        if (device, request.sha256) in self._sent and not self._again.allows(device, now_s, cost):
            return  # it will ask again
        self._sent.add((device, request.sha256))
        if waiting is None:
            waiting = self._waiting[request.sha256] = _Publication(now_s + COALESCE_S)
        waiting.devices.add(device)
        waiting.indices |= new

    def begin_again(self) -> None:
        """Chunks may have another size now: whoever lacks some asks again."""
        self._waiting.clear()

    def due_s(self) -> list[float]:
        """When the next chunks of each blob may be said."""
        return [publication.due_s for publication in self._waiting.values()]

    def due(self, chunk_bytes: int, room_bytes: int, now_s: float) -> list[tuple[Outgoing, int]]:
        """The next chunks of every blob, as many as there is room for; each with how many devices wait for it."""
        said: list[tuple[Outgoing, int]] = []
        for sha256 in [sha256 for sha256, publication in self._waiting.items() if publication.due_s <= now_s]:
            data, publication = self._blob(sha256), self._waiting[sha256]
            topic = protocol.blob_topic(self._run, sha256)
            for index in sorted(publication.indices):
                if data is None:
                    break  # of a round that is over
                if room_bytes <= 0:
                    return said
                body = memoryview(data)[index * chunk_bytes : (index + 1) * chunk_bytes]
                chunk = Outgoing(topic, protocol.encode(BlobChunk(sha256, len(data), chunk_bytes, index), body))
                said.append((chunk, len(publication.devices)))
                publication.indices.discard(index)
                room_bytes -= len(chunk.payload)
            del self._waiting[sha256]
        return said

    def _blob(self, sha256: str) -> bytes | None:
        return self._announced.get(sha256, self._blobs.get(sha256))
