"""What an aggregator's session wants done. A driver does it in this order, which is what makes a run durable:

    a device's place is on disk before the device hears of it       SaveDevice, then Outgoing
    a round is on disk before it is announced                       SaveOpenRound, then Outgoing
    a round's state is on disk before the next is announced         Work, Evaluate, SaveRound, then SaveOpenRound ...

`Work` (edgefl/method.py) and `Evaluate` want an answer: `worked`, `evaluated`, or `failed` where what comes of them is
no number. The next round waits for it, and frames may come meanwhile. Where saving fails, nothing after it is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefl.aggregator.classes import Examples
from edgefl.aggregator.record import Record
from edgefl.aggregator.rounds import Announce, GivenUp, Note
from edgefl.method import State, Work
from edgefl.protocol import Outgoing


@dataclass(frozen=True)
class SaveDevice:
    """Write down which class a device has and what it states."""

    device: str
    class_name: str
    examples: Examples


@dataclass(frozen=True)
class SaveOpenRound:
    """Write down who is asked, and durably where a resume may open this round."""

    announce: Announce


@dataclass(frozen=True)
class Evaluate:
    """Measure a state on the aggregator's own data."""

    state: State


@dataclass(frozen=True)
class SaveRound:
    """Keep the state after a round, durably where its record says so, and the record."""

    state: State
    record: Record


Action = Outgoing | SaveDevice | SaveOpenRound | Work | Evaluate | SaveRound | GivenUp | Note
