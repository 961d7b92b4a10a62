"""Waiting: pauses that grow, lines that are said rarely, a broker that comes late; and packets that are too large."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edgefl.errors import BrokerError, NoBroker
from edgefl.packet_limit import FILE, LEAST_PACKET_BYTES, PacketLimit
from edgefl.patience import Pauses, Rarely, reach


def test_pauses_double_up_to_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda least, most: 1.0)
    pauses = Pauses()
    assert [pauses.next_s() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    pauses.begin_again()
    assert pauses.next_s() == 0.5


def test_pauses_of_a_fleet_differ() -> None:
    random.seed(0)
    first = [Pauses().next_s() for _ in range(100)]
    assert len(set(first)) == 100 and all(0.25 <= pause_s <= 0.75 for pause_s in first)


def test_a_line_is_said_at_once_and_then_ever_more_rarely() -> None:
    now_s, said = 0.0, []
    rarely = Rarely(lambda line: said.append((now_s, line)), clock=lambda: now_s)
    while now_s < 4 * 3600:
        rarely("waiting")
        if now_s == 10.0:
            rarely("something else")
        now_s += 10.0
    assert said[:3] == [(0.0, "waiting"), (10.0, "something else"), (60.0, "waiting")]
    assert [time_s / 60 for time_s, line in said[2:]] == [1, 3, 7, 15, 31, 63, 123, 183]


class Late:
    """A connection to a broker that is there at the third attempt."""

    def __init__(self, *errors: BrokerError) -> None:
        self.errors = list(errors)

    def connect(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


def late(*errors: BrokerError) -> Any:
    return Late(*errors)


def test_a_broker_that_comes_late_is_waited_for_and_named_once() -> None:
    lines: list[str] = []
    pauses: list[float] = []
    gone = NoBroker("no broker answers at mqtt://h:1 (Connection refused)", hint="start one")
    reach(late(gone, gone), lines.append, pause=pauses.append)
    assert lines == ["no broker answers at mqtt://h:1 (Connection refused): trying again (start one)"]
    assert len(pauses) == 2


def test_who_wants_no_waiting_and_what_no_waiting_mends() -> None:
    lines: list[str] = []
    with pytest.raises(NoBroker):
        reach(late(NoBroker("gone")), lines.append, once=True)
    with pytest.raises(BrokerError, match="wrong password"):
        reach(late(BrokerError("wrong password")), lines.append)
    assert lines == []


# --- how large a packet may be ------------------------------------------------------------------------------------


def test_two_losses_under_a_packet_larger_than_any_before_halve_it(tmp_path: Path) -> None:
    limit = PacketLimit("mqtt://h:1", folder=tmp_path)
    assert limit.most_bytes is None
    assert not limit.lost(400_000)  # the link may be bad
    limit.taken(300)  # our presence: it says nothing of large ones
    assert limit.lost(400_000) and limit.most_bytes == 200_000
    assert [limit.lost(200_000) for _ in range(4)] == [False, True, False, True]
    assert limit.most_bytes == 100_000
    limit.taken(100_000)
    assert not any(limit.lost(100_000) for _ in range(10))  # it is the link: the broker has taken as much
    assert PacketLimit("mqtt://h:1", folder=tmp_path).most_bytes == 100_000
    assert PacketLimit("mqtt://other:1", folder=tmp_path).most_bytes is None
    assert PacketLimit("mqtt://h:1", 50_000, tmp_path).most_bytes == 50_000


def test_it_is_not_halved_below_what_was_taken_nor_below_what_we_need() -> None:
    limit = PacketLimit("mqtt://h:1")
    limit.taken(60_000)
    assert limit.lost(100_000, too_large=True) and limit.most_bytes == 60_000
    least = PacketLimit("mqtt://h:1")
    assert least.lost(6000, too_large=True) and least.most_bytes == LEAST_PACKET_BYTES
    assert not least.lost(LEAST_PACKET_BYTES, too_large=True)


def test_the_smallest_of_what_is_known_counts() -> None:
    limit = PacketLimit("mqtt://h:1", 131_072)
    limit.announced(1_000_000)
    assert limit.most_bytes == 131_072
    limit.announced(65_536)
    assert limit.most_bytes == 65_536
    limit.announced(None)  # another broker behind the same address
    assert limit.most_bytes == 131_072


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"mqtt://h:1": "many"}', b'{"mqtt://h:1": 1}'])
def test_a_damaged_memory_is_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    limit = PacketLimit("mqtt://h:1", folder=tmp_path)
    assert limit.most_bytes is None
    assert limit.lost(100_000, too_large=True)
    assert PacketLimit("mqtt://h:1", folder=tmp_path).most_bytes == 50_000
