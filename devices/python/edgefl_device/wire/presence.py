"""What a device says of itself, and whether what it hears of that name is its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgefl import protocol
from edgefl.errors import one_line
from edgefl.protocol import Outgoing, Presence

AGAIN_S = 3.0  # without an assignment for so long, say again that we are up; doubles up to a minute
AGAIN_MOST_S = 60.0


class OwnPresence:
    """One process's word that it is there: said at every connection, and again until somebody answers."""

    def __init__(
        self, run: str, device: str, instance: str, *, engine: str, capabilities: Mapping[str, int | str]
    ) -> None:
        self._topic = protocol.device_topic(run, device)
        self._device = device
        self._instance = instance
        self._engine = engine
        self._capabilities: Mapping[str, int | str | list[int]] = capabilities
        self._connections = 0
        self._reconnected = False
        self._found: set[tuple[str, int]] = set()  # (instance, session) of what the broker had kept
        self._again_s, self._delay_s = math.inf, AGAIN_S

    def connecting(self) -> Outgoing:
        """Counts a new connection, and gives what the broker shall say when it is lost."""
        self._connections += 1
        return self.say("down")

    def connected(self, now_s: float, *, again: bool) -> Outgoing:
        """The connection stands (again): we are up."""
        self._reconnected = again
        self._again_s = now_s + self._delay_s
        return self.say("up")

    def say(self, status: str) -> Outgoing:
        presence = Presence(
            device=self._device,
            session=self._connections,
            status=status,  # type: ignore[arg-type]
            instance=self._instance,
            engine=self._engine,
            **self._capabilities,  # type: ignore[arg-type]
        )
        return Outgoing(self._topic, protocol.encode(presence), retain=True)

    def note_data(self, note: str, label_counts: Sequence[int] = ()) -> Outgoing:
        """That we are up, with a note about our data and how many there are of each class: later words have it too."""
        said: dict[str, str | list[int]] = {
            "data": one_line(note, protocol.MOST_CHARACTERS),
            "label_counts": list(label_counts),
        }
        self._capabilities = {**self._capabilities, **said}
        return self.say("up")

    @property
    def time_s(self) -> float:
        """When `due` has something to say, as long as nobody has answered."""
        return self._again_s

    def due(self, now_s: float) -> Outgoing | None:
        """That we are up, when it is to be said again; asked only as long as nobody has answered."""
        if now_s < self._again_s:
            return None
        self._delay_s = min(2 * self._delay_s, AGAIN_MOST_S)
        self._again_s = now_s + self._delay_s
        return self.say("up")

    def is_in_conflict(self, heard: Presence, *, retained: bool) -> bool:
        """Whether a presence of our name is another process's, for which we have to make way.

        Our own comes back to us. What we find at our first connection is of somebody who is gone: perhaps of an earlier
        life of this device. What is said later, nobody but a second process can have said. The broker lets only one of
        the two be connected, so each would throw the other out for ever: the one with the greater instance stays.
        Earlier lives have smaller ones.
        """
        words = (heard.instance, heard.session)
        if retained and not self._reconnected:
            self._found.add(words)
        now = heard.status == "up" and not retained
        since = self._reconnected and words not in self._found
        return (now or since) and heard.instance > self._instance
