"""A run that waits for devices: for how long, for whom, and what a person reads of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from edgefl.aggregator.open_round import Round
from edgefl.aggregator.settings import RoundSettings

SHOWN = 5  # names


class Waiting:
    """How long a run waits for a quorum, or for devices enough to begin a round, by its settings."""

    def __init__(self, settings: RoundSettings) -> None:
        self.lenient = False  # patience has ended: a round begins with who is there, until enough are again
        self._settings = settings
        self._short_s: float | None = None  # since when there are too few devices to begin a round

    def enough(self, present: int, now_s: float) -> bool:
        """Whether a round begins with so many devices."""
        many = present >= self._settings.min_devices
        self.lenient &= not many
        begins = many or (self.lenient and present > 0)
        if begins or self.lenient:
            self._short_s = None
        elif self._short_s is None:
            self._short_s = now_s
        return begins

    def ends_s(self, round: Round | None) -> float:
        """When the run no longer waits for what it lacks; infinite where it lacks nothing, or waits for ever."""
        settings = self._settings
        if not settings.patience_s or settings.below_quorum == "wait":
            return math.inf
        if round is None:
            return math.inf if self._short_s is None else self._short_s + settings.patience_s
        least = settings.below_quorum == "close" and round.quorum == 1  # nothing can be closed with less
        if round.closing is not None or round.has_quorum or least:
            return math.inf
        return round.opened_s + max(settings.patience_s, settings.deadline_s)


def some(devices: Collection[str]) -> str:
    """A few names, and how many more."""
    names = sorted(devices)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def missing(round: Round, gone_s: Mapping[str, float]) -> str:
    """Of an open round: "1 of 2 needed replied; gone: pi-3 (112 s); silent: pi-4". `gone_s`: for how long who is gone
    has been."""
    text = f"{len(round.tally.replied)} of {round.quorum} needed replied"
    away = {d: gone_s[d] for d in round.asked - round.tally.replied if d in gone_s}
    text += absent(away)
    silent = round.outstanding - away.keys()
    text += f"; silent: {some(silent)}" if silent else ""
    failed = round.failed - round.tally.replied - away.keys()
    return text + (f"; failed: {some(failed)}" if failed else "")


def absent(gone_s: Mapping[str, float]) -> str:
    """Those who have left, the last of them first."""
    if not gone_s:
        return ""
    names = sorted(gone_s, key=lambda device: (gone_s[device], device))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; gone: " + ", ".join(f"{d} ({gone_s[d]:.0f} s)" for d in names[:SHOWN]) + more


def then(below_quorum: str, left_s: float) -> str:
    """What happens when patience ends, in so many seconds."""
    if not math.isfinite(left_s):
        return ""
    what = "the run stops" if below_quorum == "stop" else "the round is closed with who is there"
    return f"; {what} in {max(0.0, left_s):.0f} s"
