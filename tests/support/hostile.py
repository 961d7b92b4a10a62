"""A device that speaks the protocol and means harm: it trains nothing, and answers each round with what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from chunking import chunks

from edgefl import protocol
from edgefl.address import Address
from edgefl.files import sha256_hex
from edgefl.mqtt import Connection
from edgefl.protocol import AggregatorStatus, Announcement, Offer, Permit, Presence, UploadChunk
from edgefl.tensors import Array
from edgefl.transport import Received

Answer = Callable[[int], tuple[Mapping[str, Array], int]]  # round -> tensors, examples


class Hostile(threading.Thread):
    """Joins the run whose aggregator it hears, until that has finished."""

    def __init__(self, url: str, name: str, answer: Answer, *, states: int) -> None:
        super().__init__(daemon=True)
        self.name_, self._answer, self._states = name, answer, states
        self.run_ = ""
        self.receipts: list[tuple[int, str, str]] = []  # round, status, reason
        self._offer: tuple[Offer, bytes] | None = None
        self._connection = Connection(Address.parse(url), f"hostile-{name}")

    def run(self) -> None:
        self._connection.subscribe(protocol.aggregator_topic("+"))
        self._connection.connect()
        try:
            while self._handle(self._connection.inbox.get(timeout=60)):
                pass
        finally:
            self._connection.close()

    def _handle(self, event: object) -> bool:
        """Whether the run goes on."""
        if not isinstance(event, Received):
            return True
        message, _ = protocol.decode(event.payload)
        match message:
            case AggregatorStatus(status="finished"):
                return False
            case AggregatorStatus(status="up") if not self.run_:
                self._join(protocol.run_of(event.topic))
            case Announcement() if self.name_ in message.devices:
                self._reply(message)
            case Permit() if self._offer is not None and message.upload == self._offer[0].upload:
                for index, body in chunks(self._offer[1], protocol.CHUNK_BYTES, list(message.missing)):
                    self._up(UploadChunk(message.upload, index), body)
            case protocol.Receipt():
                self.receipts.append((message.round, message.status, message.reason))
        return True

    def _join(self, run: str) -> None:
        self.run_ = run
        self._connection.subscribe(protocol.round_topic(run), protocol.down_topic(run, self.name_))
        presence = Presence(self.name_, 1, "up", instance="hostile", train_examples=self._states)
        self._connection.publish(protocol.device_topic(run, self.name_), protocol.encode(presence), retain=True)

    def _reply(self, announcement: Announcement) -> None:
        tensors, examples = self._answer(announcement.round)
        data = protocol.tensors_to_bytes(tensors)
        offer = Offer(
            self.name_,
            announcement.round,
            announcement.nonce,
            sha256_hex(data),
            len(data),
            protocol.CHUNK_BYTES,
            examples,
            {"train.examples": float(examples), "train.loss": 1e300},
        )
        self._offer = (offer, data)
        self._up(offer)

    def _up(self, message: protocol.Message, body: bytes | memoryview = b"") -> None:
        self._connection.publish(protocol.up_topic(self.run_, self.name_), protocol.encode(message, body))
