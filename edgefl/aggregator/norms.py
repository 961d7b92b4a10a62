"""How large replies are: one that is far larger than others is refused, before it moves the model.

The norm of a reply is that of what it changes: of a float tensor that was announced and is sent as "value", the
difference to what was announced; of any other float tensor, itself. What is usual differs by kind of ask: a gradient of
dreams is not a change of weights.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping

import numpy as np

from edgefl.manifest import select
from edgefl.method import Ask, Reply

Kind = tuple[tuple[str, tuple[str, ...], str], ...]  # program, what is sent and as what, of each task

REMEMBERED = 100  # norms of each kind: ten rounds of ten devices
FEWEST = 3  # norms that make something usual


def lower_median(values: Collection[float]) -> float:
    """The middle one; of an even number the lower of the two in the middle, which one of two devices cannot raise."""
    return sorted(values)[(len(values) - 1) // 2]


def norm_of(reply: Reply, ask: Ask) -> float:
    """The norm of what a reply changes; infinite where float32 holds it no longer."""
    values = {name for task in ask.tasks if task.send_as == "value" for name in select(reply.tensors, task.send)}
    squares = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for name, value in reply.tensors.items():
            if value.dtype.kind != "f":
                continue
            base = ask.tensors.get(name) if name in values else None
            change = value - base if base is not None and base.shape == value.shape else value
            change = change.astype(np.float32, copy=False).ravel()  # float16 holds no square above 256
            squares += float(np.dot(change, change))
    return math.sqrt(squares) if squares >= 0 else math.inf  # NaN, of infinite less infinite


def too_large(norms: Mapping[str, float], most: float) -> list[str]:
    """The devices whose norm is more than `most` times the median of all; none where that is 0."""
    usual = lower_median(norms.values()) if norms else 0.0
    return sorted(device for device, norm in norms.items() if 0 < usual < norm / most)


class Usual:
    """What norms were lately, by kind of ask."""

    def __init__(self) -> None:
        self._norms: dict[Kind, deque[float]] = {}

    def note(self, ask: Ask, norms: Collection[float]) -> None:
        """Remember the norms of a round that is kept."""
        self._norms.setdefault(_kind(ask), deque(maxlen=REMEMBERED)).extend(sorted(norms))

    def of(self, ask: Ask) -> float:
        """The running median; 0 where too few replies to such an ask were seen."""
        known = self._norms.get(_kind(ask), ())
        return lower_median(known) if len(known) >= FEWEST else 0.0

    def forget(self, ask: Ask) -> bool:
        """Begin anew with asks of this kind; whether anything was known."""
        return self._norms.pop(_kind(ask), None) is not None


def _kind(ask: Ask) -> Kind:
    return tuple((task.program, task.send, task.send_as) for task in ask.tasks)
