"""How much each sender may ask for: a bucket of tokens each, full at first, that fills again as time passes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Limits:
    """`per_second` tokens come back to every sender, up to `burst`."""

    per_second: float
    burst: float
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)  # sender -> tokens, when they were counted

    def allows(self, sender: str, now_s: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens of a sender's; False, and take none, where it has too few."""
        tokens, since_s = self._left.get(sender, (self.burst, now_s))
        tokens = min(self.burst, tokens + self.per_second * max(0.0, now_s - since_s))
        enough = tokens >= cost
        self._left[sender] = (tokens - cost if enough else tokens, now_s)
        return enough

    def refill(self) -> None:
        """Everybody's bucket is full."""
        self._left.clear()
