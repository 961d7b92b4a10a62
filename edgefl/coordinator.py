"""Rounds, without I/O: who takes part, deadlines, quorum, duplicates and late replies live here and nowhere else.

A coordinator is given events and the time, and returns what to do. MQTT, the emulator and the tests drive the
same object:

    actions = coordinator.begin(now_s)
    actions = coordinator.joined("pi-1", now_s) | left(...) | replied(reply, ...) | failed(...) | tick(now_s)
    ... RoundDone among the actions: make its state durable where it says so, then coordinator.begin(now_s) again

`now_s` is any clock that never goes back. The driver carries out actions in order.

A round, from announcement to fusion:

    waiting --enough devices--> open --all asked replied, or left, or deadline; quorum--> fused, next round
                                  `--the same without quorum--> open again: other devices are asked too
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edgefl.errors import RemoteProtocolError
from edgefl.fusion import Fusing, Fusion, fusing
from edgefl.method import Ask, Fused, Method, Reply, State
from edgefl.protocol import MAX_DEVICES
from edgefl.weights import Rule


class RoundSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a round is filled and closed.

    fraction      C: share of the present devices asked in a round; at least one
    min_devices   a round waits until so many devices are present
    quorum        share of the devices asked first whose replies close a round at its deadline; at least one
    deadline_s    seconds after which a round is closed, or asked again without quorum
    max_devices   of the run, over all its rounds; whoever comes after them is turned away
    """

    fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_devices: Annotated[int, Meta(ge=1)] = 1
    quorum: Annotated[float, Meta(gt=0, le=1)] = 0.5
    deadline_s: Annotated[float, Meta(gt=0)] = 600.0
    max_devices: Annotated[int, Meta(ge=1, le=MAX_DEVICES)] = 1000


# --- what a coordinator wants done --------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class RoundDone:
    """A round is fused. Make `state` durable, unless `durable` says that it need not be; then call `begin` for the next
    round."""

    round: int
    state: State
    fused: Fused
    attempts: int
    asked: int
    seconds: float
    durable: bool = True


@dataclass(frozen=True)
class Finished:
    """The method asks for nothing more."""

    state: State


@dataclass(frozen=True)
class Note:
    """Something a person may want to know, for the event log."""

    event: str
    round: int
    device: str = ""
    text: str = ""


Action = Announce | RoundDone | Finished | Note


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


@dataclass
class _Round:
    ask: Ask
    nonce: str
    fusion: Fusion
    rule: Rule
    opened_s: float
    quorum: int = 1
    attempt: int = 0
    deadline_s: float = 0.0
    asked: set[str] = field(default_factory=set)
    replied: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)  # asked, and left since


class Coordinator:
    """Carries a method to its end on a fleet, one round at a time."""

    def __init__(
        self,
        method: Method,
        state: State,
        settings: RoundSettings = RoundSettings(),  # noqa: B008 - frozen
        *,
        seed: int = 0,
        secret: str = "",
        epoch: int = 1,
        resumed: OpenRound | None = None,
        fusing: Fusing = fusing,
    ) -> None:
        """`seed` decides who is asked; `secret` (kept in the run directory) makes nonces that nobody can guess; `epoch`
        counts the aggregator's starts; `fusing` may know weight rules and fusions that have no name in edgefl."""
        self.method = method
        self.state = state
        self.settings = settings
        self.present: set[str] = set()
        self._silent: set[str] = set()  # missed a deadline, and were not heard since: no round waits for them
        self.finished = False
        self.stopping = False
        self._satisfied = False
        self._seed = seed
        self._secret = secret
        self._epoch = epoch
        self._resumed = resumed
        self._fusing = fusing
        self._round: _Round | None = None
        self._next: tuple[int, Ask | None] | None = None  # a round and what the method asks in it
        self._before = ""  # the nonce of the last round of this start
        self._durable = True  # whether `state` is on disk, or is the method's first

    # --- events -----------------------------------------------------------------------------------------------

    def begin(self, now_s: float) -> list[Action]:
        """Open the next round: at the start, after a resume, and whenever a `RoundDone` is durable."""
        return self._open_round(now_s)

    def joined(self, device: str, now_s: float) -> list[Action]:
        """A device is there. Joining twice changes nothing."""
        new = device not in self.present
        self.present.add(device)
        self.heard(device)
        notes: list[Action] = [Note("joined", self.state.round, device)] if new else []
        if self._round is None:
            return notes + self._open_round(now_s)
        self._round.gone.discard(device)
        return notes + self._close_if_done(now_s)

    def left(self, device: str, now_s: float) -> list[Action]:
        """A device is gone; the round does not wait for it, but takes its reply should it come back in time."""
        known = device in self.present
        self.present.discard(device)
        if self._round is not None:
            known |= device in self._outstanding()
            self._round.gone.add(device)
        if not known:
            return []
        return [Note("left", self.state.round, device), *self._close_if_done(now_s)]

    def failed(self, device: str, round: int, reason: str, now_s: float) -> list[Action]:
        """A device could not carry out its tasks and says so."""
        self.heard(device)
        if self._round is None or round != self.state.round or device not in self._round.asked:
            return []
        self._round.failed.add(device)
        return [Note("failed", round, device, reason), *self._close_if_done(now_s)]

    def replied(self, reply: Reply, nonce: str, now_s: float) -> tuple[Verdict, list[Action]]:
        """Count a reply, once. The reply's tensors were checked against the manifest before."""
        self.heard(reply.device)
        verdict = self.judge(reply.device, reply.round, nonce)
        if verdict.status != "accepted":
            return verdict, [Note(verdict.status, reply.round, reply.device, verdict.reason)]
        assert self._round is not None
        try:
            self._round.fusion.add(reply, self._round.rule.weigh(reply))
        except RemoteProtocolError as error:
            verdict = Verdict("refused", error.message)
            return verdict, self.failed(reply.device, reply.round, verdict.reason, now_s)
        self._round.replied.add(reply.device)
        self._round.failed.discard(reply.device)
        return verdict, [Note("replied", reply.round, reply.device), *self._close_if_done(now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        if self._round is None or now_s < self._round.deadline_s:
            return []
        if self._has_quorum():
            self._silent |= self._outstanding()
            return self._close(now_s)
        return self._ask_again(now_s)

    def heard(self, device: str) -> None:
        """A device says something: it is asked again, should it have been silent."""
        self._silent.discard(device)

    def stop(self, now_s: float) -> list[Action]:
        """Fuse what came, when that is a quorum, and open no further round."""
        self.stopping = True
        if self._round is not None and self._has_quorum():
            return self._close(now_s)
        return []

    def finish(self) -> None:
        """The run has what it wanted (a target accuracy, say): the next `begin` ends it."""
        self._satisfied = True

    # --- questions --------------------------------------------------------------------------------------------

    def judge(self, device: str, round: int, nonce: str) -> Verdict:
        """What would become of a reply: asked before its tensors travel."""
        if self.finished or self._round is None or round < self.state.round:
            return Verdict("late", f"round {round} is closed")
        if round != self.state.round or nonce != self._round.nonce:
            return Verdict("refused", f"round {round} was not announced with this nonce")
        if device not in self._round.asked:
            return Verdict("refused", "the device was not asked in this round")
        if device in self._round.replied:
            return Verdict("duplicate", "this device's reply is counted already")
        return Verdict("accepted")

    @property
    def deadline_s(self) -> float | None:
        """When `tick` has something to do; None when nothing is open."""
        return self._round.deadline_s if self._round else None

    @property
    def about(self) -> str:
        """What the method says of the open round; "" when none is open."""
        return self._round.ask.about if self._round else ""

    @property
    def replies(self) -> tuple[int, int]:
        """Replies so far and devices asked, of the open round."""
        return (len(self._round.replied), len(self._round.asked)) if self._round else (0, 0)

    # --- rounds -----------------------------------------------------------------------------------------------

    def _open_round(self, now_s: float) -> list[Action]:
        if self._round is not None or self.finished:
            return []
        ask = None if self._satisfied else self._ask()
        if ask is None:
            self.finished = True
            return [Finished(self.state)]
        if self.stopping:
            return []
        resumed = self._resumed if self._resumed and self._resumed.round == self.state.round else None
        self._resumed = None
        if resumed is None and len(self.present) < self.settings.min_devices:
            return []
        fusion, rule = self._fusing(ask)
        self._round = _Round(ask, self._nonce(), fusion, rule, opened_s=now_s)
        if resumed is not None:
            self._round.attempt = resumed.attempt
        devices = (
            resumed.devices if resumed else self._sample(self.present - self._silent or self.present, self._wanted())
        )
        self._round.quorum = resumed.quorum if resumed else max(1, math.ceil(self.settings.quorum * len(devices)))
        return self._announce(devices, now_s)

    def _announce(self, devices: Iterable[str], now_s: float) -> list[Action]:
        assert self._round is not None
        self._round.asked |= set(devices)
        self._round.deadline_s = now_s + self.settings.deadline_s
        return [
            Announce(
                round=self.state.round,
                attempt=self._round.attempt,
                nonce=self._round.nonce,
                ask=self._round.ask,
                devices=tuple(sorted(self._round.asked)),
                duration_s=self.settings.deadline_s,
                quorum=self._round.quorum,
                durable=self._durable,
                before=self._before,
            )
        ]

    def _ask_again(self, now_s: float) -> list[Action]:
        """No quorum: replies so far stay counted (the announced tensors are the same), others are asked too."""
        assert self._round is not None
        spare = self.present - self._round.asked
        wanted = max(self._wanted(), self._round.quorum)
        missing = wanted - len(self._round.replied) - len(self._outstanding() & self.present)
        self._round.attempt += 1
        self._round.failed.clear()  # they may try again, but nobody counts on them
        note = Note(
            "asked again", self.state.round, text=f"{len(self._round.replied)} of {len(self._round.asked)} replied"
        )
        return [note, *self._announce(self._sample(spare, max(0, missing)), now_s)]

    def _close_if_done(self, now_s: float) -> list[Action]:
        if self._round is None or self._outstanding():
            return []
        if self._has_quorum():
            return self._close(now_s)
        # Nobody is left to wait for. With other devices there, ask them at once; else wait: devices come back.
        if self.present - self._round.asked:
            return self._ask_again(now_s)
        return []

    def _close(self, now_s: float) -> list[Action]:
        assert self._round is not None
        closed = self._round
        fused = closed.fusion.finish()
        round = self.state.round
        self.state = self.method.advance(self.state, fused)
        self._round, self._before = None, closed.nonce
        following = self._ask()
        # A resume must not go back behind a durable ask: devices may have carried it out.
        self._durable = closed.ask.durable or following is None or following.durable
        seconds = now_s - closed.opened_s
        return [
            RoundDone(round, self.state, fused, closed.attempt + 1, len(closed.asked), seconds, durable=self._durable)
        ]

    # --- small questions --------------------------------------------------------------------------------------

    def _ask(self) -> Ask | None:
        """What the method asks now. It is asked once a round: an ask may be work."""
        if self._next is None or self._next[0] != self.state.round:
            self._next = (self.state.round, self.method.ask(self.state))
        return self._next[1]

    def _outstanding(self) -> set[str]:
        """Asked devices that may still reply. After a resume that includes those not heard of yet."""
        assert self._round is not None
        return self._round.asked - self._round.replied - self._round.failed - self._round.gone

    def _has_quorum(self) -> bool:
        assert self._round is not None
        return len(self._round.replied) >= self._round.quorum

    def _wanted(self) -> int:
        """m = max(C*K, 1), K the devices that are there (McMahan et al. 2017, Algorithm 1)."""
        return max(1, round(self.settings.fraction * len(self.present)))

    def _sample(self, devices: set[str], count: int) -> list[str]:
        """`count` devices, uniformly; a function of seed, round, attempt and who is there."""
        assert self._round is not None
        rng = np.random.default_rng([self._seed, self.state.round, self._round.attempt])
        names = sorted(devices)
        return [names[i] for i in rng.permutation(len(names))[:count]]

    def _nonce(self) -> str:
        """The same after a resume, so that devices which finished their work meanwhile need not repeat it; but of this
        start of the aggregator alone where the ask follows from what is not on disk."""
        since = "" if self._durable else f"/{self._epoch}"
        return hashlib.sha256(f"{self._secret}/{self.state.round}{since}".encode()).hexdigest()[:16]
