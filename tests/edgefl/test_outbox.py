"""Messages on their way to a broker: their order, how many at a time, and when there is room."""

from __future__ import annotations

import pytest

from edgefl.outbox import IN_FLIGHT, QUEUE_BYTES, Outbox, Waiting


class Line:
    """A client that holds what it was given until the broker has it."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.held: list[Waiting] = []
        self.up = True
        self.drained: list[int] = []  # how many messages had been sent each time
        self.outbox = Outbox(self._take, drained=self._note)

    def _take(self, message: Waiting) -> None:
        self.sent.append(message.topic)
        self.held.append(message)

    def _note(self) -> None:
        self.drained.append(len(self.sent))

    def publish(self, *topics: str, size: int = 1) -> None:
        for topic in topics:
            self.outbox.put(Waiting(topic, b"x" * size, False))
        self.outbox.feed(lambda: self.up)

    def acknowledge(self, count: int = 1) -> None:
        for _ in range(count):
            self.held.pop(0)
            self.outbox.acknowledged()
            self.outbox.feed(lambda: self.up)

    def reconnect(self) -> None:
        self.up = True
        self.outbox.take_back(self._drop)
        self.outbox.feed(lambda: self.up)

    def _drop(self) -> list[Waiting]:
        held, self.held = self.held, []
        return held


def test_what_was_not_acknowledged_goes_again_in_its_order_before_what_waits() -> None:
    line = Line()
    line.publish("a", "b", "c")
    line.acknowledge()
    line.up = False
    line.publish("d", "e")
    assert line.sent == ["a", "b", "c"]
    line.reconnect()
    assert line.sent == ["a", "b", "c", "b", "c", "d", "e"]


def test_few_messages_are_under_way_at_a_time() -> None:
    line = Line()
    line.publish(*(str(i) for i in range(100)))
    assert len(line.sent) == IN_FLIGHT == 40
    line.acknowledge(10)
    assert len(line.sent) == 50
    line.reconnect()  # none of the 40 is under way any more: they go again
    assert len(line.sent) == 90
    line.acknowledge(90)
    assert [int(topic) for topic in line.sent] == [*range(50), *range(10, 100)]


def test_it_waits_until_the_broker_has_everything() -> None:
    line = Line()
    assert line.outbox.wait(0)
    line.publish("a", "b")
    line.acknowledge()
    assert not line.outbox.wait(0)
    line.acknowledge()
    assert line.outbox.wait(0)
    line.publish("c")
    line.outbox.give_up()
    assert line.outbox.wait(0)


def test_room_is_said_once_when_half_of_the_queue_is_free() -> None:
    line = Line()
    line.up = False
    line.publish("a", "b", "c", size=QUEUE_BYTES // 4)
    assert line.outbox.room() == QUEUE_BYTES // 4
    line.publish("d", "e", size=QUEUE_BYTES // 4)
    assert line.outbox.room() == 0
    line.up = True
    line.publish()
    assert line.drained == [2]  # the third had just left the queue, and two quarters are there
    assert line.outbox.room() == QUEUE_BYTES


def test_what_is_taken_back_takes_room_again() -> None:
    line = Line()
    line.publish("a", size=QUEUE_BYTES // 4)
    assert line.outbox.room() == QUEUE_BYTES
    line.outbox.take_back(line._drop)
    assert line.outbox.room() == QUEUE_BYTES * 3 // 4


def test_room_that_nobody_missed_is_not_said() -> None:
    line = Line()
    line.publish("a", size=QUEUE_BYTES)
    assert line.outbox.room() == QUEUE_BYTES
    line.publish("b", size=QUEUE_BYTES)
    assert line.sent == ["a", "b"] and line.drained == []


def test_who_asks_again_before_half_is_free_is_still_told() -> None:
    """Of five quarters, four are sent: after the second of them there is some room, and it is not said yet."""
    line = Line()
    line.publish(*(str(i) for i in range(IN_FLIGHT)))
    line.publish("a", "b", "c", "d", "e", size=QUEUE_BYTES // 4)
    assert line.outbox.room() == 0
    line.acknowledge(2)
    assert line.outbox.room() == QUEUE_BYTES // 4 and line.drained == []
    line.acknowledge()
    assert line.drained == [IN_FLIGHT + 2]


def test_what_is_taken_back_waits_beside_what_waits() -> None:
    line = Line()
    line.publish("a", size=QUEUE_BYTES // 4)
    line.up = False
    line.publish("b", size=QUEUE_BYTES // 4)
    line.outbox.take_back(line._drop)
    assert line.outbox.room() == QUEUE_BYTES // 2


def test_a_client_that_calls_back_while_it_publishes_keeps_the_order() -> None:
    sent: list[str] = []

    def publish(message: Waiting) -> None:
        outbox.feed(lambda: True)  # an acknowledgement came meanwhile
        sent.append(message.topic)

    outbox = Outbox(publish)
    for round in ("1", "2"):
        for topic in "abc":
            outbox.put(Waiting(topic + round, b"", False))
        outbox.feed(lambda: True)
    assert sent == ["a1", "b1", "c1", "a2", "b2", "c2"]


def test_who_is_interrupted_while_a_message_is_given_to_the_client_can_still_say_goodbye() -> None:
    sent: list[str] = []

    def publish(message: Waiting) -> None:
        sent.append(message.topic)
        if message.topic == "up":
            raise KeyboardInterrupt

    outbox = Outbox(publish)
    outbox.put(Waiting("up", b"", True))
    with pytest.raises(KeyboardInterrupt):
        outbox.feed(lambda: True)
    outbox.put(Waiting("sleeping", b"", True))
    outbox.feed(lambda: True)
    assert sent == ["up", "sleeping"]
