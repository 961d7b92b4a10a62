"""Who is there, who is asked, and who keeps a round waiting for nothing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

PATIENCE = 2  # deadlines that a device may miss before it has ever replied: then it may be a name that somebody made up


class Attendance:
    """The devices of a run. `seed` decides who is asked; `replied`: who has, before this start of the run."""

    def __init__(self, *, seed: int, replied: Collection[str]) -> None:
        self.present: set[str] = set()
        self._seed = seed
        self._silent: set[str] = set()  # missed a deadline, and were not heard since: no round waits for them
        self._replied = set(replied)  # in any round
        self._missed: dict[str, int] = {}  # deadlines, of devices that have never replied

    def arrived(self, device: str) -> bool:
        """Whether it was not there before."""
        new = device not in self.present
        self.present.add(device)
        self.heard(device)
        return new

    def left(self, device: str) -> bool:
        """Whether it was there before."""
        known = device in self.present
        self.present.discard(device)
        return known

    def heard(self, device: str) -> None:
        """A device says something: it is asked again, should it have been silent."""
        self._silent.discard(device)

    def replied(self, device: str) -> None:
        self._replied.add(device)

    def missed(self, devices: Collection[str]) -> None:
        """They were asked, and have not replied at the deadline."""
        for device in set(devices) - self._replied:
            self._missed[device] = self._missed.get(device, 0) + 1

    def passed_over(self, devices: Collection[str]) -> None:
        """A round was closed without them."""
        self._silent |= set(devices)

    def strangers(self, devices: Collection[str]) -> set[str]:
        """Those of `devices` that have often been asked and never replied."""
        return {d for d in devices if self._missed.get(d, 0) >= PATIENCE and d not in self._replied}

    def wanted(self, fraction: float) -> int:
        """m = max(C*K, 1), K the devices that are there (McMahan et al. 2017, Algorithm 1)."""
        return max(1, round(fraction * len(self.present)))

    def sample(self, count: int, round: int, attempt: int = 0, *, but: Collection[str] = ()) -> tuple[str, ...]:
        """`count` of the devices that are there, without some, uniformly: a function of seed, round, attempt and who
        is there. Nobody who is silent for a first attempt, unless all are."""
        devices = self.present - set(but)
        names = sorted(devices if attempt else devices - self._silent or devices)
        rng = np.random.default_rng([self._seed, round, attempt])
        return tuple(names[i] for i in rng.permutation(len(names))[:count])
