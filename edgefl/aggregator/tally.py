"""The replies to one ask: whose count and how much, and whose do not.

A reply counts at most `max_share` times the median of the round; one that is far larger than others is refused, or
barred when the round is over. So no single reply owns a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgefl.aggregator.fusion import Clipped, Fusing, Fusion
from edgefl.aggregator.norms import Usual, lower_median, norm_of, too_large
from edgefl.aggregator.weights import Rule, weight_limit
from edgefl.errors import RemoteProtocolError
from edgefl.method import Ask, Fused, Reply


class Tally:
    """Counts the replies to `ask`, and may begin anew without some of them.

    `usual` knows the norms of earlier rounds; `max_share`, `max_norm` are those of the run's RoundSettings.
    """

    def __init__(self, ask: Ask, fusing: Fusing, usual: Usual, *, max_share: float, max_norm: float) -> None:
        self.ask = ask
        self.replied: set[str] = set()
        self.barred: dict[str, str] = {}  # whose replies are refused until the round is asked again, and why
        self.weight_limit = 0.0  # the most that a reply counts, where that is known before replies are; 0: no limit
        self._fusing = fusing
        self._usual = usual
        self._max_share, self._max_norm = max_share, max_norm
        self.norms: dict[str, float] = {}  # of the replies that are counted
        self._clipped: set[str] = set()  # of whom it was said
        self._fusion, self._rule = self._new_fusion()

    def _new_fusion(self) -> tuple[Fusion, Rule]:
        """A fusion for the ask; one that holds the replies, where their weights are bounded by each other."""
        fusion, rule = self._fusing(self.ask)
        if self._max_share and fusion.weighs and not rule.of_examples:
            fusion = Clipped(fusion, self._max_share)
        return fusion, rule

    def limit_weights(self, stated: Iterable[int]) -> None:
        """Fix the most that a reply counts, by the examples that the devices stated which are asked first."""
        if self._max_share and self._fusion.weighs and self._rule.of_examples:
            self.weight_limit = weight_limit(self._rule, stated, self._max_share)

    def count(self, reply: Reply, stated: int | None) -> str:
        """Add a reply of a device that stated so many examples; what is to be said where it counts less than it
        would, else "". Raises RemoteProtocolError for a reply that may not count."""
        if stated is not None and reply.examples > stated:
            raise RemoteProtocolError(
                f"{reply.examples} examples; device {reply.device!r} stated {stated} when it joined"
            )
        norm, usual = norm_of(reply, self.ask), self._usual.of(self.ask)
        if 0 < self._max_norm * usual < norm:
            reason = f"a change of norm {norm:.3g}, more than {self._max_norm:g} times the usual {usual:.3g}"
            self.barred[reply.device] = reason
            raise RemoteProtocolError(reason)
        weight = self._rule.weigh(reply)
        limit = self.weight_limit or math.inf
        self._fusion.add(reply, min(weight, limit))
        self.replied.add(reply.device)
        self.norms[reply.device] = norm
        return self._clip(reply.device, limit, weight) if weight > limit else ""

    def fuse(self) -> Fused:
        """The replies as one."""
        return self._fusion.finish()

    def clipped(self) -> list[tuple[str, str]]:
        """(device, what is to be said) of the replies that count less since the last of them was there."""
        found = self._fusion.clipped if isinstance(self._fusion, Clipped) else {}
        said = [(device, self._clip(device, counts, of)) for device, (counts, of) in found.items()]
        return [(device, text) for device, text in said if text]

    def _clip(self, device: str, counts: float, of: float) -> str:
        """Said once a round."""
        if device in self._clipped:
            return ""
        self._clipped.add(device)
        return f"counts as {counts:g} of {of:g}"

    def outliers(self) -> tuple[str, list[str]] | None:
        """Why the round cannot be fused as it is, and the devices whose replies are too large beside the others."""
        found = too_large(self.norms, self._max_norm) if self._max_norm else []
        if not found:
            return None
        usual, largest = lower_median(self.norms.values()), max(self.norms.values())
        return f"a change of norm {largest:.3g} beside a median of {usual:.3g}", found

    def largest(self) -> list[str]:
        """The device whose reply changes most; as many more as are barred already, so that a round in which nothing
        can be fused is soon left to its deadline."""
        by_size = sorted(self.norms, key=lambda device: (-self.norms[device], device))
        return by_size[: max(1, len(self.barred))]

    def let_go(self) -> None:
        """Hold no replies any more. Whose they were, and how large, stays known until the round is kept or undone."""
        self._fusion, self._rule = self._new_fusion()

    def undo(self, barred: Iterable[str], reason: str) -> None:
        """Nobody has replied; some may not."""
        self.barred |= dict.fromkeys(barred, reason)
        self.replied.clear()
        self.norms.clear()
        self.let_go()

    def keep(self) -> None:
        """The replies have made a state: what they were like is usual."""
        self._usual.note(self.ask, self.norms.values())

    def forget_usual(self) -> bool:
        """Whether what is usual for such an ask was known, and is forgotten now."""
        return self._usual.forget(self.ask)
