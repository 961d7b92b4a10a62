"""Asks that failed, across restarts: one that fails again after a restart is not taken up a third time."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgefl.files import from_json, write_atomic

MOST = 2  # an ask is taken up again once after a restart


class _Failed(msgspec.Struct, frozen=True):
    round: int
    nonce: str
    times: int
    reason: str


class Failures:
    """The last ask of a run that failed, in how many processes, and why."""

    def __init__(self, directory: Path, run: str) -> None:
        self._path = directory / f"{run}.failed"
        self._before = self._read()

    def note(self, key: tuple[int, str], reason: str) -> None:
        """The ask `key`, (round, nonce), has failed; durable when it returns. Counted once for each process: while that
        lives, the aggregator says whether to try again."""
        before = self._before
        same = before is not None and (before.round, before.nonce) == key
        times = before.times + 1 if same and before is not None else 1
        write_atomic(self._path, msgspec.json.encode(_Failed(*key, times, reason)))

    def refuses(self, key: tuple[int, str]) -> str:
        """Why an ask is not taken up: it failed too often before this process began. "" for any other."""
        before = self._before
        if before is None or (before.round, before.nonce) != key or before.times < MOST:
            return ""
        return f"it failed {before.times} times, before and after a restart: {before.reason}"

    def _read(self) -> _Failed | None:
        try:
            return from_json(self._path.read_bytes(), _Failed)
        except (OSError, ValueError):
            return None  # never written, or damaged: then an ask may be tried once more
