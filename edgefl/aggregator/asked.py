"""What the open round asks of devices: the frame that announces it, and what a reply to it must hold."""

from __future__ import annotations

from collections.abc import Sequence

from edgefl import protocol
from edgefl.aggregator.checks import (
    check_reply,
    largest_reply_bytes,
    metrics_of,
    most_steps,
    reply_names,
    trained_by,
)
from edgefl.aggregator.classes import DeviceClass, Examples
from edgefl.aggregator.rounds import Announce
from edgefl.aggregator.uploads import UPLOAD_BUDGET_BYTES
from edgefl.method import Ask, Reply
from edgefl.protocol import Announcement, BlobRef, Offer


class Asked:
    """An ask that was announced under `nonce`, as devices of each class understand it."""

    def __init__(self, ask: Ask, nonce: str, classes: Sequence[DeviceClass]) -> None:
        self.nonce = nonce
        self._ask = ask
        self._expected = {one.name: reply_names(ask, one.bundle.manifest) for one in classes}
        self._largest = {name: largest_reply_bytes(names) for name, names in self._expected.items()}
        self._trained_by = {one.name: trained_by(ask, one.bundle.manifest) for one in classes}

    @property
    def measures_test_data(self) -> bool:
        """Whether a task measures something on the devices' own test data, which a device without any leaves out."""
        return any(task.feed == "test" and not task.send for task in self._ask.tasks)

    def largest_upload(self, one: DeviceClass) -> int:
        """The most bytes of a reply of this class."""
        return self._largest[one.name]

    def most_steps(self, one: DeviceClass, examples: int) -> int:
        """How many steps of the optimizer a device of this class with so many examples can take."""
        return most_steps(self._trained_by[one.name], examples)

    def reply(self, offer: Offer, upload: bytes, one: DeviceClass, examples: Examples | None) -> Reply:
        """The reply of a device of this class that states so many examples. Raises ProtocolError where that may not
        count."""
        tensors = protocol.bytes_to_tensors(upload, f"the upload of device {offer.device!r}")
        checked = check_reply(tensors, self._expected[one.name], offer.device, self._ask.certain)
        metrics = metrics_of(self._ask, one.bundle.manifest, offer.metrics, examples)
        return Reply(offer.device, offer.round, offer.examples, checked, metrics, offer.steps)


def announcement_of(
    announce: Announce, tensors: BlobRef, *, epoch: int, small_bytes: int, inline_bytes: int
) -> Announcement:
    """`small_bytes` may travel inside any message, `inline_bytes` where few do."""
    return Announcement(
        epoch=epoch,
        round=announce.round,
        attempt=announce.attempt,
        nonce=announce.nonce,
        duration_s=announce.duration_s,
        devices=list(announce.devices),
        tasks=list(announce.ask.tasks),
        tensors=tensors,
        before=announce.before,
        # All may come at once, and nobody has permitted them.
        inline_bytes=max(small_bytes, min(inline_bytes, UPLOAD_BUDGET_BYTES // len(announce.devices))),
    )


def frame_of(announcement: Announcement, tensors: bytes, *, most_bytes: int, frame_bytes: int) -> bytes:
    """The announcement's frame; with the tensors inside where they are no more than `most_bytes` and the frame no
    larger than `frame_bytes`."""
    alone = protocol.encode(announcement)
    inside = len(tensors) <= most_bytes and len(alone) + len(tensors) <= frame_bytes
    return protocol.encode(announcement, tensors) if inside else alone
