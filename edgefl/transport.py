"""The seam between whoever speaks and whatever carries: what is said to a connection, and what comes back.

`edgefl.mqtt` fills it. A driver (`edgefl.aggregator.serve`, `edgefl_device.taking_part`) knows these names only, but
for the one line that makes its connection.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Protocol

from edgefl.errors import BrokerError


@dataclass(frozen=True)
class Connected:
    """The broker accepted us, for the first time or again. Subscriptions are made anew already."""

    first: bool


@dataclass(frozen=True)
class Disconnected:
    """The connection was lost; it is being made again."""

    reason: str


@dataclass(frozen=True)
class Received:
    """A message. `retained`: the broker had kept it from before our subscription."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True)
class Drained:
    """There is room again, after `room` has said that there is none."""


@dataclass(frozen=True)
class Broken:
    """The connection is over for good."""

    error: BrokerError


Event = Connected | Disconnected | Received | Drained | Broken


class Transport(Protocol):
    """One connection to a broker, by one name. What happens to it arrives in `inbox`, from another thread.

    Messages go out in the order of `publish`, each at least once, also across a loss of the connection: what was not
    acknowledged is sent again, and then what came after it.
    """

    inbox: queue.SimpleQueue[Event]

    @property
    def address(self) -> object:
        """Where the broker is, for a person to read."""
        ...

    def connect(self) -> None:
        """Connect and wait for the broker's answer. Raises BrokerError when it does not come or says no.

        Later losses are repaired by themselves.
        """
        ...

    def subscribe(self, *topics: str) -> None:
        """Receive what comes on these topics, now and after every reconnect."""
        ...

    def unsubscribe(self, topic: str) -> None: ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expires_s: int = 0) -> None:
        """Queue one message, which a broker need not keep for longer than `expires_s`; 0: for ever.

        Raises BrokerError when the broker takes no packet so large.
        """
        ...

    def room(self) -> int:
        """Bytes that may be published now without holding too much; where there is no room, `Drained` says when."""
        ...

    def unsent_bytes(self) -> int:
        """Bytes that were published and that the broker does not have yet."""
        ...

    def part_bytes(self, largest: int, smallest: int) -> int:
        """Payload bytes, at most `largest`, of a message that this broker takes.

        Raises BrokerError below `smallest`.
        """
        ...

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Send what waits, say goodbye (no will)."""
        ...
