"""Messages on their way to a broker: in order, few at a time, and in order again after the connection was lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

IN_FLIGHT = 40  # messages given to the client at a time: paho scans its queue at every acknowledgement
QUEUE_BYTES = 4 * 2**20  # waiting for the broker: who has more to say waits until there is room


@dataclass(frozen=True)
class Waiting:
    """One message to publish."""

    topic: str
    payload: bytes
    retain: bool
    expires_s: int = 0  # 0: never

    @property
    def packet_bytes(self) -> int:
        """At most so many, of MQTT's packet."""
        return len(self.payload) + len(self.topic.encode()) + 64


class Outbox:
    """What waits for the broker, and how much is under way. For several threads at once.

    Its lock is never held while `publish` or `drained` is called: an MQTT client holds a lock of its own while it calls
    back.
    """

    def __init__(self, publish: Callable[[Waiting], None], *, drained: Callable[[], None] = lambda: None) -> None:
        """`publish` gives one message to the client; `drained` is called when there is room again after `room` has said
        that there is none."""
        self._publish = publish
        self._drained = drained
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._room_wanted = False
        self._under_way: deque[int] = deque()  # packet sizes, in the order in which a broker acknowledges them
        self._feeding = False
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()

    def put(self, message: Waiting) -> None:
        """Let a message wait behind all others; `feed` sends it."""
        with self._lock:
            self._idle.clear()
            self._waiting.append(message)
            self._waiting_bytes += len(message.payload)

    def room(self) -> int:
        """Bytes that may wait beside those that do."""
        with self._lock:
            room = max(0, QUEUE_BYTES - self._waiting_bytes)
            self._room_wanted |= room == 0
        return room

    def acknowledged(self) -> int:
        """The broker has one message more; how large its packet was."""
        with self._lock:
            return self._under_way.popleft() if self._under_way else 0

    def unsent_bytes(self) -> int:
        """How many the broker has not acknowledged."""
        with self._lock:
            return self._waiting_bytes + sum(self._under_way)

    def largest_under_way(self) -> int:
        """How large the largest packet is that the broker was given and has not acknowledged; 0 where it has all."""
        with self._lock:
            return max(self._under_way, default=0)

    def drop(self, larger_than_bytes: int) -> None:
        """Leave out what waits in packets that are larger."""
        with self._lock:
            self._waiting = deque(m for m in self._waiting if m.packet_bytes <= larger_than_bytes)
            self._waiting_bytes = sum(len(message.payload) for message in self._waiting)

    def take_back(self, unacknowledged: Callable[[], Sequence[Waiting]]) -> None:
        """The connection was lost: what was under way, in this order, waits again, before all others.

        `unacknowledged` takes it from the client, which would send it after what waits: an old retained announcement
        would then replace a newer one. It is called while nothing new can be fed.
        """
        with self._lock:
            messages = unacknowledged()
            self._waiting.extendleft(reversed(messages))
            self._waiting_bytes += sum(len(message.payload) for message in messages)
            self._under_way.clear()

    def feed(self, connected: Callable[[], bool]) -> None:
        """Publish what waits, in order, while fewer than IN_FLIGHT are under way.

        One thread feeds at a time, which keeps the order.
        """
        with self._lock:
            if self._feeding:
                return
            self._feeding = True
        try:
            while (message := self._next(connected)) is not None:
                self._publish(message)
        except BaseException:  # Ctrl-C in the middle: who leaves still has a word to say
            self._feeding = False
            raise

    def _next(self, connected: Callable[[], bool]) -> Waiting | None:
        """The next message to publish now, which is under way from now on."""
        with self._lock:
            if not self._waiting or len(self._under_way) >= IN_FLIGHT or not connected():
                self._feeding = False  # under the lock: who puts a message from now on feeds it
                if not self._waiting and not self._under_way:
                    self._idle.set()
                return None
            message = self._waiting.popleft()
            # Before the call: the acknowledgement may come before it returns.
            self._under_way.append(message.packet_bytes)
            self._waiting_bytes -= len(message.payload)
            drained = self._room_wanted and self._waiting_bytes <= QUEUE_BYTES // 2
            self._room_wanted &= not drained
        if drained:
            self._drained()
        return message

    def wait(self, timeout_s: float) -> bool:
        """Wait until the broker has everything; False when it takes too long."""
        return self._idle.wait(timeout_s)

    def give_up(self) -> None:
        """Nobody need wait for what will not be sent."""
        self._idle.set()
