"""How large a packet one broker takes. Few brokers say it: MQTT 3.1.1 has no word for it, and AWS IoT just hangs up."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgefl.files import from_json, write_atomic
from edgefl.protocol import MIN_CHUNK_BYTES

OVERHEAD_BYTES = 1024  # topic, properties and our header, beside a chunk
LEAST_PACKET_BYTES = MIN_CHUNK_BYTES + OVERHEAD_BYTES  # edgefl cannot speak in smaller ones
FILE = "packet-limits.json"
_LOSSES = 2  # one may be the link's


class PacketLimit:
    """What the broker announces, what its address says, and what losses of the connection have shown.

    A connection that is lost twice while a packet is under way that is larger than any that the broker has ever
    acknowledged: then packets have at most half of its size from now on. That is remembered in a file, where there is
    a place for it; who deletes the file has it found anew.
    """

    def __init__(self, broker: str, given: int | None = None, folder: Path | None = None) -> None:
        """`broker`: its address; `given`: what a person says; `folder`: where to remember."""
        self._broker = broker
        self._given = given
        self._path = folder / FILE if folder else None
        self._found = self._read().get(broker)
        self._announced: int | None = None
        self._largest_taken = 0
        self._losses = 0

    @property
    def most_bytes(self) -> int | None:
        """The largest packet to send; None where nothing is known."""
        known = [limit for limit in (self._given, self._announced, self._found) if limit is not None]
        return min(known, default=None)

    def announced(self, most_bytes: int | None) -> None:
        """What the broker says when it accepts a connection; None where it says nothing."""
        self._announced = most_bytes

    def taken(self, packet_bytes: int) -> None:
        """The broker has acknowledged a packet of this size."""
        self._largest_taken = max(self._largest_taken, packet_bytes)

    def lost(self, packet_bytes: int, *, too_large: bool = False) -> bool:
        """The connection is lost, and the largest packet under way had this size; `too_large`: the broker has said that
        this was why. Whether packets are to be smaller from now on."""
        if packet_bytes <= max(self._largest_taken, LEAST_PACKET_BYTES):
            return False
        self._losses += 1
        if self._losses < _LOSSES and not too_large:
            return False
        self._losses = 0
        self._found = max(packet_bytes // 2, self._largest_taken, LEAST_PACKET_BYTES)
        if self._path is not None:
            write_atomic(self._path, msgspec.json.encode({**self._read(), self._broker: self._found}))
        return True

    def _read(self) -> dict[str, int]:
        if self._path is None:
            return {}
        try:
            limits = from_json(self._path.read_bytes(), dict[str, int])
        except (OSError, ValueError):
            return {}  # never written, or damaged: it is found again
        return {broker: limit for broker, limit in limits.items() if limit >= LEAST_PACKET_BYTES}
