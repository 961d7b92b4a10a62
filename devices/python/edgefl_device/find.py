"""Finds the run to take part in: the one whose aggregator is up."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Collection

from edgefl import protocol
from edgefl.errors import ConfigError
from edgefl.mqtt import Connection
from edgefl.patience import Rarely, reach
from edgefl.transport import Broken, Disconnected, Received, Transport
from edgefl_device.options import Options, Say
from edgefl_device.runs_up import RunsUp
from edgefl_device.wire import life
from edgefl_device.wire.presence import OwnPresence

SETTLE_S = 0.2  # what a broker has kept of all runs arrives together; wait so long for more
ANSWER_S = 3.0  # an aggregator that is up answers a presence within so long
WAKE_S = 1.0


def find_run(options: Options, log: Say, *, dead: Collection[str] = (), unfit: Collection[str] = ()) -> str:
    """The run whose aggregator is up; waits until there is one. Raises ConfigError when there are several, and the
    device is not there for ever; BrokerError.

    Where the broker has kept of several that they are up, each is told that we are: who is up answers. A run of `dead`
    counts only when somebody says that it is up, one of `unfit` never.
    """
    connection: Transport = Connection(options.broker, f"edgefl-find-{options.name}", tls=options.tls)
    search = _Search(options, log, connection, frozenset(dead), frozenset(unfit))
    connection.subscribe(protocol.aggregator_topic("+"))
    reach(connection, log, once=options.once)
    try:
        while (found := search.step()) is None:
            pass
        return found
    finally:
        search.leave()
        connection.close(timeout_s=2.0)


class _Search:
    """What has been heard, and whom we have asked."""

    def __init__(
        self, options: Options, log: Say, connection: Transport, dead: frozenset[str], unfit: frozenset[str]
    ) -> None:
        self._options = options
        self._rarely = Rarely(log)
        self._connection = connection
        self._dead = dead
        self._unfit = unfit
        self._runs = RunsUp()
        self._asked: dict[str, OwnPresence] = {}
        self._answers_s = math.inf  # until when answers may come
        self._wait_s = SETTLE_S

    def step(self) -> str | None:
        """The next thing that happens; the run, once it is known."""
        try:
            event = self._connection.inbox.get(timeout=self._wait_s)
        except queue.Empty:
            self._wait_s = WAKE_S
            return self._decide(time.monotonic())
        self._wait_s = SETTLE_S
        match event:
            case Broken(error):
                raise error
            case Received():
                self._runs.note(event, time.monotonic())
            case Disconnected(reason):
                self._rarely(f"connection lost ({reason}); connecting again")
        return None

    def _decide(self, now_s: float) -> str | None:
        said = self._runs.said(now_s) - self._unfit
        kept = self._runs.kept(now_s) - self._unfit - self._dead
        if len(said) > 1:
            self._choose(said)
        elif said and (not kept or now_s >= self._answers_s):
            return said.pop()
        elif not said and len(kept) == 1 and not self._asked:
            return kept.pop()  # if nobody speaks for it, and for another, it is left soon
        elif unasked := kept - self._asked.keys():
            self._ask(unasked)
            self._answers_s = now_s + ANSWER_S
            self._wait_s = ANSWER_S
        elif not kept:
            self._rarely(f"connected to {self._options.broker}; waiting for an aggregator")
        elif now_s >= self._answers_s:
            names = ", ".join(sorted(kept))
            self._rarely(f"waiting until one of {names} says that it is up, or choose with --run")
        return None

    def _choose(self, runs: set[str]) -> None:
        several = f"{len(runs)} runs are up: {', '.join(sorted(runs))}"
        if not self._options.forever:
            raise ConfigError(several, hint="choose with --run")
        self._rarely(f"{several}; waiting until one is left, or choose with --run")

    def _ask(self, runs: Collection[str]) -> None:
        instance, name = life.begin(self._options.state), self._options.name
        for run in sorted(runs):
            one = OwnPresence(
                run, name, instance, engine=self._options.engine, capabilities=self._options.capabilities()
            )
            self._asked[run] = one
            self._connection.subscribe(protocol.down_topic(run, name))
            one.connecting()
            said = one.say("up")
            self._connection.publish(said.topic, said.payload, retain=said.retain)

    def leave(self) -> None:
        """No aggregator that we asked is to wait for us; the chosen one hears of us again."""
        for one in self._asked.values():
            said = one.say("sleeping")
            self._connection.publish(said.topic, said.payload, retain=said.retain)
