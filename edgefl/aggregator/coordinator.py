"""Rounds, without I/O: who takes part, deadlines, quorum, duplicates and late replies live here and nowhere else.

A coordinator is given events and the time, and returns what to do. MQTT, the emulator and the tests drive the
same object:

    actions = coordinator.begin(now_s)
    actions = coordinator.joined("pi-1", now_s) | left(...) | replied(reply, ...) | failed(...) | tick(now_s)
    ... RoundDone among the actions: make its state durable where it says so, then coordinator.begin(now_s) again;
        or, when that state is found to be no use, coordinator.undo(why, now_s)

`now_s` is any clock that never goes back. The driver carries out actions in order.

A round, from announcement to fusion:

    waiting --enough devices--> open --all asked replied, or left, or deadline; quorum--> fused, next round
                                  |--the same without quorum--> open again: other devices are asked too
                                  `--fused to no use--> undone, and open again without those who are to blame

A reply counts at most `max_share` times the median, one that is far larger than others is refused, and a state that is
not finite is never given out: no single reply owns a run or ends it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edgefl.aggregator.fusion import Clipped, Fusing, Fusion, fusing
from edgefl.aggregator.norms import Usual, lower_median, norm_of, too_large
from edgefl.aggregator.weights import Rule, weight_limit
from edgefl.errors import EdgeflError, InputError, NotFinite, RemoteProtocolError
from edgefl.method import Ask, Fused, Method, Reply, State
from edgefl.protocol import MAX_DEVICES

PATIENCE = 2  # deadlines that a device may miss before it has ever replied: then it may be a name that somebody made up
MOST_TEXT = 500  # characters of a reason, so that it fits a receipt


class RoundSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a round is filled and closed.

    fraction      C: share of the present devices asked in a round; at least one
    min_devices   a round waits until so many devices are present
    quorum        share of the devices asked first whose replies close a round at its deadline; at least one. Who has
                  missed two deadlines and never replied in the run is not counted, but no fewer than `min_devices` are
    deadline_s    seconds after which a round is closed, or asked again without quorum
    max_devices   of the run, over all its rounds; whoever comes after them is turned away
    max_share     a reply counts at most so many times the median weight of the round; 0: no limit. Of a fusion that
                  ignores weights every reply counts the same anyway
    max_norm      a reply is refused whose change has a norm of more than so many times the median; 0: none is
    """

    fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_devices: Annotated[int, Meta(ge=1)] = 1
    quorum: Annotated[float, Meta(gt=0, le=1)] = 0.5
    deadline_s: Annotated[float, Meta(gt=0)] = 600.0
    max_devices: Annotated[int, Meta(ge=1, le=MAX_DEVICES)] = 1000
    max_share: Annotated[float, Meta(ge=0)] = 3.0
    max_norm: Annotated[float, Meta(ge=0)] = 100.0


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
    weight_limit: float = 0.0  # the most that a reply counts, where that is known before replies are; 0: no limit


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
    weight_limit: float = 0.0


@dataclass
class _Round:
    ask: Ask
    nonce: str
    fusion: Fusion
    rule: Rule
    opened_s: float
    quorum: int = 1
    weight_limit: float = 0.0
    attempt: int = 0
    deadline_s: float = 0.0
    first: tuple[str, ...] = ()  # asked when the round was opened
    asked: set[str] = field(default_factory=set)
    replied: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)  # asked, and left since
    norms: dict[str, float] = field(default_factory=dict)  # of the replies that are counted
    barred: dict[str, str] = field(default_factory=dict)  # whose replies are refused in this attempt, and why
    clipped: set[str] = field(default_factory=set)  # whose replies were said to count less than they would


@dataclass(frozen=True)
class _Closed:
    """The round that was closed last, and what it began with: what `undo` goes back to."""

    round: _Round
    state: State
    durable: bool
    before: str


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
        replied: Collection[str] = (),
        fusing: Fusing = fusing,
    ) -> None:
        """`seed` decides who is asked; `secret` (kept in the run directory) makes nonces that nobody can guess; `epoch`
        counts the aggregator's starts; `replied`: who has before this start; `fusing` may know weight rules and fusions
        that have no name in edgefl."""
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
        self._replied = set(replied)  # in any round
        self._missed: dict[str, int] = {}  # deadlines, of devices that have never replied
        self.stated: dict[str, int] = {}  # how many training examples devices say they have
        self._round: _Round | None = None
        self._closed: _Closed | None = None  # until the next round begins
        self._usual = Usual()
        self._next: tuple[int, Ask | None] | None = None  # a round and what the method asks in it
        self._before = ""  # the nonce of the last round of this start
        self._durable = True  # whether `state` is on disk, or is the method's first

    # --- events -----------------------------------------------------------------------------------------------

    def begin(self, now_s: float) -> list[Action]:
        """Open the next round: at the start, after a resume, and whenever a `RoundDone` is durable."""
        if self._closed is not None:
            self._usual.note(self._closed.round.ask, self._closed.round.norms.values())
            self._closed = None
        return self._open_round(now_s)

    def undo(self, why: str, now_s: float) -> list[Action]:
        """The state of the last `RoundDone` is no use, and nothing of it was kept: do that round again, without the
        devices whose replies have moved the model most."""
        assert self._closed is not None
        closed, self._closed = self._closed, None
        self._round, self.state, self._durable, self._before = closed.round, closed.state, closed.durable, closed.before
        self._next = None  # what the method asked after the state that is gone
        return self._repeat(why, self._largest(), now_s)

    def joined(self, device: str, now_s: float, *, examples: int | None = None) -> list[Action]:
        """A device is there, with so many training examples; None: as many as it stated before. Joining twice changes
        nothing."""
        if examples is not None:
            self.stated[device] = examples
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
            clipped = self._count(self._round, reply)
        except RemoteProtocolError as error:
            verdict = Verdict("refused", error.message)
            return verdict, self.failed(reply.device, reply.round, verdict.reason, now_s)
        self._round.replied.add(reply.device)
        self._replied.add(reply.device)
        self._round.failed.discard(reply.device)
        return verdict, [Note("replied", reply.round, reply.device), *clipped, *self._close_if_done(now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        if self._round is None or now_s < self._round.deadline_s:
            return []
        notes = self._pass_over_strangers()
        if self._has_quorum():
            self._silent |= self._outstanding()
            return notes + self._close(now_s)
        return notes + self._ask_again(now_s)

    def _pass_over_strangers(self) -> list[Action]:
        """A deadline has passed: the quorum no longer counts those who have often been asked and never replied."""
        assert self._round is not None
        for device in self._outstanding() - self._replied:
            self._missed[device] = self._missed.get(device, 0) + 1
        strangers = {d for d in self._round.first if self._missed.get(d, 0) >= PATIENCE and d not in self._replied}
        least = min(self.settings.min_devices, len(self._round.first))
        quorum = self._quorum_of(max(least, len(self._round.first) - len(strangers)))
        if quorum >= self._round.quorum:
            return []
        self._round.quorum = quorum
        text = f"{len(strangers)} devices have never replied; {quorum} replies are enough"
        return [Note("quorum", self.state.round, text=text)]

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
        if device in self._round.barred:
            return Verdict("refused", self._round.barred[device])
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
        self._round = _Round(ask, self._nonce(), *self._fusion_of(ask), opened_s=now_s)
        if resumed is not None:
            self._round.attempt = resumed.attempt
        devices = (
            resumed.devices if resumed else self._sample(self.present - self._silent or self.present, self._wanted(), 0)
        )
        self._round.first = tuple(devices)
        self._round.quorum = resumed.quorum if resumed else self._quorum_of(len(devices))
        self._round.weight_limit = resumed.weight_limit if resumed else self._weight_limit(devices)
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
                weight_limit=self._round.weight_limit,
            )
        ]

    def _ask_again(self, now_s: float) -> list[Action]:
        """No quorum: replies so far stay counted (the announced tensors are the same), others are asked too, and who
        was barred may try once more."""
        assert self._round is not None
        text = f"{len(self._round.replied)} of {len(self._round.asked)} replied"
        if self._round.barred:
            text += f"; no reply of {_some(self._round.barred)} is refused unseen any more"
        others = self._others()
        self._round.barred.clear()
        self._round.failed.clear()  # they may try again, but nobody counts on them
        self._round.attempt += 1
        return [Note("asked again", self.state.round, text=text), *self._announce(others, now_s)]

    def _others(self) -> list[str]:
        """Who is to be asked too, where those who may still reply are not enough."""
        assert self._round is not None
        spare = self.present - self._round.asked
        wanted = max(self._wanted(), self._round.quorum)
        missing = wanted - len(self._round.replied) - len(self._outstanding() & self.present)
        return self._sample(spare, max(0, missing), self._round.attempt + 1)

    def _close_if_done(self, now_s: float) -> list[Action]:
        if self._round is None or self._outstanding():
            return []
        if self._has_quorum():
            return self._close(now_s)
        # Nobody is left to wait for. With other devices there, ask them at once; else wait: devices come back. Where
        # so many were too large for what was usual, what is usual has changed: they are judged by each other then.
        stale = bool(self._round.barred) and self._usual.forget(self._round.ask)
        if stale or self.present - self._round.asked:
            return self._ask_again(now_s)
        return []

    def _close(self, now_s: float) -> list[Action]:
        """Fuse what came, and go on to the state that follows; or undo the round, where that is no state."""
        assert self._round is not None
        closed = self._round
        if outliers := self._outliers(closed):
            usual = lower_median(closed.norms.values())
            largest = max(closed.norms.values())
            why = f"a change of norm {largest:.3g} beside a median of {usual:.3g}"
            return self._repeat(why, outliers, now_s)
        try:
            fused, state = self._advance(closed)
        except NotFinite as error:
            return self._repeat(error.message, self._largest(), now_s)
        round = self.state.round
        self._closed = _Closed(closed, self.state, self._durable, self._before)
        clipped = self._clipped_late(closed)
        closed.fusion, closed.rule = self._fusion_of(closed.ask)  # the replies are let go
        self.state = state
        self._round, self._before = None, closed.nonce
        following = self._ask()
        # A resume must not go back behind a durable ask: devices may have carried it out.
        self._durable = closed.ask.durable or following is None or following.durable
        seconds = now_s - closed.opened_s
        return [
            *clipped,
            RoundDone(round, self.state, fused, closed.attempt + 1, len(closed.asked), seconds, durable=self._durable),
        ]

    def _advance(self, closed: _Round) -> tuple[Fused, State]:
        """What the replies make of the state. Raises NotFinite where that is no state."""
        try:
            with np.errstate(all="ignore"):  # a number that is none is found below
                fused = closed.fusion.finish()
                state = self.method.advance(self.state, fused)
        except InputError:
            raise  # a setting that is wrong, and would be in every attempt
        except (EdgeflError, ArithmeticError, ValueError) as error:
            raise NotFinite(f"the replies cannot be fused: {error}") from error
        for name, value in state.tensors.items():
            if value is not self.state.tensors.get(name) and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise NotFinite(f"{name!r} would not be finite")
        for name, number in state.numbers.items():
            if not math.isfinite(number):
                raise NotFinite(f"{name!r} would be {number}")
        return fused, state

    def _repeat(self, why: str, moved: Collection[str], now_s: float) -> list[Action]:
        """The open round from its beginning, without some devices: the others offer again what they have. Who has not
        replied until now is not waited for."""
        assert self._round is not None
        text = f"{why}; asked again without {_some(moved)}"
        self._round.failed |= self._outstanding()
        self._round.barred |= dict.fromkeys(moved, f"round {self.state.round + 1} was undone: {why}"[:MOST_TEXT])
        self._round.replied.clear()
        self._round.norms.clear()
        self._round.fusion, self._round.rule = self._fusion_of(self._round.ask)
        note = Note("undone", self.state.round, text=text)
        if self.stopping:
            return [note]  # a resume asks again
        others = self._others()
        self._round.attempt += 1
        return [note, *self._announce(others, now_s)]

    # --- how much a reply counts, and whether it may ----------------------------------------------------------

    def _count(self, round: _Round, reply: Reply) -> list[Action]:
        """Add a reply to the round; a note where it counts less than it would. Raises RemoteProtocolError for a reply
        that may not count."""
        stated = self.stated.get(reply.device)
        if stated is not None and reply.examples > stated:
            raise RemoteProtocolError(
                f"{reply.examples} examples; device {reply.device!r} stated {stated} when it joined"
            )
        norm, usual = norm_of(reply, round.ask), self._usual.of(round.ask)
        if 0 < self.settings.max_norm * usual < norm:
            reason = f"a change of norm {norm:.3g}, more than {self.settings.max_norm:g} times the usual {usual:.3g}"
            round.barred[reply.device] = reason
            raise RemoteProtocolError(reason)
        weight = round.rule.weigh(reply)
        limit = round.weight_limit or math.inf
        round.fusion.add(reply, min(weight, limit))
        round.norms[reply.device] = norm
        return self._say_clipped(round, reply.device, limit, weight) if weight > limit else []

    def _clipped_late(self, round: _Round) -> list[Action]:
        """Notes on the replies whose weight was clipped when the last of them was there."""
        if not isinstance(round.fusion, Clipped):
            return []
        clipped = round.fusion.clipped.items()
        return [note for device, (counts, of) in clipped for note in self._say_clipped(round, device, counts, of)]

    def _say_clipped(self, round: _Round, device: str, counts: float, of: float) -> list[Action]:
        if device in round.clipped:
            return []
        round.clipped.add(device)
        return [Note("clipped", self.state.round, device, f"counts as {counts:g} of {of:g}")]

    def _weight_limit(self, devices: Iterable[str]) -> float:
        """The most that a reply to the open round may count, by what the devices stated that are asked in it first."""
        assert self._round is not None
        if not self.settings.max_share or not self._round.rule.of_examples or not self._round.fusion.weighs:
            return 0.0
        stated = [self.stated.get(device, 0) for device in devices]
        return weight_limit(self._round.rule, stated, self.settings.max_share)

    def _fusion_of(self, ask: Ask) -> tuple[Fusion, Rule]:
        """A new fusion for an ask; one that holds the replies, where their weights are bounded by each other."""
        fusion, rule = self._fusing(ask)
        if self.settings.max_share and fusion.weighs and not rule.of_examples:
            fusion = Clipped(fusion, self.settings.max_share)
        return fusion, rule

    def _outliers(self, round: _Round) -> list[str]:
        """Devices whose replies are too large beside the others of the round."""
        return too_large(round.norms, self.settings.max_norm) if self.settings.max_norm else []

    def _largest(self) -> list[str]:
        """The device whose reply changes most; as many more as are barred already, so that a round in which nothing
        can be fused is soon left to its deadline."""
        assert self._round is not None
        norms = self._round.norms
        return sorted(norms, key=lambda device: (-norms[device], device))[: max(1, len(self._round.barred))]

    # --- small questions --------------------------------------------------------------------------------------

    def _ask(self) -> Ask | None:
        """What the method asks now. It is asked once a round: an ask may be work."""
        if self._next is None or self._next[0] != self.state.round:
            self._next = (self.state.round, self.method.ask(self.state))
        return self._next[1]

    def _outstanding(self) -> set[str]:
        """Asked devices that may still reply. After a resume that includes those not heard of yet."""
        assert self._round is not None
        barred = self._round.barred.keys()
        return self._round.asked - self._round.replied - self._round.failed - self._round.gone - barred

    def _quorum_of(self, devices: int) -> int:
        return max(1, math.ceil(self.settings.quorum * devices))

    def _has_quorum(self) -> bool:
        assert self._round is not None
        return len(self._round.replied) >= self._round.quorum

    def _wanted(self) -> int:
        """m = max(C*K, 1), K the devices that are there (McMahan et al. 2017, Algorithm 1)."""
        return max(1, round(self.settings.fraction * len(self.present)))

    def _sample(self, devices: set[str], count: int, attempt: int) -> list[str]:
        """`count` devices, uniformly; a function of seed, round, attempt and who is there."""
        rng = np.random.default_rng([self._seed, self.state.round, attempt])
        names = sorted(devices)
        return [names[i] for i in rng.permutation(len(names))[:count]]

    def _nonce(self) -> str:
        """The same after a resume, so that devices which finished their work meanwhile need not repeat it; but of this
        start of the aggregator alone where the ask follows from what is not on disk."""
        since = "" if self._durable else f"/{self._epoch}"
        return hashlib.sha256(f"{self._secret}/{self.state.round}{since}".encode()).hexdigest()[:16]


def _some(devices: Collection[str]) -> str:
    """A few names, and how many more."""
    names = sorted(devices)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
