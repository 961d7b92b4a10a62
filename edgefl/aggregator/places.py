"""Who has a place in the run: the class and the stated examples of each device, and the newest of its connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgefl.aggregator.classes import DeviceClass, Examples, class_of
from edgefl.protocol import Presence


class Places:
    """`assigned`, `examples`: device -> name of its class, what it stated, of an earlier start of this run."""

    def __init__(
        self, classes: Sequence[DeviceClass], assigned: Mapping[str, str], examples: Mapping[str, Examples]
    ) -> None:
        self.classes = {one.name: one for one in classes}
        self._assigned = {device: self.classes[name] for device, name in assigned.items()}
        self._examples = dict(examples)
        self._connections: dict[str, Presence] = {}
        self._restated: set[str] = set()  # who has stated its examples anew in this round

    def __contains__(self, device: str) -> bool:
        return device in self._assigned

    def __len__(self) -> int:
        return len(self._assigned)

    def of(self, device: str) -> DeviceClass:
        """The class of a device that has a place."""
        return self._assigned[device]

    def examples_of(self, device: str) -> Examples | None:
        """What a device stated last."""
        return self._examples.get(device)

    def suiting(self, presence: Presence) -> DeviceClass | None:
        """The class a device had before, else the first that suits it."""
        return self._assigned.get(presence.device) or class_of(presence, self.classes.values())

    def take(self, device: str, one: DeviceClass, examples: Examples) -> bool:
        """Give a device a place of this class; whether something is new, which has to be durable before the device
        hears of it. What it states counts once a round, for it is written down each time."""
        if device in self._restated or self._examples.get(device) == examples:
            return False
        self._restated.add(device)
        self._assigned[device], self._examples[device] = one, examples
        return True

    def next_round(self) -> None:
        self._restated.clear()

    def is_newest(self, presence: Presence) -> bool:
        """Whether nothing newer is known of the device."""
        known = self._connections.get(presence.device)
        if known is None:
            return True
        if known.instance == presence.instance:
            return presence.session >= known.session  # else a late will of a connection that the device has replaced
        return presence.status == "up"  # else the will of a process that another one has replaced

    def connected(self, presence: Presence) -> None:
        """This is the newest."""
        self._connections[presence.device] = presence
