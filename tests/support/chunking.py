"""A payload in memory, cut as it travels."""

from __future__ import annotations

from edgefl.protocol import chunk_count, indices


def chunks(data: bytes, chunk_bytes: int, ranges: list[tuple[int, int]]) -> list[tuple[int, memoryview]]:
    """(index, bytes) of the chunks in `ranges`; all of them where `ranges` is empty. Ranges past the end are cut."""
    view = memoryview(data)
    wanted = indices(ranges, chunk_count(len(data), chunk_bytes))
    return [(i, view[i * chunk_bytes : (i + 1) * chunk_bytes]) for i in wanted]
