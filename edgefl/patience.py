"""Waiting for what may come: pauses that grow, and a word now and then about what is waited for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from edgefl.errors import NoBroker
from edgefl.transport import Transport

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
AGAIN_S, AGAIN_MOST_S = 60.0, 3600.0  # the same line is said again after so long; doubles
_LINES = 100  # that are remembered


class Pauses:
    """How long to wait before each attempt: twice as long as before the last, up to half a minute; random, so that a
    fleet does not come back all at once."""

    def __init__(self) -> None:
        self._attempts = 0

    def next_s(self) -> float:
        pause_s = min(FIRST_PAUSE_S * 2.0**self._attempts, LONGEST_PAUSE_S)
        self._attempts = min(self._attempts + 1, 10)
        return pause_s * random.uniform(0.5, 1.5)

    def begin_again(self) -> None:
        """An attempt has succeeded, or there is a new reason to hope: the next pause is short."""
        self._attempts = 0


class Rarely:
    """Says each line once, and again ever more rarely: after one minute, then two, up to an hour."""

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._again: dict[str, tuple[float, float]] = {}  # line -> when it is said again, and how long that was to wait

    def __call__(self, line: str) -> None:
        now_s = self._clock()
        again_s, delay_s = self._again.get(line, (now_s, AGAIN_S / 2))
        if now_s < again_s:
            return
        if len(self._again) >= _LINES:
            self._again.clear()
        delay_s = min(2 * delay_s, AGAIN_MOST_S)
        self._again[line] = now_s + delay_s, delay_s
        self._say(line)


def reach(
    connection: Transport,
    say: Callable[[str], None],
    *,
    once: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Connect, and wait for a broker that is not there yet, which is said once and then rarely.

    Raises BrokerError where no waiting mends it; NoBroker with `once`.
    """
    pauses, rarely = Pauses(), Rarely(say)
    while True:
        try:
            connection.connect()
            return
        except NoBroker as error:
            if once:
                raise
            rarely(f"{error.message}: trying again" + (f" ({error.hint})" if error.hint else ""))
        pause(pauses.next_s())
