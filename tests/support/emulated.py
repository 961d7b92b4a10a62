"""Devices without a network: the real interpreter on real programs, tensors as the wire carries them, state kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgefl import protocol
from edgefl.aggregator.checks import check_reply, reply_names
from edgefl.aggregator.fusion import fusing
from edgefl.bundle import Bundle
from edgefl.method import Ask, Fused, Method, Reply, State
from edgefl.tensors import Tensors
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import answer
from edgefl_device.work.private import Private


class Devices:
    """Some devices, each with its own data and what it has kept so far; all have one bundle, or each its own."""

    def __init__(self, bundles: Bundle | Mapping[str, Bundle], data: Mapping[str, Dataset]) -> None:
        self.bundles = {name: bundles if isinstance(bundles, Bundle) else bundles[name] for name in data}
        self.data = {n: fit_to_contract(d, self.bundles[n].manifest.data, "test") for n, d in data.items()}
        self.kept: dict[str, Tensors] = {name: {} for name in data}

    def replies(self, ask: Ask, number: int, names: Iterable[str] | None = None) -> list[Reply]:
        """What these devices, by default all, answer to the ask of a round; it changes what they keep."""
        found = []
        for name in self.data if names is None else names:
            bundle = self.bundles[name]
            feeds = {"train": self.data[name], "test": self.data[name]}
            announced = protocol.bytes_to_tensors(protocol.tensors_to_bytes(ask.tensors), "it")
            done = answer(Runtime(bundle), ask.tasks, announced, feeds, Private(self.kept[name]), device=name)
            outcome, self.kept[name] = done.outcome, done.private.tensors
            sent = check_reply(outcome.tensors, reply_names(ask, bundle.manifest), name)
            found.append(Reply(name, number, outcome.examples, sent, outcome.metrics, outcome.steps))
        return found

    def carry_on(self, method: Method, state: State, rounds: int, names: Iterable[str] | None = None) -> State:
        """The state some rounds later."""
        for _ in range(rounds):
            ask = method.ask(state)
            assert ask is not None
            state = method.advance(state, fuse(ask, self.replies(ask, state.round, names)))
        return state


def fuse(ask: Ask, replies: Iterable[Reply]) -> Fused:
    fusion, rule = fusing(ask)
    for reply in replies:
        fusion.add(reply, rule.weigh(reply))
    return fusion.finish()
