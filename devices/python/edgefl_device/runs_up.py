"""Which runs are up on a broker: what it has kept is a hint, what somebody says counts for a while."""

from __future__ import annotations

from edgefl import protocol
from edgefl.errors import ProtocolError
from edgefl.protocol import AggregatorStatus, Assignment
from edgefl.transport import Received


class RunsUp:
    """The runs that a broker speaks of, as far as their aggregators are up."""

    def __init__(self) -> None:
        self._said_s: dict[str, float] = {}  # run -> when somebody last said that it is up
        self._kept: set[str] = set()

    def note(self, event: Received, now_s: float) -> None:
        """A message. What is no aggregator's is passed over."""
        try:
            message, _ = protocol.decode(event.payload)
            run = protocol.run_of(event.topic)
        except ProtocolError:
            return
        if isinstance(message, AggregatorStatus):
            if message.status != "up":
                self._said_s.pop(run, None)
                self._kept.discard(run)
            elif event.retained:
                self._kept.add(run)
            else:
                self._said_s[run] = now_s
        elif isinstance(message, Assignment) and not event.retained:
            self._said_s[run] = now_s  # the answer to our presence

    def said(self, now_s: float) -> set[str]:
        """Of which somebody said it not long ago."""
        return {run for run, said_s in self._said_s.items() if now_s - said_s <= protocol.STATUS_COUNTS_S}

    def kept(self, now_s: float) -> set[str]:
        """Of which only the broker says it: the word may be a dead aggregator's."""
        return self._kept - self.said(now_s)
