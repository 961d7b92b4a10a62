"""What a coordinator wants done, its verdict on a reply, and the round that a resume finds open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgefl.method import Ask, Fused, State, Work


@dataclass(frozen=True)
class Announce:
    """Tell the fleet: these devices are asked. Sent again with a higher `attempt` when a round is asked again."""

    round: int
    attempt: int
    nonce: str
    ask: Ask
    devices: tuple[str, ...]
    duration_s: float
    quorum: int = 1
    durable: bool = True  # whether the state that the round begins with is: whether a resume may open this round
    before: str = ""  # the nonce of the round before; "" after a resume
    weight_limit: float = 0.0  # the most that a reply counts, where that is known before replies are; 0: no limit
    trial: tuple[str, ...] = ()  # of the devices those that are asked again after they have lapsed


@dataclass(frozen=True)
class RoundDone:
    """A round is fused. Keep `state`, durably unless `durable` says that it need not be; then call `begin` for the next
    round, or `undo` where it is no use."""

    round: int
    state: State
    fused: Fused
    attempts: int
    asked: int
    seconds: float
    durable: bool = True
    norms: Mapping[str, float] = field(default_factory=dict)  # of what each reply changes
    missed: tuple[str, ...] = ()  # asked and there, without a reply and without saying why


@dataclass(frozen=True)
class Finished:
    """The method asks for nothing more."""

    state: State


@dataclass(frozen=True)
class GivenUp:
    """There was no quorum for longer than the run's settings let it wait: stop it. A resume goes on with the round."""

    round: int
    text: str


@dataclass(frozen=True)
class Note:
    """Something a person may want to know, for the event log."""

    event: str
    round: int
    device: str = ""
    text: str = ""


Action = Announce | Work | RoundDone | Finished | GivenUp | Note


@dataclass(frozen=True)
class Verdict:
    """What became of a reply."""

    status: str  # accepted | duplicate | late | refused
    reason: str = ""


@dataclass(frozen=True)
class OpenRound:
    """A round that was announced before the aggregator stopped: resuming announces the same one."""

    round: int
    attempt: int
    devices: tuple[str, ...]
    quorum: int = 1
    weight_limit: float = 0.0
    trial: tuple[str, ...] = ()
