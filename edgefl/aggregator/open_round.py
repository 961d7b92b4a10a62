"""The round that is open, or closing: who was asked in it, and what became of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgefl.aggregator.rounds import RoundDone
from edgefl.aggregator.tally import Tally


@dataclass
class Round:
    """`asked_s` is when devices were asked last, `deadline_s` until when they are waited for; from `grace_s` on nobody
    waits for those on trial."""

    tally: Tally
    nonce: str
    opened_s: float
    quorum: int = 1
    attempt: int = 0
    asked_s: float = 0.0
    deadline_s: float = 0.0
    grace_s: float = math.inf
    first: tuple[str, ...] = ()  # asked when the round was opened, but for those on trial
    trial: frozenset[str] = frozenset()  # asked again after lapses: no quorum counts on them
    asked: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)  # asked, and left since
    closing: RoundDone | None = None  # what it comes to, until that is kept, or the round undone

    @property
    def outstanding(self) -> set[str]:
        """Asked devices that may still reply. After a resume that includes those not heard of yet."""
        return self.asked - self.tally.replied - self.failed - self.gone - self.tally.barred.keys()

    @property
    def lapsed(self) -> set[str]:
        """Asked devices, and still there, without a reply that counts."""
        return self.asked - self.tally.replied - self.gone

    @property
    def missed(self) -> set[str]:
        """Those of them who have not said why."""
        return self.lapsed - self.failed - self.tally.barred.keys()

    @property
    def has_quorum(self) -> bool:
        return len(self.tally.replied) >= self.quorum

    @property
    def due_s(self) -> float:
        """When something is to be done, should nobody say anything."""
        return min(self.deadline_s, self.grace_s)
