"""Who is there, who is asked, and who keeps a round waiting for nothing.

A device without a reply that counts in a round that was closed has *lapsed*. It is asked again, on trial: no quorum
counts on it, and the round waits for it only for a while (`grace_s`). With every lapse in a row it is asked more
rarely. A reply that counts ends that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from edgefl.aggregator.rounds import Note

PATIENCE = 2  # deadlines that a device may miss before it has ever replied: then it may be a name that somebody made up
LONGEST_PAUSE = 64  # rounds
NAMED = 3  # lapses in a row, after which a person hears of it
SILENT = 2  # lapses in a row without a word: a device that speaks then was away, and is there again
TIMES = 2.0  # as long as the others, or as itself the last time, may a device on trial take
LEAST_S = 0.1  # that it has in any case: a round of small steps takes 18 ms, and a packet may be late


def pause(lapses: int) -> int:
    """How many rounds after its last one a device is asked again that has lapsed so often in a row: 1, 2, 4 ... 64."""
    return LONGEST_PAUSE if lapses > LONGEST_PAUSE.bit_length() else 1 << (lapses - 1)


@dataclass(frozen=True)
class Lapsed:
    """A device that has lapsed `times` in a row, of which it was `silent` in the last; asked again from round `due`."""

    times: int = 0
    silent: int = 0
    due: int = 0

    def again(self, round: int) -> Lapsed:
        """Once more, in this round."""
        return Lapsed(self.times + 1, self.silent + 1, round + pause(self.times + 1))


class Attendance:
    """The devices of a run. `seed` decides who is asked; `replied`: who has, before this start of the run."""

    def __init__(self, *, seed: int, replied: Collection[str]) -> None:
        self.present: set[str] = set()
        self.gone_s: dict[str, float] = {}  # who is not there any more -> when that was first said
        self._seed = seed
        self._lapsed: dict[str, Lapsed] = {}
        self._took_s: dict[str, float] = {}  # for the last reply
        self._replied = set(replied)  # in any round
        self._missed: dict[str, int] = {}  # deadlines, of devices that have never replied

    def arrived(self, device: str) -> bool:
        """Whether it was not there before. Who comes back is asked in the next round."""
        new = device not in self.present
        self.present.add(device)
        self.gone_s.pop(device, None)
        if new and (lapsed := self._lapsed.get(device)):
            self._lapsed[device] = Lapsed(lapsed.times)
        else:
            self.heard(device)
        return new

    def left(self, device: str, now_s: float) -> bool:
        """Whether it was there before."""
        known = device in self.present
        self.present.discard(device)
        self.gone_s.setdefault(device, now_s)  # also one that was there before this start
        return known

    def heard(self, device: str) -> None:
        """A device says something. Where it was silent for long, it is asked in the next round."""
        if lapsed := self._lapsed.get(device):
            due = 0 if lapsed.silent >= SILENT else lapsed.due
            self._lapsed[device] = Lapsed(lapsed.times, silent=0, due=due)

    def replied(self, device: str, took_s: float) -> None:
        """Its reply has come, so long after it was asked."""
        self._replied.add(device)
        self._took_s[device] = took_s

    def missed(self, devices: Collection[str]) -> None:
        """They were asked, and have not replied at the deadline."""
        for device in set(devices) - self._replied:
            self._missed[device] = self._missed.get(device, 0) + 1

    def closed(self, round: int, *, counted: Collection[str], lapsed: Collection[str]) -> list[Note]:
        """A round is over, with and without the replies of these. Says whom a person should know of."""
        notes = []
        for device in sorted(counted):
            before = self._lapsed.pop(device, Lapsed())
            if before.times >= NAMED:
                text = f"replies again, after {before.times} rounds without a reply that counts"
                notes.append(Note("back", round, device, text))
        for device in sorted(lapsed):
            now = self._lapsed[device] = self._lapsed.get(device, Lapsed()).again(round)
            if now.times == NAMED:
                text = f"no reply that counts in {NAMED} rounds in a row; asked again in {pause(NAMED)} rounds"
                notes.append(Note("passed over", round, device, text))
        return notes

    def strangers(self, devices: Collection[str]) -> set[str]:
        """Those of `devices` that have often been asked and never replied."""
        return {d for d in devices if self._missed.get(d, 0) >= PATIENCE and d not in self._replied}

    def wanted(self, fraction: float) -> int:
        """m = max(C*K, 1), K the devices that are there (McMahan et al. 2017, Algorithm 1)."""
        return max(1, round(fraction * len(self.present)))

    def sample(self, count: int, round: int, attempt: int = 0, *, but: Collection[str] = ()) -> tuple[str, ...]:
        """`count` of the devices that are there, without some, uniformly: a function of seed, round, attempt and who
        is there. Nobody who has lapsed for a first attempt, unless all have."""
        devices = self.present - set(but)
        names = sorted(devices if attempt else devices - self._lapsed.keys() or devices)
        rng = np.random.default_rng([self._seed, round, attempt])
        return tuple(names[i] for i in rng.permutation(len(names))[:count])

    def on_trial(self, most: int, round: int, *, but: Collection[str], afresh: bool) -> tuple[str, ...]:
        """Who has lapsed and is to be asked again in this round, beside those who are asked anyway: `most` of them, who
        has waited longest first. `afresh`: whoever missed the rounds before could not do those that followed either,
        and this one begins anew."""
        due = {d: self._lapsed[d].due for d in self.present - set(but) if d in self._lapsed}
        ready = [d for d, since in due.items() if since <= round or afresh]
        return tuple(sorted(ready, key=lambda d: (due[d], d))[:most])

    def grace_s(self, devices: Collection[str], others_s: float) -> float:
        """How long after they were asked these devices on trial are waited for, when the others are in after
        `others_s`."""
        took_s = max([others_s, *(self._took_s[d] for d in devices if d in self._took_s)])
        return max(TIMES * took_s, others_s + LEAST_S)
