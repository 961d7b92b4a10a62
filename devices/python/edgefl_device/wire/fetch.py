"""Blobs on their way to a device: which chunks are missing, and when to ask again."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from edgefl.errors import RemoteProtocolError
from edgefl.protocol import Assembly, BlobChunk

AGAIN_S = 2.0  # without a chunk for so long, ask for what is missing; doubles up to half a minute
AGAIN_MOST_S = 30.0


@dataclass
class _Fetch:
    size_bytes: int
    again_s: float
    delay_s: float = AGAIN_S
    assembly: Assembly | None = None


class Fetches:
    """The blobs that a device is fetching."""

    def __init__(self) -> None:
        self._fetches: dict[str, _Fetch] = {}

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._fetches

    def add(self, sha256: str, size_bytes: int, now_s: float) -> None:
        """Want a blob; `due` then asks for it at once."""
        self._fetches[sha256] = _Fetch(size_bytes, again_s=now_s)

    def drop(self, sha256: str) -> bool:
        """Want a blob no more; whether it was wanted."""
        return self._fetches.pop(sha256, None) is not None

    def due(self, now_s: float) -> Iterable[tuple[str, list[tuple[int, int]]]]:
        """(SHA-256, missing ranges) of every blob to ask for now; an empty list is all of it."""
        for sha256, fetch in self._fetches.items():
            if now_s >= fetch.again_s:
                fetch.again_s = now_s + fetch.delay_s * random.uniform(0.8, 1.2)
                fetch.delay_s = min(2 * fetch.delay_s, AGAIN_MOST_S)
                yield sha256, fetch.assembly.missing() if fetch.assembly else []

    def take(self, chunk: BlobChunk, body: memoryview, now_s: float) -> bytes | None:
        """Take one chunk; the blob, once it is whole. Raises RemoteProtocolError for a chunk that does not fit."""
        fetch = self._fetches.get(chunk.sha256)
        if fetch is None:
            return None  # a repetition that another device asked for
        if chunk.size_bytes != fetch.size_bytes:
            raise RemoteProtocolError(f"a blob of {chunk.size_bytes} bytes; announced were {fetch.size_bytes}")
        if fetch.assembly is None or fetch.assembly.chunk_bytes != chunk.chunk_bytes:
            fetch.assembly = Assembly(chunk.sha256, chunk.size_bytes, chunk.chunk_bytes)
        fetch.assembly.add(chunk.index, body)
        fetch.delay_s = AGAIN_S
        fetch.again_s = now_s + AGAIN_S * random.uniform(0.8, 1.2)
        if not fetch.assembly.complete:
            return None
        data = fetch.assembly.finish()
        del self._fetches[chunk.sha256]
        return data

    def progress(self) -> tuple[int, int]:
        """Bytes that have come, and bytes that are wanted, of all blobs under way."""
        fetches = self._fetches.values()
        return sum(f.assembly.received_bytes for f in fetches if f.assembly), sum(f.size_bytes for f in fetches)

    def repeat_now(self, now_s: float) -> None:
        """After a reconnect: ask for everything that is missing."""
        for fetch in self._fetches.values():
            fetch.again_s = now_s

    def times(self) -> list[float]:
        return [fetch.again_s for fetch in self._fetches.values()]
