"""Rounds, without I/O: who takes part, deadlines, quorum, duplicates and late replies live here and nowhere else.

A coordinator is given events and the time, and returns what to do. MQTT, the emulator and the tests drive the
same object:

    actions = coordinator.begin(now_s)
    actions = coordinator.joined("pi-1", now_s) | left(...) | replied(reply, ...) | failed(...) | tick(now_s)
    ... Work among the actions: coordinator.worked(done, now_s) when the method's own model has done it
    ... RoundDone among the actions: coordinator.begin(now_s) when its state is kept, durably where it says so;
        or, when that state is found to be no use, coordinator.undo(why, now_s)

Events may come before either is answered.

`now_s` is any clock that never goes back. The driver carries out actions in order.

A round, from announcement to fusion:

    waiting --enough devices--> open --all asked replied, or left, or deadline; quorum--> closing --kept--> next round
                                  |  who is on trial is waited for only a while longer than the others
                                  |--the same without quorum--> open again: other devices are asked too
                                  `--fused to no use, or undone--> open again without those who are to blame

Who is asked is in attendance.py, how much a reply counts in tally.py. A state that is not finite is never given out: no
single reply ends a run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import replace

from edgefl.aggregator.advance import after_round, after_work
from edgefl.aggregator.attendance import Attendance
from edgefl.aggregator.fusion import Fusing, fusing
from edgefl.aggregator.norms import Usual
from edgefl.aggregator.open_round import Round
from edgefl.aggregator.rounds import Action, Announce, Finished, GivenUp, Note, OpenRound, RoundDone, Verdict
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.tally import Tally
from edgefl.aggregator.waiting import Waiting, absent, missing, some, then
from edgefl.errors import NotFinite, RemoteProtocolError
from edgefl.method import Ask, Method, Reply, State, WithModel, Worked

MOST_TEXT = 500  # characters of a reason, so that it fits a receipt


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
        self.finished = False
        self.stopping = False
        self._satisfied = False
        self._secret = secret
        self._epoch = epoch
        self._resumed = resumed
        self._fusing = fusing
        self._attendance = Attendance(seed=seed, replied=replied)
        self.stated: dict[str, int] = {}  # how many training examples devices say they have
        self._round: Round | None = None
        self._usual = Usual()
        self._next: tuple[State, Ask | None] | None = None  # a state and what the method asks then
        self._before = ""  # the nonce of the last round of this start
        self._durable = True  # whether `state` is on disk, or is the method's first
        self._waiting = Waiting(settings)
        self._small = False  # whether the round before was one of many small ones: its outcome need not be durable

    # --- events -----------------------------------------------------------------------------------------------

    def begin(self, now_s: float) -> list[Action]:
        """Open the next round: at the start, after a resume, and whenever the state of a `RoundDone` is kept."""
        notes: list[Action] = []
        if self._round is not None and (done := self._round.closing) is not None:
            closed = self._round
            closed.tally.keep()
            notes += self._attendance.closed(done.round, counted=closed.tally.replied, lapsed=closed.lapsed)
            self.state, self._durable, self._before = done.state, done.durable, closed.nonce
            self._small, self._round = not closed.tally.ask.durable, None
        return [*notes, *self._open_round(now_s)]

    def undo(self, why: str, now_s: float) -> list[Action]:
        """The state of the last `RoundDone`, or that of a `Work`, is no use, and nothing of it was kept: do the round
        again, without the devices whose replies have moved the model most."""
        assert self._round is not None and self._round.closing is not None
        return self._repeat(why, self._round.tally.largest(), now_s)

    def worked(self, done: Worked, now_s: float) -> list[Action]:
        """What the last `Work` wanted is done."""
        assert self._round is not None and self._round.closing is not None and isinstance(self.method, WithModel)
        closing = self._round.closing
        try:
            state = after_work(self.method, closing.state, done)
        except NotFinite as error:
            return self.undo(error.message, now_s)
        return self._conclude(replace(closing, state=state))

    def joined(self, device: str, now_s: float, *, examples: int | None = None) -> list[Action]:
        """A device is there, with so many training examples; None: as many as it stated before. Joining twice changes
        nothing."""
        if examples is not None:
            self.stated[device] = examples
        new = self._attendance.arrived(device)
        notes: list[Action] = [Note("joined", self.state.round, device)] if new else []
        if self._round is None:
            return notes + self._open_round(now_s)
        self._round.gone.discard(device)
        return notes + self._close_if_done(now_s)

    def left(self, device: str, now_s: float) -> list[Action]:
        """A device is gone; the round does not wait for it, but takes its reply should it come back in time."""
        known = self._attendance.left(device, now_s)
        if self._round is not None:
            known |= device in self._round.outstanding
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
            clipped = self._round.tally.count(reply, self.stated.get(reply.device))
        except RemoteProtocolError as error:
            verdict = Verdict("refused", error.message)
            return verdict, self.failed(reply.device, reply.round, verdict.reason, now_s)
        self._attendance.replied(reply.device, now_s - self._round.asked_s)
        self._round.failed.discard(reply.device)
        notes = [Note("replied", reply.round, reply.device)]
        if clipped:
            notes.append(Note("clipped", reply.round, reply.device, clipped))
        return verdict, [*notes, *self._close_if_done(now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        if now_s >= self._patience_s:
            return self._lose_patience(now_s)
        if self._round is None or self._round.closing is not None or now_s < self._round.due_s:
            return []
        if now_s < self._round.deadline_s:  # all are in but those on trial
            return self._close(now_s)
        notes = self._pass_over_strangers()
        return notes + (self._close(now_s) if self._round.has_quorum else self._ask_again(now_s))

    def _lose_patience(self, now_s: float) -> list[Action]:
        """There was no quorum for too long."""
        text = self.missing(now_s)
        if self.settings.below_quorum == "stop":
            self.stopping = True
            return [GivenUp(self.state.round, text)]
        note = Note("below quorum", self.state.round, text=f"{text}; from now on whoever is there is enough")
        if self._round is None:
            self._waiting.lenient = True
            return [note, *self._open_round(now_s)]
        self._round.quorum = 1
        return [note, *(self._close(now_s) if self._round.has_quorum else [])]

    def _pass_over_strangers(self) -> list[Action]:
        """A deadline has passed: the quorum no longer counts those who have often been asked and never replied."""
        assert self._round is not None
        self._attendance.missed(self._round.outstanding)
        strangers = self._attendance.strangers(self._round.first)
        least = min(self.settings.min_devices, len(self._round.first))
        quorum = self._quorum_of(max(least, len(self._round.first) - len(strangers)))
        if quorum >= self._round.quorum:
            return []
        self._round.quorum = quorum
        text = f"{len(strangers)} devices have never replied; {quorum} replies are enough"
        return [Note("quorum", self.state.round, text=text)]

    def heard(self, device: str) -> None:
        """A device says something: it is asked again soon, should it have been silent."""
        self._attendance.heard(device)

    def stop(self, now_s: float) -> list[Action]:
        """Fuse what came, when that is a quorum, and open no further round."""
        self.stopping = True
        if self._round is not None and self._round.closing is None and self._round.has_quorum:
            return self._close(now_s)
        return []

    def finish(self) -> None:
        """The run has what it wanted (a target accuracy, say): the next `begin` ends it."""
        self._satisfied = True

    # --- questions --------------------------------------------------------------------------------------------

    @property
    def present(self) -> set[str]:
        """The devices that are there."""
        return self._attendance.present

    def judge(self, device: str, round: int, nonce: str) -> Verdict:
        """What would become of a reply: asked before its tensors travel."""
        if self.finished or self._round is None or round < self.state.round:
            return Verdict("late", f"round {round} is closed")
        if round != self.state.round or nonce != self._round.nonce:
            return Verdict("refused", f"round {round} was not announced with this nonce")
        if device not in self._round.asked:
            return Verdict("refused", "the device was not asked in this round")
        tally = self._round.tally
        if device in tally.replied:
            return Verdict("duplicate", "this device's reply is counted already")
        if self._round.closing is not None:
            return Verdict("late", f"round {round} is closed")
        if device in tally.barred:
            return Verdict("refused", tally.barred[device])
        return Verdict("accepted")

    @property
    def deadline_s(self) -> float | None:
        """When `tick` has something to do; None when it has nothing."""
        is_open = self._round is not None and self._round.closing is None
        due_s = min(self._round.due_s if self._round and is_open else math.inf, self._patience_s)
        return due_s if math.isfinite(due_s) else None

    @property
    def _patience_s(self) -> float:
        return math.inf if self.stopping or self.finished else self._waiting.ends_s(self._round)

    def missing(self, now_s: float) -> str:
        """What the run waits for, and who is not there: "2 of 3 needed are there; gone: pi-3 (112 s)"."""
        gone_s = {device: now_s - since for device, since in self._attendance.gone_s.items()}
        if self._round is not None:
            return missing(self._round, gone_s)
        return f"{len(self.present)} of {self.settings.min_devices} needed are there{absent(gone_s)}"

    @property
    def about(self) -> str:
        """What the method says of the open round; "" when none is open."""
        return self._round.tally.ask.about if self._round else ""

    @property
    def replies(self) -> tuple[int, int]:
        """Replies so far and devices asked, of the open round."""
        return (len(self._round.tally.replied), len(self._round.asked)) if self._round else (0, 0)

    # --- rounds -----------------------------------------------------------------------------------------------

    def _open_round(self, now_s: float) -> list[Action]:
        if self._round is not None or self.finished:
            return []
        ask = None if self._satisfied else self._ask(self.state)
        if ask is None:
            self.finished = True
            return [Finished(self.state)]
        if self.stopping:
            return []
        resumed = self._resumed if self._resumed and self._resumed.round == self.state.round else None
        self._resumed = None
        if resumed is None and not self._waiting.enough(len(self.present), now_s):
            return []
        limits = {"max_share": self.settings.max_share, "max_norm": self.settings.max_norm}
        self._round = Round(Tally(ask, self._fusing, self._usual, **limits), self._nonce(), opened_s=now_s)
        if resumed is not None:
            devices, self._round.attempt, self._round.quorum = resumed.devices, resumed.attempt, resumed.quorum
            self._round.trial = frozenset(resumed.trial)
            self._round.tally.weight_limit = resumed.weight_limit
        else:
            devices, self._round.trial = self._choose(afresh=self._small and ask.durable)
            self._round.quorum = self._quorum_of(len(devices) - len(self._round.trial))
            self._round.tally.limit_weights([self.stated.get(device, 0) for device in devices])
        self._round.first = tuple(device for device in devices if device not in self._round.trial)
        return self._announce(devices, now_s)

    def _choose(self, *, afresh: bool) -> tuple[tuple[str, ...], frozenset[str]]:
        """Whom to ask first, and who of them is on trial."""
        wanted, round = self._attendance.wanted(self.settings.fraction), self.state.round
        devices = self._attendance.sample(wanted, round)
        trial = self._attendance.on_trial(wanted, round, but=devices, afresh=afresh)
        return (*devices, *trial), frozenset(trial)

    def _announce(self, devices: Iterable[str], now_s: float) -> list[Action]:
        assert self._round is not None
        self._round.asked |= set(devices)
        self._round.asked_s, self._round.grace_s = now_s, math.inf
        self._round.deadline_s = now_s + self.settings.deadline_s
        return [
            Announce(
                round=self.state.round,
                attempt=self._round.attempt,
                nonce=self._round.nonce,
                ask=self._round.tally.ask,
                devices=tuple(sorted(self._round.asked)),
                duration_s=self.settings.deadline_s,
                quorum=self._round.quorum,
                trial=tuple(sorted(self._round.trial)),
                durable=self._durable,
                before=self._before,
                weight_limit=self._round.tally.weight_limit,
            )
        ]

    def _ask_again(self, now_s: float) -> list[Action]:
        """No quorum: replies so far stay counted (the announced tensors are the same), others are asked too, and who
        was barred may try once more."""
        assert self._round is not None
        barred = self._round.tally.barred
        text = self.missing(now_s) + then(self.settings.below_quorum, self._patience_s - now_s)
        if barred:
            text += f"; no reply of {some(barred)} is refused unseen any more"
        others = self._others()
        barred.clear()
        self._round.failed.clear()  # they may try again, but nobody counts on them
        self._round.attempt += 1
        return [Note("asked again", self.state.round, text=text), *self._announce(others, now_s)]

    def _others(self) -> tuple[str, ...]:
        """Who is to be asked too, where those who may still reply are not enough."""
        assert self._round is not None
        wanted = max(self._attendance.wanted(self.settings.fraction), self._round.quorum)
        hoped = self._round.outstanding & self.present if self._round.attempt == 0 else ()  # else: long enough
        missing = wanted - len(self._round.tally.replied) - len(hoped)
        asked, attempt = self._round.asked, self._round.attempt + 1
        return self._attendance.sample(max(0, missing), self.state.round, attempt, but=asked)

    def _close_if_done(self, now_s: float) -> list[Action]:
        if self._round is None or self._round.closing is not None:
            return []
        outstanding = self._round.outstanding
        if self._round.has_quorum and outstanding <= self._round.trial:
            return self._close_after_grace(outstanding, now_s)
        self._round.grace_s = math.inf
        if outstanding:
            return []
        # Nobody is left to wait for. With other devices there, ask them at once; else wait: devices come back. Where
        # so many were too large for what was usual, what is usual has changed: they are judged by each other then.
        stale = bool(self._round.tally.barred) and self._round.tally.forget_usual()
        if stale or self.present - self._round.asked:
            return self._ask_again(now_s)
        return []

    def _close_after_grace(self, trial: Collection[str], now_s: float) -> list[Action]:
        """Only devices on trial are missing: they get a while."""
        assert self._round is not None
        if trial and self._round.grace_s == math.inf:
            asked_s = self._round.asked_s
            self._round.grace_s = asked_s + self._attendance.grace_s(trial, now_s - asked_s)
        return [] if trial and now_s < self._round.due_s else self._close(now_s)

    def _close(self, now_s: float) -> list[Action]:
        """Fuse what came to the state that follows; or undo the round, where that is no state."""
        assert self._round is not None
        closed, tally = self._round, self._round.tally
        if outliers := tally.outliers():
            return self._repeat(*outliers, now_s)
        try:
            fused, state = after_round(self.method, self.state, tally)
        except NotFinite as error:
            return self._repeat(error.message, tally.largest(), now_s)
        clipped = [Note("clipped", self.state.round, device, text) for device, text in tally.clipped()]
        tally.let_go()
        seconds = now_s - closed.opened_s
        done = RoundDone(
            self.state.round,
            state,
            fused,
            closed.attempt + 1,
            len(closed.asked),
            seconds,
            norms=dict(tally.norms),
            missed=tuple(sorted(closed.missed)),
        )
        return [*clipped, *self._conclude(done)]

    def _conclude(self, done: RoundDone) -> list[Action]:
        """What the method's own model has still to do, or the end of the round."""
        assert self._round is not None
        self._round.closing = done
        work = self.method.work(done.state) if isinstance(self.method, WithModel) else None
        if work is not None:
            return [work]
        following = self._ask(done.state)
        # A resume must not go back behind a durable ask: devices may have carried it out.
        durable = self._round.tally.ask.durable or following is None or following.durable
        self._round.closing = replace(done, durable=durable)
        return [self._round.closing]

    def _repeat(self, why: str, moved: Collection[str], now_s: float) -> list[Action]:
        """The round from its beginning, without some devices: the others offer again what they have. Who has not
        replied until now is not waited for."""
        assert self._round is not None
        self._round.closing = None
        self._round.failed |= self._round.outstanding
        self._round.tally.undo(moved, f"round {self.state.round + 1} was undone: {why}"[:MOST_TEXT])
        note = Note("undone", self.state.round, text=f"{why}; asked again without {some(moved)}")
        if self.stopping:
            return [note]  # a resume asks again
        others = self._others()
        self._round.attempt += 1
        return [note, *self._announce(others, now_s)]

    # --- small questions --------------------------------------------------------------------------------------

    def _ask(self, state: State) -> Ask | None:
        """What the method asks. It is asked once in each state: an ask may be work."""
        if self._next is None or self._next[0] is not state:
            self._next = (state, self.method.ask(state))
        return self._next[1]

    def _quorum_of(self, devices: int) -> int:
        return max(1, math.ceil(self.settings.quorum * devices))

    def _nonce(self) -> str:
        """The same after a resume, so that devices which finished their work meanwhile need not repeat it; but of this
        start of the aggregator alone where the ask follows from what is not on disk."""
        since = "" if self._durable else f"/{self._epoch}"
        return hashlib.sha256(f"{self._secret}/{self.state.round}{since}".encode()).hexdigest()[:16]
