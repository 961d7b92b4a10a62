"""What a run knows of its devices, for people: what each states of itself, and what was seen of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from edgefl.protocol import Presence


class Known(msgspec.Struct, frozen=True):
    """One device.

    examples, test_examples, memory_mb, cores, runtime, data     as it states
    name            of its class
    label_counts    how many training examples of each class it states; None where it does not say
    failures        asks that it failed, or whose reply was refused
    missed          rounds that were closed without it, though it was there and had not failed
    first_seen_s, last_seen_s     of the run, over all its starts
    bytes_up        on the wire
    """

    examples: int = 0
    test_examples: int = 0
    name: str = msgspec.field(default="", name="class")
    memory_mb: int = 0
    cores: int = 0
    runtime: str = ""
    label_counts: dict[str, int] | None = None
    data: str = ""
    failures: int = 0
    missed: int = 0
    first_seen_s: float = 0.0
    last_seen_s: float = 0.0
    bytes_up: int = 0


class Fleet:
    """The devices of a run by name; `known` are those of its earlier starts."""

    def __init__(self, known: Mapping[str, Known]) -> None:
        self.known = dict(known)

    def states(self, presence: Presence, class_name: str, class_names: Sequence[str], elapsed_s: float) -> bool:
        """A device says what it is; whether its note about its data is a new one, and is not empty."""
        before = self.known.get(presence.device)
        counts = dict(zip(class_names or map(str, range(len(presence.label_counts))), presence.label_counts))  # noqa: B905
        self.known[presence.device] = replace(
            before or Known(first_seen_s=round(elapsed_s, 3)),
            examples=presence.train_examples,
            test_examples=presence.test_examples,
            name=class_name,
            memory_mb=presence.memory_mb,
            cores=presence.cores,
            runtime=presence.runtime,
            label_counts=counts or None,
            data=presence.data or (before.data if before else ""),
        )
        return bool(presence.data) and (before is None or before.data != presence.data)

    def heard(self, device: str, wire_bytes: int, elapsed_s: float) -> None:
        """A message of so many bytes has come."""
        if one := self.known.get(device):
            self.known[device] = replace(one, bytes_up=one.bytes_up + wire_bytes, last_seen_s=round(elapsed_s, 3))

    def failed(self, device: str) -> None:
        if one := self.known.get(device):
            self.known[device] = replace(one, failures=one.failures + 1)

    def missed(self, devices: Sequence[str]) -> None:
        for device in devices:
            if one := self.known.get(device):
                self.known[device] = replace(one, missed=one.missed + 1)
